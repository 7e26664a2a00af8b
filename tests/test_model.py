"""The model as people use it: golden prompts and continuations, files, limits, voices, the three tasks."""

import inspect
import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import speechlike
from gpa.engine.base import Completer
from gpa.engine.request import Completion, Request
from gpa.engine.scheduler import Progress
from gpa.errors import AudioWarning, CheckpointError, GenerationError, PromptError, UsageError
from gpa.models.gpa import GPA, Speech, Transcript, Voice
from gpa.models.gpa import pipeline_gpa as modeling
from gpa.models.gpa.segmentation_gpa import speech_seconds, split_audio, split_text
from gpa.models.gpa.verify_gpa import verify
from gpa.train import export
from published import read_cases

RATE = 16000
CASES = read_cases()["cases"]
SHORT = {"max_new_tokens": 12, "seed": 1}


@pytest.fixture(scope="module")
def published(replica: Path) -> GPA:
    return GPA.from_pretrained(replica, device="cpu")


@pytest.fixture(scope="module")
def ours(tiny: Path) -> GPA:
    return GPA.from_pretrained(tiny, device="cpu")


@pytest.fixture
def clip() -> tuple[np.ndarray, int]:
    return speechlike(1.0), RATE


def case_prompt(model: GPA, case: dict[str, Any], folder: Path) -> list[int]:
    voice = {"voice": folder / case["ref_audio_path"]} if "ref_audio_path" in case else {}
    if case["task"] == "tts-a":
        return model.prompt("tts", text=case["text"], **voice)
    kind = {"stt": "audio", "vc": "source"}[case["task"]]
    return model.prompt(case["task"], **{kind: folder / case["audio_path"]}, **voice)


# The published checkpoint -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_prompts_and_greedy_continuations(published: GPA, replica: Path, case: dict[str, Any]) -> None:
    prompt = case_prompt(published, case, replica / "golden")
    assert prompt == case["prompt"]
    found = published.generate(prompt, task=case["task"], constrained=False, temperature=0, max_new_tokens=24)
    assert found == case["greedy"]


def test_nested_layout(published: GPA, replica: Path, tmp_path: Path) -> None:
    shutil.copytree(replica, tmp_path / "gpa_0_3b")
    model = GPA.from_pretrained(tmp_path, device="cpu")
    assert model.info()["fingerprints"] == published.info()["fingerprints"]
    assert model.path == tmp_path / "gpa_0_3b"


def test_a_tied_duplicate_of_the_embedding_is_accepted(replica: Path, tmp_path: Path) -> None:
    shutil.copytree(replica, tmp_path / "m")
    state = load_file(replica / "model.safetensors")
    embedding = state["model.embed_tokens.weight"]
    save_file(state | {"lm_head.weight": embedding.clone()}, tmp_path / "m" / "model.safetensors")
    GPA.from_pretrained(tmp_path / "m", device="cpu")
    save_file(state | {"lm_head.weight": embedding + 1}, tmp_path / "m" / "model.safetensors")
    with pytest.raises(CheckpointError, match="lm_head"):
        GPA.from_pretrained(tmp_path / "m", device="cpu")


