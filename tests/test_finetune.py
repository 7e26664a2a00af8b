"""Adapters, rehearsal, and `gpa finetune` from a folder of recordings to a model that is compared."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM

from conftest import speechlike
from gpa import audio, config
from gpa.cli import main
from gpa.codec.voice import Voice
from gpa.data.row_plan import _shared
from gpa.errors import CheckpointError, DataError, GPAError, UsageError
from gpa.finetune import collect, comparison, estimate, replay
from gpa.finetune.job import Job, finetune
from gpa.models.gpa import GPA
from gpa.models.gpa.modeling_gpa import inference_network, load_backbone
from gpa.text import pronunciations
from gpa.text.lexicon import words_of
from gpa.text.normaliser import normalise_text
from gpa.text.pronunciations import Pronunciations
from gpa.train import adapters
from gpa.train.adapters import AdapterArgs
from gpa.train.families.lm import LMFamily, LMRecipe
from gpa.train.loop import train
from training import lm_tree, read_rows, write_tokens

peft = pytest.importorskip("peft")
pytest.importorskip("sentencepiece")
pytest.importorskip("datasets")

WORDS = ("one two three.", "the quick brown fox jumps.", "how are you?", "hello there, dog.", "a lazy fox.")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def base(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the tokens' size, as a Hugging Face directory."""
    family = LMFamily(config.build(LMRecipe, lm_tree(tokens, weights={"alignment": 0.0})))
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    family.export(family.build(), folder)
    return folder


def adapter_tree(tokens: Path, base: Path, **more: Any) -> dict[str, Any]:
    extra = {"init": str(base), "model": {}, "weights": {"alignment": 0.0}, "adapter": {"rank": 2}}
    return lm_tree(tokens, **{**extra, **more})


def trained(tree: dict[str, Any], run: Path) -> torch.nn.Module:
    recipe = config.build(LMRecipe, tree)
    return train(LMFamily(recipe), recipe.train, recipe.optim, run, progress=False)


# Adapters ---------------------------------------------------------------------------------------------------


