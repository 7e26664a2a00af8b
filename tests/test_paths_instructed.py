"""Instructions from a corpus to `gpa run`: a tiny model learns three clips by heart, and obeys wordings.

The commands run in processes, as a user types them. Real codec, real training; only the sizes are small.
"""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from conftest import speechlike
from gpa import GPA, Speech, Transcript, audio
from gpa.data.token_folder import TokenSet
from gpa.engine.request import Completion, Request
from gpa.errors import GenerationError, PromptError, UsageError
from gpa.evals import instructed, suites
from gpa.evals.measurement import Bench, Case
from gpa.prompt.attributes import ATTRIBUTES
from gpa.prompt.tasks import ASR, TTS, VC
from tiny_model import write_keen_model

pytest.importorskip("sentencepiece")

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ("hello there", "how are you", "a lazy fox")
RATE, PAUSE = 16_000, 0.4  # seconds of silence at the end of each clip
RECIPE: dict[str, Any] = {
    "kind": "gpa",
    "data": {"tokens": "tokens", "batch_ids": 2048},
    "instructions": {"free": 0.7, "attributes": 0.5},
    "tasks": {"tts": {"share": 1}, "asr": {"share": 1}, "vc": {"share": 1, "weight": 1}},
    "model": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "weights": {"alignment": 0},
    "train": {"steps": 240, "save_every": 240, "eval_every": 240, "log_every": 60, "threads": 1},
    "optim": {"name": "muon", "lr": 5e-3, "warmup": 10, "beta1": 0.9, "beta2": 0.98},
}