# Saving and loading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["published", "ours"])
def test_saved_equals_loaded(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model: GPA = request.getfixturevalue(kind)
    out = model.save_pretrained(tmp_path / "m")
    again = GPA.from_pretrained(out, device="cpu")
    clip = (speechlike(0.8), RATE)
    assert again.prompt("asr", audio=clip) == model.prompt("asr", audio=clip)
    ids = model.prompt("vc", source=clip, voice=(speechlike(3.0, seed=2), RATE))
    assert again.generate(ids, task="vc", **SHORT) == model.generate(ids, task="vc", **SHORT)
    assert again.voices == model.voices
    first, second = again.info(), model.info()
    assert {**first, "path": ""}.keys() == second.keys()
    assert first["fingerprints"]["codec"] == second["fingerprints"]["codec"]
    assert not [p for p in out.rglob("*") if p.suffix in (".bin", ".pt", ".py", ".pkl")]
    with pytest.raises(UsageError, match="not empty"):
        model.save_pretrained(out)
    (out / "README.md").write_text("card")
    model.save_pretrained(out, overwrite=True)
    assert (out / "README.md").read_text() == "card"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("kind", ["published", "ours"])
def test_our_directory_loads_in_plain_transformers(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: GPA = request.getfixturevalue(kind)
    out = model.save_pretrained(tmp_path / "m")
    lm, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.allclose(lm(ids).logits[0], model.network.logits([1, 2, 3, 4]), atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(out)
    block = model.vocab.semantic
    assert tokenizer.convert_tokens_to_ids("<|bicodec_semantic_3|>") == block.offset + 3
    text = "hello there"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == model.processor.text_tokenizer.encode(
        text
    )


def test_parts_of_another_model_are_refused(ours: GPA, tmp_path: Path) -> None:
    out = ours.save_pretrained(tmp_path / "m")
    spec = json.loads((out / "tokenizer.json").read_text())
    spec["model"]["vocab"][5][1] -= 0.5  # another score, same ids
    original = (out / "tokenizer.json").read_bytes()
    (out / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(CheckpointError, match="tokenizer is not the one"):
        GPA.from_pretrained(out, device="cpu")
    (out / "tokenizer.json").write_bytes(original)
    state = load_file(out / "codec" / "model.safetensors")
    save_file(
        state | {"prenet.linear.bias": state["prenet.linear.bias"] + 1}, out / "codec" / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match="codec is not the one"):
        GPA.from_pretrained(out, device="cpu")


def test_a_codec_of_another_size_is_refused(published: GPA, ours: GPA, tmp_path: Path) -> None:
    out = ours.save_pretrained(tmp_path / "m")
    shutil.rmtree(out / "codec")
    published.codec.save_pretrained(out / "codec")
    with pytest.raises(CheckpointError, match="do not match"):
        GPA.from_pretrained(out, device="cpu")


@pytest.mark.parametrize("damage", ["truncated", "missing", "unexpected"])
def test_damaged_weights(ours: GPA, tmp_path: Path, damage: str) -> None:
    out = ours.save_pretrained(tmp_path / "m")
    path = out / "model.safetensors"
    state = load_file(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
        expected = "model.safetensors: truncated"
    elif damage == "missing":
        save_file({n: t for n, t in state.items() if n != "model.norm.weight"}, path)
        expected = "model.norm.weight"
    else:
        save_file(state | {"model.extra": torch.zeros(1)}, path)
        expected = "model.extra"
    with pytest.raises(CheckpointError, match=expected):
        GPA.from_pretrained(out, device="cpu")


def test_unreadable_directories(ours: GPA, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        GPA.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or directory"):
        GPA.from_pretrained("no-such-model")
    out = ours.save_pretrained(tmp_path / "m")
    for key, value, expected in (
        ("surprise", 1, "surprise"),
        ("version", 9, "version 9"),
        ("fingerprints", {}, "codec"),
        ("gamma", "strong", "gamma: expected a number"),
        ("gamma", -1, "finite number of at least 0"),
        ("max_audio_seconds", "nan", "max_audio_seconds: nan is not a finite number"),
        ("max_text_chars", -5, "max_text_chars=-5: a finite number above 0"),
        ("sampling", {"sing": {}}, r"unknown tasks \['sing'\]"),
        ("max_text_chars", 1.5, "max_text_chars: expected int"),
        ("sampling", {"tts": {"heat": 1}}, r"sampling.tts: unknown keys \['heat'\]"),
        ("beams", {"width": 0}, "width of at least 1"),
    ):
        tree = json.loads((tmp_path / "m" / "gpa.json").read_text())
        (out / "gpa.json").write_text(json.dumps({**tree, key: value}))
        with pytest.raises(CheckpointError, match=expected):
            GPA.from_pretrained(out, device="cpu")
        (out / "gpa.json").write_text(json.dumps(tree))


def test_loading_needs_no_network(tiny: Path, replica: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    for folder in (tiny, replica):
        GPA.from_pretrained(folder)


# Voices -----------------------------------------------------------------------------------------------------


def test_voices(
    ours: GPA, tmp_path: Path, clip: tuple[np.ndarray, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(ours.voices) == ["anna", "ben"]
    reference = (speechlike(4.0, seed=3), RATE)
    voice = ours.voice(reference, name="eve")
    assert len(voice.codes) == ours.codec.spec.n_global
    voice.save(tmp_path / "eve.json")
    assert Voice.load(tmp_path / "eve.json") == voice
    prompts = [ours.prompt("tts", text="hello", voice=v) for v in (voice, tmp_path / "eve.json", reference)]
    assert prompts[0] == prompts[1] == prompts[2]
    with pytest.raises(UsageError, match="anna, ben"):
        ours.tts("hello", voice="zoe")
    assert ours.resolve_voice(None) == ours.voices["anna"]  # the first, as on the command line
    monkeypatch.setattr(ours.processor, "voices", {})
    with pytest.raises(UsageError, match="a voice is needed.*ships no voices"):
        ours.tts("hello")
    monkeypatch.undo()
    with pytest.warns(AudioWarning, match="1.0 s"):
        ours.voice(clip)


def test_voices_of_another_codec_are_refused(ours: GPA, published: GPA, tmp_path: Path) -> None:
    stranger = Voice((0,) * ours.codec.spec.n_global, "0" * 64, "stranger")
    with pytest.raises(CheckpointError, match="another codec"):
        ours.tts("hello", voice=stranger)
    with pytest.raises(CheckpointError, match="codes"):
        ours.add_voice("x", Voice((1, 2), ""))
    with pytest.raises(UsageError, match="ships no voices"):
        published.tts("hello", voice="anna")
    (tmp_path / "v.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a voice"):
        ours.tts("hello", voice=tmp_path / "v.json")
    with pytest.raises(UsageError, match="zoe.json"):
        ours.tts("hello", voice="zoe.json")


# The three tasks --------------------------------------------------------------------------------------------


def test_speech(ours: GPA, tmp_path: Path) -> None:
    speech = ours.tts("hello there", voice="anna", **SHORT)
    assert isinstance(speech, Speech)
    assert speech.wav.dtype == np.float32
    assert len(speech.wav) == len(speech.tokens) * 640 == round(speech.seconds * RATE)
    assert np.array_equal(speech.wav, ours.codec.decode(speech.tokens, ours.voices["anna"].codes))
    speech.save(tmp_path / "o.wav")
    again = ours.tts("hello there", voice="anna", **SHORT)
    assert np.array_equal(again.wav, speech.wav)
    other = ours.tts("hello there", voice="anna", temperature=1.5, max_new_tokens=12, seed=2)
    assert not np.array_equal(other.tokens, speech.tokens)


def test_conversion(ours: GPA, clip: tuple[np.ndarray, int]) -> None:
    speech = ours.vc(clip, voice="ben", **SHORT)
    assert 0 < len(speech.tokens) <= 12
    fast = ours.vc(clip, voice="ben", mode="codec")
    assert np.array_equal(fast.tokens, ours.codec.semantic_tokens(clip))
    assert np.array_equal(fast.wav, ours.codec.decode(fast.tokens, ours.voices["ben"].codes))
    assert fast.finish_reason == "stop"
    with pytest.raises(UsageError, match="mode"):
        ours.vc(clip, voice="ben", mode="fast")


def test_a_model_that_keeps_timing(
    ours: GPA, clip: tuple[np.ndarray, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """About as many ids as the source has, and a stop, unless a bound is asked for."""
    monkeypatch.setattr(ours.processor, "config", replace(ours.processor.config, keeps_timing=True))
    heard = ours.codec.semantic_tokens(clip)
    for seed in range(3):
        speech = ours.vc(clip, voice="ben", seed=seed)
        about = 0.9 * len(heard) <= len(speech.tokens) <= 1.05 * len(heard) + 5
        assert about or speech.finish_reason == "loop"
        assert speech.finish_reason != "length"
    assert len(ours.vc(clip, voice="ben", **SHORT).tokens) <= 12


def test_transcript(ours: GPA, clip: tuple[np.ndarray, int]) -> None:
    transcript = ours.asr(clip, max_new_tokens=8)
    assert isinstance(transcript, Transcript)
    assert transcript.text == str(transcript) and transcript.text
    assert transcript.finish_reason in ("stop", "length", "loop")
    assert all(i in ours.vocab.text for i in transcript.tokens)


def test_words_help_a_transcript(ours: GPA, clip: tuple[np.ndarray, int], tmp_path: Path) -> None:
    """A checkpoint keeps its list of words, which turns what is written towards them; none, no added ones."""
    with pytest.raises(UsageError, match=r"no words.txt"):
        ours.asr(clip, words=["Quillan"])
    with pytest.raises(UsageError, match="width of at least 1"):
        ours.asr(clip, beams=0)
    kept = ours.save_pretrained(tmp_path / "kept")
    (kept / "words.txt").write_text("hello 3\nthere 1\n")
    strong = json.loads((kept / "gpa.json").read_text()) | {
        "beams": {"width": 6, "words": 40.0, "letter": 0.0}
    }
    (kept / "gpa.json").write_text(json.dumps(strong))
    model = GPA.from_pretrained(kept)
    greedy = model.asr(clip, beams=1, max_new_tokens=12).text
    assert greedy == ours.asr(clip, max_new_tokens=12).text
    assert model.asr(clip, max_new_tokens=12).text != greedy
    assert len(model.processor.search(words=["Quillan"]).prior.wording.lexicon) == 3  # type: ignore[union-attr]
    assert "quillan" in model.processor.search(words="Quillan").prior.wording.lexicon.counts  # type: ignore[union-attr]
    once, twice = (model.processor.search(words=["Quillan"]).prior for _ in range(2))
    assert once.wording is twice.wording  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="at least 2 beams"):
        model.asr(clip, beams=1, words=["Quillan"])
    again = model.save_pretrained(tmp_path / "again")
    assert (again / "words.txt").read_text() == "hello 3\nthere 1\n"
    (again / "words.txt").write_text("no count\n")
    with pytest.raises(CheckpointError, match=r"words.txt, line 1"):
        GPA.from_pretrained(again).asr(clip)


@pytest.mark.parametrize("kind", ["published", "ours"])
@pytest.mark.parametrize("task", ["asr", "tts", "vc"])
def test_length_follows_from_the_input(
    kind: str, task: str, request: pytest.FixtureRequest, clip: tuple[np.ndarray, int]
) -> None:
    """No budget given, an untrained model: it ends all the same, and emits only what the task may hold."""
    model: GPA = request.getfixturevalue(kind)
    inputs: dict[str, Any] = {"asr": {"audio": clip}, "tts": {"text": "hi you"}, "vc": {"source": clip}}[task]
    if task != "asr":
        inputs["voice"] = (speechlike(3.0, seed=5), RATE)
    ids = model.generate(model.prompt(task, **inputs), task=task, temperature=2.0)
    assert 0 < len(ids) <= 4.5 * model.codec.spec.frame_rate
    legal = model.format.legal_ids(task)
    assert all(any(i in run for run in legal) for i in ids)
    model.format.parse_completion(task, ids)


def test_long_audio_is_split_and_nothing_is_lost(ours: GPA, monkeypatch: pytest.MonkeyPatch) -> None:
    long = np.concatenate([speechlike(1.5, seed=i) for i in range(4)])
    seen: list[int] = []
    build = ours.processor.build

    def spy(task: str, **fields: Any) -> list[int]:
        seen.append(len(fields["wav"]))
        return build(task, **fields)

    monkeypatch.setattr(ours.processor, "build", spy)
    monkeypatch.setattr(
        ours.processor, "config", modeling.GPAConfig(format="instruct", max_audio_seconds=2.0)
    )
    ours.asr((long, RATE), max_new_tokens=4)
    assert len(seen) >= 3 and max(seen) <= 2 * RATE and sum(seen) == len(long)
    speech = ours.vc((long, RATE), voice="anna", max_new_tokens=4)
    assert len(speech.wav) == len(speech.tokens) * 640


def test_long_text_is_spoken_in_parts(ours: GPA) -> None:
    text = "Hello there, how are you? " * 12
    assert len(list(ours.processor.passages(text, ours.voices["anna"].codes))) >= 2
    speech = ours.tts(text, voice="anna", max_new_tokens=3, pause=0.5)
    assert len(speech.wav) > len(speech.tokens) * 640 + RATE // 4


def test_too_long_for_the_context(published: GPA, ours: GPA) -> None:
    with pytest.raises(PromptError, match=r"prompt has \d+ ids, the model's context 1024"):
        ours.prompt("vc", source=(speechlike(60.0), RATE), voice="anna")
    with pytest.raises(PromptError, match="context 4096"):
        published.generate([1] * 4096, task="asr")


def test_what_cannot_be_asked(ours: GPA, clip: tuple[np.ndarray, int]) -> None:
    with pytest.raises(PromptError, match="valid tasks"):
        ours.prompt("sing", text="la")
    with pytest.raises(PromptError, match="voice is missing"):
        ours.prompt("tts", text="hi")
    with pytest.raises(PromptError, match="text is not taken"):
        ours.prompt("asr", audio=clip, text="hi")
    with pytest.raises(PromptError, match="nothing to say"):
        ours.tts("  ", voice="anna")
    for bad in (0, 1.5, -3):
        with pytest.raises(UsageError, match="max_new_tokens"):
            ours.asr(clip, max_new_tokens=bad)
    for ask in (
        lambda: ours.tts("hi", "anna", speed=2),  # type: ignore[call-arg]
        lambda: ours.vc(clip, "anna", pause=1.0),  # type: ignore[call-arg]
        lambda: ours.asr(clip, gamma=1.0),  # type: ignore[call-arg]
        lambda: ours.generate([1], task="asr", beams=2),  # type: ignore[call-arg]
    ):
        with pytest.raises(UsageError, match="unknown option '[a-z]+': choose from seed, "):
            ask()
    for name, value in {
        "temperature": "0.5",
        "seed": "x",
        "top_k": 1.5,
        "pause": None,
        "pronunciations": "a",
    }.items():
        with pytest.raises(UsageError, match=f"{name}={value!r}: expected "):
            ours.tts("hi", "anna", **{name: value})  # type: ignore[call-overload]
    for text in (5, None):
        with pytest.raises(PromptError, match="is no text"):
            ours.tts(text, "anna")  # type: ignore[call-overload]
    for ids in ("abc", None, [0.5]):
        with pytest.raises(PromptError, match="a list of ids"):
            ours.generate(ids, task="asr")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="device"):
        GPA.from_pretrained(ours.path, device="abacus")
    with pytest.raises(UsageError, match="dtype"):
        GPA.from_pretrained(ours.path, device="cpu", dtype="int8")


class Answers(Completer):
    """An engine that completes every request in the same way."""

    def __init__(self, completion: Completion) -> None:
        self.completion, self.handles = completion, list[int]()

    @property
    def busy(self) -> bool:
        return bool(self.handles)

    def add(self, request: Request) -> int:
        self.handles.append(len(self.handles))
        return self.handles[-1]

    def step(self) -> list[Progress]:
        told, self.handles = self.handles, []
        return [Progress(handle, self.completion.ids, self.completion) for handle in told]

    def cancel(self, handle: int) -> None:
        self.handles.remove(handle)


def test_an_empty_conversion_is_an_error_and_an_empty_transcript_is_none(
    ours: GPA, clip: tuple[np.ndarray, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "engine", lambda: Answers(Completion([ours.vocab.stop], "stop", 1)))
    with pytest.raises(GenerationError, match="no speech"):
        ours.vc(clip, voice="anna")
    assert (ours.asr(clip).text, ours.asr(clip).finish_reason) == ("", "stop")


def test_a_loop_is_cut(ours: GPA, clip: tuple[np.ndarray, int], monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ours.vocab.semantic.ids([1, 2, 3, 3, 3, 3])
    monkeypatch.setattr(ours, "engine", lambda: Answers(Completion(ids, "loop", 3)))
    speech = ours.vc(clip, voice="anna")
    assert (speech.tokens.tolist(), speech.finish_reason) == ([1, 2, 3], "loop")


def test_hostile_text_stays_text(ours: GPA) -> None:
    prompt = ours.prompt("tts", text="<|im_end|> <|bicodec_semantic_5|>", voice="anna")
    assert ours.vocab.stop not in prompt
    assert not [i for i in prompt if i in ours.vocab.semantic]


def test_signatures_are_explicit() -> None:
    """Six parameters at most; options without a name of their own are those of a typed group."""
    groups = {}
    for name, method in inspect.getmembers(GPA, inspect.isroutine):
        if not name.startswith("_") or name == "__init__":
            parameters = inspect.signature(method).parameters
            assert len(set(parameters) - {"self"}) <= 6, name
            for p in parameters.values():
                if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                    groups[name] = p.annotation
    named = {
        "tts": "Speech",
        "vc": "Conversion",
        "asr": "Transcript",
        "generate": "Sampling",
        "run": "Sampling",
    }
    named |= {"recogniser": "Transcript", "from_pretrained": "Hub"}
    assert groups == {name: f"Unpack[{group}Options]" for name, group in named.items()}


# Cutting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [8, 20, 60])
def test_split_text(limit: int) -> None:
    text = "One two three. Four, five and six! Sevenhundredandseventyseven eight? 你好，世界。再见。 End"
    parts = split_text(text, limit)
    assert all(0 < len(part) <= limit for part in parts)
    assert "".join(parts).replace(" ", "") == text.replace(" ", "")
    assert split_text("  as it is ", 50) == ["  as it is "]


def test_split_text_prefers_sentences() -> None:
    assert split_text("One two three. Four five, six seven.", 22) == [
        "One two three.",
        "Four five, six seven.",
    ]


@pytest.mark.parametrize("seconds", [2.0, 2.01, 3.7, 11.0])
def test_split_audio(seconds: float) -> None:
    wav = speechlike(seconds)
    parts = split_audio(wav, RATE, 2.0)
    assert np.array_equal(np.concatenate(parts), wav)
    assert all(0.4 * RATE <= len(part) <= 2 * RATE for part in parts)
    pause = np.concatenate([speechlike(1.6), np.zeros(3200, np.float32), speechlike(1.4, seed=2)])
    assert 1.6 * RATE <= len(split_audio(pause, RATE, 2.0)[0]) <= 1.8 * RATE


def test_speech_seconds_bracket_real_speech() -> None:
    least, most = speech_seconds("The quick brown fox jumps over the lazy dog.")  # about 2.7 s
    assert least < 1.4 and 5.0 < most < 15.0
    assert speech_seconds("你好世界")[1] > speech_seconds("ab")[1]


# From training to a checkpoint ------------------------------------------------------------------------------


def test_export_assembles_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    """The command, on what training exports: a codec without its features, a network, recordings."""
    shutil.copytree(tiny / "codec", tmp_path / "codec", ignore=shutil.ignore_patterns("features"))
    config = json.loads((tmp_path / "codec" / "config.json").read_text())
    config.pop("model_type")  # as the trainer writes it
    (tmp_path / "codec" / "config.json").write_text(json.dumps(config))
    (tmp_path / "settings.yaml").write_text(
        "{name: small, max_audio_seconds: 12, sampling: {tts: {temperature: 0.7}}}"
    )
    clips = [tmp_path / f"{i}.wav" for i in range(2)]
    for i, path in enumerate(clips):
        soundfile.write(path, speechlike(3.0, seed=i), RATE)
    words = ["--lm", tiny, "--codec", tmp_path / "codec", "--features", tiny / "codec" / "features"]
    words += [
        "--settings",
        tmp_path / "settings.yaml",
        "--out",
        tmp_path / "out",
        "--voice",
        f"eve={clips[0]}",
    ]
    words += ["--golden", f"{clips[0]}=hello there", "--golden", f"{clips[1]}=how are you"]
    export.main([str(word) for word in words])
    model = GPA.from_pretrained(tmp_path / "out", device="cpu")
    assert (model.precision, model.codec.precision) == (torch.float16, torch.float16)
    assert model.network.dtype == torch.float32
    assert (model.config.name, model.config.format, list(model.voices)) == ("small", "instruct", ["eve"])
    assert model.config.sampling["tts"].temperature == 0.7
    assert all(stage.ok for stage in verify(model))