def test_an_adapter_learns_and_everything_else_stays_bit_identical(
    tokens: Path, base: Path, tmp_path: Path
) -> None:
    before = Qwen3ForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    module = trained(adapter_tree(tokens, base), tmp_path)
    after = {name.replace(".base_layer", ""): t for name, t in module.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    grown = [t for name, t in after.items() if "lora_B" in name]
    assert len(grown) == 3 * len(adapters.PROJECTIONS) and all(t.abs().sum() > 0 for t in grown)


def test_merged_network_adapter_on_the_base_and_trained_module_agree(
    tokens: Path, base: Path, tmp_path: Path
) -> None:
    module = trained(adapter_tree(tokens, base), tmp_path).eval()
    export = tmp_path / "export"
    ids = torch.arange(24)[None]
    plain = Qwen3ForCausalLM.from_pretrained(base, dtype=torch.float32)
    first = plain(ids).logits
    merged = Qwen3ForCausalLM.from_pretrained(export, dtype=torch.float32)(ids).logits
    wrapped = peft.PeftModel.from_pretrained(plain, str(export / adapters.FOLDER))(ids).logits
    trained_logits = module(ids).logits
    assert (trained_logits - first).abs().max() > 1e-3
    assert isinstance(module, Qwen3ForCausalLM)
    ours = inference_network(module).logits(range(24))[None]  # what validation runs
    for other in (merged, wrapped, ours):
        torch.testing.assert_close(other, trained_logits, atol=1e-5, rtol=1e-4)


def test_a_resumed_adapter_equals_an_uninterrupted_one(tokens: Path, base: Path, tmp_path: Path) -> None:
    tree = adapter_tree(tokens, base)
    whole = trained(tree, tmp_path / "whole").state_dict()
    tree["train"] |= {"max_seconds": 1e-9}  # stops after the first step, with a checkpoint
    trained(tree, tmp_path / "cut")
    tree["train"] |= {"max_seconds": 0.0}
    again = trained(tree, tmp_path / "cut").state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_checkpoint_is_asked_for_speech_by_its_own_dictionary(
    tokens: Path, base: Path, tmp_path: Path
) -> None:
    """In training as at inference; unless another one is stated, or it has none."""
    own = shutil.copytree(base, tmp_path / "own")

    def asked(start: Path, **data: str) -> tuple[str, str]:
        """What a held-out row asks for, and the transcript."""
        recipe = config.build(LMRecipe, adapter_tree(tokens, start, data={"tokens": str(tokens), **data}))
        dev = LMFamily(recipe).dev
        text = dev.fmt.parse(dev.row("tts", 0, np.random.default_rng(0)).ids.tolist()).text
        return str(text), normalise_text(dev.clips[0]["text"])

    text, transcript = asked(own)
    assert text == transcript
    words = words_of(transcript)
    said, other = (Pronunciations(dict.fromkeys(words, sounds)) for sounds in ("K AE1 T", "D AO1 G"))
    (own / pronunciations.FILE).write_bytes(said.content())
    (tmp_path / "other").write_bytes(other.content())
    assert asked(own)[0] == said.respelt(transcript).text != transcript
    assert asked(own, pronunciations=str(tmp_path / "other"))[0] == other.respelt(transcript).text
    assert asked(base)[0] == transcript


def test_adapters_that_cannot_be_are_refused(tokens: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="init"):
        LMFamily(config.build(LMRecipe, adapter_tree(tokens, base, init=""))).build()
    odd = adapter_tree(tokens, base, adapter={"rank": 2, "targets": ["no_such_layer"]})
    with pytest.raises(UsageError, match="no_such_layer"):
        LMFamily(config.build(LMRecipe, odd)).build()
    with pytest.raises(UsageError, match=r"adapter\.rank"):
        AdapterArgs(rank=-1)


def test_rehearsed_rows_are_their_share_of_what_is_drawn(tokens: Path, tmp_path: Path) -> None:
    other = write_tokens(tmp_path / "more")
    tree = lm_tree(tokens)
    tree["data"] |= {"replay": str(other), "replay_share": 0.25}
    family = LMFamily(config.build(LMRecipe, tree))
    own = sum(row["split"] == "train" for row in read_rows(tokens))
    replayed = np.array([i >= own for _, i, _ in family.items])
    assert 0 < replayed.sum() < len(replayed)
    assert family.plan.weights[replayed].sum() == pytest.approx(0.25 * family.plan.weights.sum())
    assert np.array_equal(_shared(np.ones(3), np.zeros(3, bool), 2.0), np.ones(3))  # nothing to share
    with pytest.raises(UsageError, match="replay_share"):
        _shared(np.ones(2), np.array([True, False]), 1.0)


def test_rehearsal_of_another_id_space_is_refused(tokens: Path, tmp_path: Path) -> None:
    other = write_tokens(tmp_path / "more", codes=29)
    recipe = lm_tree(tokens)
    recipe["data"] |= {"replay": str(other)}
    with pytest.raises(CheckpointError, match="more: its ids are not those"):
        LMFamily(config.build(LMRecipe, recipe))


# A new voice ------------------------------------------------------------------------------------------------


def write_recordings(folder: Path) -> Path:
    """Five clips of a second or two with their texts, and a longer one without."""
    folder.mkdir(parents=True)
    for n, text in enumerate(WORDS):
        audio.save(folder / f"{n}.wav", speechlike(1.6 + 0.2 * n, seed=10 + n), 16_000)
        (folder / f"{n}.txt").write_text(text, encoding="utf-8")
    audio.save(folder / "long.wav", speechlike(14.0, seed=20), 16_000)
    return folder


def test_recordings_become_rows_that_are_cut_filled_in_and_held_out(tmp_path: Path) -> None:
    folder, out = write_recordings(tmp_path / "zoe"), tmp_path / "manifest.jsonl"
    collect.collect(folder, "zoe", lambda wav: f"heard {len(wav)}", "heard by test", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    given = {row["id"]: row for row in rows if row["text_source"] == "given"}
    heard = [row for row in rows if row["text_source"] == "heard by test"]
    assert [given[str(n)]["text"] for n in range(5)] == list(WORDS)
    assert len(heard) == 2 and heard[0]["begin_time"] == 0 and heard[1]["end_time"] == pytest.approx(14.0)
    assert heard[0]["end_time"] == heard[1]["begin_time"] and heard[0]["end_time"] <= collect.PART_SECONDS
    assert all(row["text"].startswith("heard") for row in heard)
    assert {row["speaker"] for row in rows} == {"zoe"}
    assert [row["split"] for row in rows].count("dev") == 2
    again = tmp_path / "again.jsonl"
    collect.collect(folder, "zoe", lambda wav: f"heard {len(wav)}", "heard by test", again)
    assert again.read_bytes() == out.read_bytes()


def test_a_folder_with_too_little_speech_says_how_much_is_needed(tmp_path: Path) -> None:
    folder = tmp_path / "zoe"
    folder.mkdir()
    audio.save(folder / "a.wav", speechlike(1.0), 16_000)
    with pytest.raises(DataError, match="at least 4"):
        collect.collect(folder, "zoe", lambda wav: "", "nobody", tmp_path / "manifest.jsonl")


def test_sentences_to_rehearse_and_to_compare_on_are_not_the_same() -> None:
    rehearsed, compared = replay.sentences()
    assert len(compared) == replay.HELD and len(rehearsed) >= 40
    assert not set(rehearsed) & set(compared)


@pytest.fixture(scope="module")
def job(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("voice")
    write_recordings(folder / "zoe")
    sizes: dict[str, Any] = {"steps": 4, "rank": 2, "items": 2, "batch_ids": 800, "threads": 1}
    sizes |= {"voice_steps": 4, "voice_rank": 2, "adapt_lm": True}
    return Job(folder / "zoe", folder / "out", str(tiny), judge="own", limit=1e6, device="cpu", **sizes)


@pytest.fixture(scope="module")
def few_sentences() -> Any:
    patch = pytest.MonkeyPatch()
    short = ["one fox.", "hello you.", "how are you dog?", "the lazy quick fox."]
    patch.setattr(replay, "sentences", lambda: (short[:2], short[2:]))
    yield
    patch.undo()


def test_a_voice_is_learnt_and_the_model_loads(job: Job, few_sentences: None) -> None:
    outcome = finetune(job, lambda line: None)
    assert outcome is not None and not outcome.regressions
    times = json.loads((job.out / "times.json").read_text())
    assert set(times) == {"loading", "preparing", "voice", "language model", "table"}
    assert outcome.took == pytest.approx(sum(times.values()) / 60) and outcome.predicted > 0
    for name in ("comparison.md", "comparison.png", "samples/before", "samples/after", "recipe.yaml"):
        assert (job.out / name).exists(), name
    lines = {(line.task, line.whose) for line in comparison.load(job.out / "after.json")}
    assert {("asr", "zoe"), ("tts", "zoe"), ("vc", "zoe"), ("tts", "others"), ("asr", "others")} <= lines
    made, base = (
        GPA.from_pretrained(outcome.model, device="cpu"),
        GPA.from_pretrained(job.model, device="cpu"),
    )
    assert set(made.voices) == {"anna", "ben", "zoe"} and made.config.name == "tiny-zoe"
    ids = base.prompt("tts", text="hello there", voice=made.voices["zoe"])
    lm = load_backbone(job.model).eval()
    wrapped = peft.PeftModel.from_pretrained(lm, str(outcome.model / adapters.FOLDER))
    with torch.no_grad():
        found = wrapped(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(found, made.network.logits(ids), atol=2e-2, rtol=2e-2)  # float16 files
    assert (found - base.network.logits(ids)).abs().max() > 2e-2


def test_a_voice_alone_leaves_all_else_as_it_was(job: Job, few_sentences: None) -> None:
    """Without --adapt-lm nothing is rehearsed; the voice is a file, which also serves the base model."""
    alone = dataclasses.replace(job, out=job.out.with_name("alone"), adapt_lm=False)
    outcome = finetune(alone, lambda line: None)
    assert outcome is not None and not outcome.regressions
    assert not (alone.out / "replay").exists() and not (alone.out / "run").exists()
    for when in ("before", "after"):
        found = {(line.task, line.whose) for line in comparison.load(alone.out / f"{when}.json")}
        assert found == {("tts", "zoe"), ("vc", "zoe")}
    base, made = (GPA.from_pretrained(path, device="cpu") for path in (job.model, outcome.model))
    weights = made.network.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in base.network.state_dict().items())
    voice = Voice.load(alone.out / "voice.json")
    assert voice.adaptation is not None and voice.adaptation == made.voices["zoe"].adaptation
    start = Voice.load(alone.out / "start.json")
    assert voice.codes == start.codes and start.adaptation is None
    source = (speechlike(1.5), 16_000)
    swapped = base.vc(source, voice=alone.out / "voice.json", mode="codec")
    assert np.array_equal(swapped.wav, made.vc(source, voice="zoe", mode="codec").wav)
    assert not np.array_equal(swapped.wav, base.vc(source, voice=start, mode="codec").wav)
    for name in base.voices:
        old, new = (model.vc(source, voice=name, mode="codec").wav for model in (base, made))
        assert np.array_equal(old, new)


def test_a_changed_old_voice_is_a_regression(job: Job, tiny: Path) -> None:
    base, made = GPA.from_pretrained(tiny, device="cpu"), GPA.from_pretrained(tiny, device="cpu")
    text = replay.sentences()[1][0]
    assert comparison.same_sound(base, made, text)
    other = tuple((code + 5) % 16 for code in made.voices["ben"].codes)
    made.voices["ben"] = dataclasses.replace(made.voices["ben"], codes=other)
    assert not comparison.same_sound(base, made, text)


# The plan ---------------------------------------------------------------------------------------------------


def test_a_plan_reads_headers_and_leaves_nothing(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is loaded, no sound decoded, no text written down, and there is no folder afterwards."""

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a plan does no work")

    for place, name in ((GPA, "from_pretrained"), (audio, "load"), (replay, "write"), (collect, "collect")):
        monkeypatch.setattr(place, name, never)
    out = job.out.with_name("planned")
    said: list[str] = []
    assert finetune(dataclasses.replace(job, out=out), said.append, only_plan=True) is None
    assert [line.split()[0] for line in said] == ["voice", "text", "steps", "memory", "time"]
    assert not out.exists()


def test_a_plan_follows_from_durations(job: Job, tiny: Path, tmp_path: Path, monkeypatch: Any) -> None:
    probe = 0.5
    monkeypatch.setattr(estimate.speaker_adaptation, "step_seconds", lambda codec: probe)
    found = estimate.Found.of(job.voice)
    assert found.clips == 6 and found.untold == pytest.approx(14.0, abs=0.01)
    assert found.seconds == pytest.approx(14.0 + sum(1.6 + 0.2 * n for n in range(5)), abs=0.01)
    row = {"id": "a", "path": str(job.voice / "long.wav"), "begin_time": 3.0, "end_time": 5.5, "text": "so"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert estimate.Found.of(tmp_path / "rows.jsonl") == estimate.Found(1, 2.5, 0.0)
    twice = estimate.Found(2 * found.clips, 2 * found.seconds, 2 * found.untold)
    size = estimate.Size(voice_steps=100, items=3)
    one, two = (estimate.plan(f, size, tiny / "codec", tiny) for f in (found, twice))
    assert two.seconds["preparing"] == pytest.approx(2 * one.seconds["preparing"])
    assert two.seconds["voice"] - one.seconds["voice"] == pytest.approx(
        probe * estimate.COSTS["completed"] * found.seconds
    )
    more = estimate.plan(found, dataclasses.replace(size, voice_steps=300), tiny / "codec", tiny)
    assert more.seconds["voice"] - one.seconds["voice"] == pytest.approx(200 * probe * estimate.EVALUATED)
    assert two.seconds["table"] == one.seconds["table"] and not one.seconds["language model"]
    words = estimate.plan(found, dataclasses.replace(size, lm_steps=50, batch_ids=800), tiny / "codec", tiny)
    assert words.seconds["language model"] > 0
    assert one.minutes == pytest.approx(sum(one.seconds.values()) / 60)


def test_what_a_run_took_is_kept_over_a_kill(tmp_path: Path) -> None:
    clock = estimate.Clock(tmp_path / "times.json")
    clock.began -= 60
    clock.stage("voice")
    again = estimate.Clock(tmp_path / "times.json")
    again.began -= 30
    again.stage("voice")
    again.stage("table")
    assert again.took["voice"] == pytest.approx(90, abs=1) and again.minutes == pytest.approx(1.5, abs=0.02)


def test_the_same_command_again_does_nothing_anew_and_another_is_refused(
    job: Job, few_sentences: None
) -> None:
    stamps = {p: p.stat().st_mtime_ns for p in (job.out / "run").rglob("*") if p.is_file()}
    assert finetune(job, lambda line: None) is not None
    assert stamps == {p: p.stat().st_mtime_ns for p in (job.out / "run").rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="steps differ"):
        finetune(Job(**{**vars(job), "steps": 5}))
    with pytest.raises(UsageError, match="already"):
        finetune(Job(**{**vars(job), "name": "anna", "out": job.out.with_name("other")}))


def test_a_table_reports_what_became_worse() -> None:
    others, zoe = ("tts", "others"), ("tts", "zoe")
    before = [comparison.Line(*others, 0.2, 1.0, None, 4), comparison.Line(*zoe, 0.2, 1.0, 0.6, 4, 0.5)]
    after = [comparison.Line(*others, 0.35, 0.5, None, 4), comparison.Line(*zoe, 0.9, 1.0, 0.8, 4, 0.75)]
    assert comparison.regressions(before, after, 20) == ["tts (others): stopped 100.0 -> 50.0 %"]
    assert len(comparison.regressions(before, after, 10)) == 2
    assert "| tts | zoe | 4 | 20.0 | 90.0 | 100.0 | 100.0 | 0.60 | 0.80 | 0.50 | 0.75 | - | - |" in (
        comparison.table(before, after, "x")
    )


def test_the_command_exits_with_one_when_an_old_task_regressed(
    job: Job, few_sentences: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    finetune(job, lambda line: None)
    shutil.copytree(job.out, tmp_path / "out")
    worse = [
        comparison.Line(**{**vars(line), "wer": line.wer + 1})
        for line in comparison.load(job.out / "after.json")
    ]
    comparison.save(worse, tmp_path / "out" / "after.json")
    options = ["--steps", "4", "--rank", "2", "--items", "2", "--batch-ids", "800", "--threads", "1"]
    options += ["--adapt-lm", "--voice-steps", "4", "--voice-rank", "2"]
    options += ["--judge", "own", "--device", "cpu", "--model", job.model, "-o", str(tmp_path / "out")]
    assert main.main(["finetune", "--voice", str(job.voice), *options]) == 1
    assert "regressed" in capsys.readouterr().err
    assert main.main(["finetune", "--voice", str(job.voice), *options, "--limit", "1000"]) == 0


def test_rehearsed_recognition_and_conversion_start_from_what_is_heard(tiny: Path, tmp_path: Path) -> None:
    """Rows hold the model's own answers to the very ids that it was given."""
    model = GPA.from_pretrained(tiny, device="cpu")
    base = {"id": "replay-0", "split": "train", "speaker": "anna"}
    for seed in range(40):  # an untrained model rarely stops, or says nothing
        try:
            rows = list(replay._of_sentence(model, {**base, "id": f"replay-{seed}"}, "hi.", "ben"))
        except GPAError:
            continue
        if len(rows) == 3:
            break
    else:
        pytest.fail("the untrained model ended no sentence by itself")
    said = {row["task"]: row for row in rows}
    wav = model.codec.decode(np.array(said["tts"]["semantic"]), model.voices["anna"].codes)
    heard = model.codec.semantic_tokens(
        (wav / max(1.0, float(np.abs(wav).max())), model.sample_rate)
    ).tolist()
    assert said["asr"]["semantic"] == said["vc"]["semantic"] == heard
    assert said["vc"]["global"] == list(model.voices["ben"].codes)


def test_recordings_of_the_new_voice_are_converted_to_shipped_voices(tiny: Path, tmp_path: Path) -> None:
    """Their rows map what is heard in a recording to what the base model makes of it, every voice in turn."""
    model = GPA.from_pretrained(tiny, device="cpu")
    write_recordings(tmp_path / "zoe")
    rate = model.sample_rate
    sounds = [(audio.load(path, rate), rate) for path in sorted((tmp_path / "zoe").glob("*.wav"))][:2]
    sounds *= 3
    rows = list(replay._conversions(model, sounds))
    assert rows, "the untrained model ended no conversion by itself"
    for row in rows:
        pair = int(row["id"].rpartition("-")[2])
        name = sorted(model.voices)[pair // len(sounds)]
        assert row["semantic"] == model.codec.semantic_tokens(sounds[pair % len(sounds)]).tolist()
        assert row["task"] == "vc" and row["target"] and row["global"] == list(model.voices[name].codes)