def gpa(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of `gpa`, typed in a folder."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "gpa", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a corpus of three clips was prepared, and a model trained on it."""
    folder = tmp_path_factory.mktemp("site")
    write_keen_model(tiny, folder / "keen")
    (folder / "corpus").mkdir()
    rows = []
    for n, text in enumerate(TEXTS):
        wav = speechlike(1.0 + 0.2 * n, seed=n)
        wav *= np.sin(np.arange(len(wav)) * 0.004 * n + np.pi / 2 * (n == 0)).astype(np.float32)
        audio.save(folder / "corpus" / f"{n}.wav", np.pad(wav, (0, int(PAUSE * RATE))), RATE)
        rows.append(
            {"id": str(n), "path": f"{n}.wav", "text": text, "speaker": "ab"[n % 2], "licence": "CC0"}
        )
    (folder / "corpus" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    for words in (
        ("prepare", "corpus/manifest.jsonl", "-o", "tokens", "--model", "keen", "--silence"),
        ("train", "recipe.yaml", "--run", "run"),
    ):
        done = gpa(folder, *words)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def model(site: Path) -> GPA:
    warnings.simplefilter("ignore")  # the clips are too short for voices
    return GPA.from_pretrained(site / "run" / "export", device="cpu")


@pytest.mark.parametrize("n", range(3))
def test_trained_wordings_select_the_task_without_a_token(model: GPA, site: Path, n: int) -> None:
    """Audio and voice are the same for recognition and conversion: only the wording differs."""
    clip = site / "corpus" / f"{n}.wav"
    opened = {
        task.name: [model.opens(words, audio=clip, voice=clip) for words in task.instructions[::4]]
        for task in (ASR, VC)
    }
    assert set(opened["asr"]) == {"content"} and set(opened["vc"]) == {"semantic"}
    assert {model.opens(words, text=TEXTS[n], voice=clip) for words in TTS.instructions[::4]} == {"semantic"}


@pytest.mark.parametrize("n", range(3))
def test_capitals_come_where_they_are_asked_for_and_nowhere_else(model: GPA, site: Path, n: int) -> None:
    clip = site / "corpus" / f"{n}.wav"
    for phrase in ATTRIBUTES["capitals"].phrases:
        made = model.run(f"Transcribe this {phrase}.", audio=clip)
        assert isinstance(made, Transcript) and made.text == TEXTS[n].upper()
    for wording in ("Transcribe this.", "write what is said", "speech to text"):
        assert str(model.run(wording, audio=clip)) == TEXTS[n]


def test_a_transcript_has_the_form_of_the_draft_and_the_words_of_asr(
    model: GPA, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words near the draft replace its own, far ones do not; drawn and cut transcripts are the draft."""
    clip = site / "corpus" / "2.wav"
    heard = Transcript("", np.zeros(0, np.int64), "asr's", language="english")
    said = dict[str, str]()

    def asr(given: tuple[np.ndarray, int]) -> Transcript:
        assert given[1] == RATE and len(given[0]) == len(audio.load(clip, RATE))
        return replace(heard, text=said["asr"])

    monkeypatch.setattr(model, "asr", asr)
    for said["asr"], capitals in (("a hazy fox", "A HAZY FOX"), ("nobody knows", TEXTS[2].upper())):
        made = model.run("transcribe this in capitals", audio=clip)
        assert isinstance(made, Transcript) and made.text == capitals
        assert model.processor.text_tokenizer.decode(made.tokens).strip() == capitals
        about = ("asr's", "english") if "HAZY" in capitals else ("stop", "")
        assert (made.finish_reason, made.language) == about
    said["asr"] = "a hazy fox"
    assert str(model.run("transcribe this", audio=clip)) == "a hazy fox"
    assert str(model.run("transcribe this", audio=clip, temperature=0.01)) == TEXTS[2]
    assert len(model.run("transcribe this", audio=clip, max_new_tokens=2).tokens) == 2
    heard = replace(heard, finish_reason="no speech")
    said["asr"] = ""
    made = model.run("transcribe this", audio=clip)
    assert isinstance(made, Transcript) and (made.text, made.finish_reason) == ("", "no speech")


@pytest.mark.parametrize("n", range(3))
def test_the_pause_is_there_where_it_is_asked_for_and_nowhere_else(model: GPA, site: Path, n: int) -> None:
    """Ids of silence come first, 0.5 s or more of them; then the clip that was learnt."""
    clip, row = site / "corpus" / f"{n}.wav", TokenSet.open(site / "tokens")[n]
    learnt, (first, last) = row["semantic"].tolist(), row["silence"]
    assert 0.2 * 25 <= last - first <= (PAUSE + 0.1) * 25 and last == len(learnt)
    for given in ({"text": TEXTS[n]}, {"audio": clip}):
        task = TTS if "text" in given else VC
        plain = model.run(task.instructions[2], voice=clip, temperature=0, **given)
        asked = model.run(f"{task.instructions[2]} after a pause", voice=clip, temperature=0, **given)
        assert isinstance(plain, Speech) and plain.tokens.tolist() == learnt
        pause = len(asked.tokens) - len(learnt)
        assert 0.5 * 25 <= pause <= 3 * 25 and asked.tokens[pause:].tolist() == learnt
        assert len(asked.wav) == len(asked.tokens) * 640


def test_a_wording_wins_over_another_tasks_token(model: GPA, site: Path) -> None:
    clip = site / "corpus" / "1.wav"
    assert model.opens("transcribe this", audio=clip, voice=clip, tasks=["vc"]) == "content"
    assert model.opens("change the voice", audio=clip, voice=clip, tasks=["asr"]) == "semantic"


def test_the_command_prints_a_transcript_or_writes_speech(site: Path) -> None:
    export = ("--model", "run/export", "--temperature", "0")
    heard = gpa(site, "run", "Transcribe this in capitals.", "--audio", "corpus/2.wav", *export)
    assert heard.stdout == f"{TEXTS[2].upper()}\n", heard.stderr
    spoken = gpa(site, "run", "Read this after a pause.", "--text", TEXTS[0], *export, "--json")
    said = json.loads(spoken.stdout)
    assert said["path"] == "out.wav" and said["seconds"] > 1.4 + 0.5
    assert len(audio.load(site / "out.wav", RATE)) == len(said["tokens"]) * 640


def test_what_cannot_be_done_is_refused_with_its_reason(
    model: GPA, site: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = site / "corpus" / "0.wav"
    with pytest.raises(PromptError, match="needs words, and audio or text"):
        model.run("transcribe this")
    with pytest.raises(PromptError, match="needs words, and audio or text"):
        model.run(" . ", audio=clip)
    with pytest.raises(PromptError, match="characters of text, an instruction takes"):
        model.run("read this", text="word " * 100)
    with pytest.raises(PromptError, match="s of audio, an instruction takes"):
        model.run("transcribe this", audio=(speechlike(40.0), RATE))
    for opened, error, message in (
        ("content", PromptError, "give audio"),
        (None, GenerationError, "neither"),
    ):
        monkeypatch.setattr(
            model, "_opens", lambda question, opened=opened: opened
        )  # which this one never does
        with pytest.raises(error, match=message):
            model.run("transcribe this", text=TEXTS[0])
    untaught = GPA.from_pretrained(tiny, device="cpu")
    with pytest.raises(UsageError, match="has not learnt to follow instructions alone"):
        untaught.run("transcribe this", audio=clip)
    assert suites.lacking(suites.INSTRUCTIONS, Bench(site, untaught)).startswith("the model has not learnt")


def test_speech_that_fails_is_tried_once_more_and_never_handed_out(
    model: GPA, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two drawn takes the first does not end; one that is not drawn has no second."""
    given = {"text": TEXTS[0], "voice": site / "corpus" / "0.wav"}
    seeds, complete, failing = list[int](), model.complete, [True]

    def completed(requests: Sequence[Request]) -> list[Completion]:
        done = complete(requests)
        if requests[0].rules.max_new == 1:  # which block the model opens
            return done
        seeds.append(requests[0].seed)
        return [replace(each, finish_reason="length") for each in done] if failing.pop() else done

    monkeypatch.setattr(model, "complete", completed)
    failing = [False, True]
    assert isinstance(model.run("read this", seed=5, temperature=0.01, **given), Speech)
    assert seeds == [5, 6]
    failing = [True]
    with pytest.raises(GenerationError, match="does not come to an end; give another seed"):
        model.run("read this", temperature=0, **given)
    failing = [True]  # as long as it was asked for
    assert isinstance(model.run("read this", temperature=0, max_new_tokens=9, **given), Speech)


def test_the_suite_measures_what_was_learnt(model: GPA, site: Path) -> None:
    """Held-out wordings on a clip that was learnt: shares, and attributes asked for and not."""
    clip = site / "corpus" / "1.wav"
    case = Case("1", TEXTS[1], voice=clip)
    made = instructed.follow(Bench(site, model), case, audio.load(clip, RATE))
    assert made.shares and made.values and made.text == TEXTS[1]
    chosen = [made.shares[f"chosen: {task}"] for task in ("tts", "asr", "vc")]
    assert all(chosen) and made.shares["chosen: asr beside vc's token"]
    assert made.values["capitals: asked"] == 1.0 and made.values["capitals: unasked"] == 0.0
    assert {f"{name}: {key}" for name in ("pause", "slow") for key in ("asked", "unasked")} <= {*made.values}
    assert made.values["fast: ratio"] == pytest.approx(
        made.values["fast: asked"] / made.values["fast: unasked"], abs=1e-3
    )
