"""SpeechOp as users meet it: tasks, lengths, levels, windows, transcripts, files, errors; random weights."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import gpa
from conftest import speechlike
from gpa.compose import Above, Average, Guided, Plan, Term, given
from gpa.errors import AudioError, AudioWarning, CheckpointError, GenerationError, PromptError, UsageError
from gpa.models.speechop import checkpoint_speechop as files_speechop
from gpa.models.speechop import edit_speechop as edits
from gpa.models.speechop import processing_speechop
from gpa.models.speechop.diffusion_speechop import v_from_x
from gpa.models.speechop.modeling_speechop import Conditions, SpeechOpModel
from gpa.models.speechop.options_speechop import SpeechOptions
from gpa.models.speechop.pipeline_speechop import SpeechOp
from gpa.models.speechop.run_speechop import SEED_STEP, label, without
from gpa.models.speechop.windows_speechop import (
    LEVEL,
    Windows,
    join_words,
    pieces,
    quietest,
    share,
    standard_gain,
)
from gpa.models.speechop.words_speechop import recognised, spoken, units
from tiny_speechop import HOP, tiny_speechop

RATE = 16000
NOISY, MINE, OTHER = (speechlike(1.3, seed=s) for s in (0, 1, 2))
VOICE = (speechlike(2.2, seed=3), RATE)
WORDS = "The rain has stopped."


@pytest.fixture(scope="module")
def op() -> SpeechOp:
    return tiny_speechop()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Voice samples here are shorter than advised; tests that are about warnings ask for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)
        yield


def enhance(op: SpeechOp, *args: Any, audio: Any = (NOISY, RATE), **more: Any) -> Any:
    return op.enhance(audio, *args, **more)


def log_mel_distance(op: SpeechOp, mine: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference in nepers: unlike samples, deaf to phases, which drift with a pitch's last bit."""
    a, b = op.codec.model.decoder.log_mel(torch.from_numpy(np.stack([mine, theirs])))
    return float((a - b).abs().max())


class Calls:
    """Counts rows of the network's evaluations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: SpeechOpModel) -> None:
        self.rows: list[int] = []
        inner = model.denoise

        def denoise(z: Tensor, *rest: Any) -> Tensor:
            self.rows.append(len(z))
            return inner(z, *rest)

        monkeypatch.setattr(model, "denoise", denoise)


# Tasks ------------------------------------------------------------------------------------------------------


def test_enhancement_lasts_as_long_and_repeats_by_seed(op: SpeechOp) -> None:
    first, again, other = enhance(op, seed=3), enhance(op, seed=3), enhance(op, seed=4)
    assert first.wav.shape == NOISY.shape and first.wav.dtype == np.float32 and first.sample_rate == RATE
    assert np.isfinite(first.wav).all() and np.abs(first.wav).max() <= 1
    assert np.array_equal(first.wav, again.wav) and not np.allclose(first.wav, other.wav, atol=1e-4)
    assert first.transcript is None and first.task == "enhance" and first.seed == 3
    assert first.seconds == pytest.approx(1.3) and [p.text for p in first.parts] == [""]


def test_gamma_zero_is_no_transcript_and_evaluates_no_tts(
    op: SpeechOp, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch, op.model)
    plain = enhance(op)
    assert calls.rows == [2] * 6 and plain.evaluated == 12  # six levels, with and without the source
    off = enhance(op, WORDS, gamma=0)
    asked: list[int] = []
    unheard = enhance(op, "asr", gamma=0.0, recogniser=lambda wav: asked.append(1) or "never")
    assert np.array_equal(plain.wav, off.wav) and np.array_equal(plain.wav, unheard.wav) and not asked
    assert not any(name.startswith("tts") for name in off.evaluations) and off.transcript is None
    assert off.evaluations == plain.evaluations == {"enhance(source)": 6, "enhance()": 6}


def test_a_transcript_guides_and_is_counted(op: SpeechOp, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, op.model)
    guided = enhance(op, WORDS)
    # levels -12, -7.2, -2.4 are below the gate; guidance of the base is off while composing
    assert calls.rows == [1, 1, 1, 3, 3, 3]
    assert guided.evaluations == {"enhance(source)": 6, "tts(text)": 3, "tts()": 3}
    assert guided.evaluated == sum(calls.rows) and guided.transcript == "the rain has stopped."
    weaker = enhance(op, WORDS, gamma=0.5)
    assert not np.allclose(guided.wav, weaker.wav, atol=1e-4)
    assert np.array_equal(guided.wav, enhance(op, WORDS.upper(), gamma=op.config.compose.gamma).wav)


def test_a_recogniser_supplies_the_transcript(op: SpeechOp) -> None:
    heard: list[Any] = []

    def listen(wav: np.ndarray) -> str:
        heard.append((wav.dtype, len(wav)))
        return "  The Rain, has stopped "

    found = enhance(op, "asr", recogniser=listen)
    assert found.transcript == "the rain, has stopped" and heard == [(np.float32, len(NOISY))]
    same = enhance(op, "the rain, has stopped", gamma=op.config.compose.gamma_asr)
    assert np.array_equal(found.wav, same.wav)
    model = SimpleNamespace(asr=lambda audio: SimpleNamespace(text=listen(audio[0])))
    assert np.array_equal(enhance(op, "asr", recogniser=model).wav, found.wav)


def test_what_cannot_be_recognised_guides_nothing_and_is_said(op: SpeechOp) -> None:
    def deaf(wav: np.ndarray) -> str:
        raise GenerationError("no words were recognised")

    plain = enhance(op)
    for listen in (deaf, lambda wav: "", lambda wav: "...", lambda wav: "a" * 999, lambda wav: "слова"):
        with pytest.warns(AudioWarning, match="no text for 0.0 to 1.3 s"):
            assert np.array_equal(enhance(op, "asr", recogniser=listen).wav, plain.wav)


def test_a_voice_is_prepended_with_its_words(op: SpeechOp) -> None:
    told: list[str] = []
    inner = op._encode
    try:
        op._encode = lambda text: told.append(text) or inner(text)  # type: ignore[method-assign, func-returns-value]
        plain, mine = enhance(op), enhance(op, voice=VOICE)
        assert not np.allclose(plain.wav, mine.wav, atol=1e-4) and not told
        assert mine.evaluations == {"enhance(prompt, source)": 6, "enhance()": 6}
        guided = enhance(op, WORDS, voice=VOICE, voice_text="Hello there.")
        assert guided.evaluations["tts(prompt, text)"] == 3 and guided.evaluations["tts()"] == 3
        assert told == ["hello there. the rain has stopped."]
        enhance(op, WORDS, voice=VOICE, voice_text="")
        enhance(op, WORDS, voice=VOICE, recogniser=lambda wav: "hello")
        assert told[1:] == ["the rain has stopped.", "hello the rain has stopped."]
    finally:
        del op._encode


def test_the_null_may_keep_the_prompt() -> None:
    kept = tiny_speechop(null={"keep_prompt": True})
    guided = enhance(kept, WORDS, voice=VOICE, voice_text="")
    assert set(guided.evaluations) == {"enhance(prompt, source)", "tts(prompt, text)", "tts(prompt)"}


def test_extract_separate_match(op: SpeechOp) -> None:
    mixture = (NOISY + 0.5 * OTHER, RATE)
    alone = op.extract(mixture, VOICE)
    assert alone.evaluations == {"spk_sep(prompt, source)": 6, "spk_sep()": 6} and alone.task == "spk_sep"
    guided = op.extract(mixture, VOICE, WORDS)
    assert {"tts(text)", "tts()"} < set(guided.evaluations)  # the term has no voice
    other = op.extract(mixture, (OTHER, RATE))
    assert len(alone.wav) == len(NOISY) and not np.allclose(alone.wav, other.wav, atol=1e-4)

    speech, background = op.separate(mixture, WORDS)
    assert (speech.task, background.task) == ("iso_fg", "iso_bg")
    assert set(background.evaluations) == {"iso_bg(source)", "iso_bg()"} and "tts(text)" in speech.evaluations
    assert len(speech.wav) == len(background.wav) == len(NOISY) and background.transcript is None
    assert np.array_equal(background.wav, op.separate(mixture).background.wav)

    there = op.match((NOISY, RATE), VOICE)
    assert there.evaluations == {"match(prompt, source)": 6, "match()": 6} and len(there.wav) == len(NOISY)


def test_speech_lasts_as_its_text_and_rate_say(op: SpeechOp) -> None:
    text = "hello there you, how are you"  # 28 characters, 14 a second, 25 frames
    made = op.tts(text)
    assert len(made.wav) == 50 * HOP and made.evaluations == {"tts(text)": 6, "tts()": 6}
    told = "one two three four five six seven eight ni"  # 42 characters in the used part of the voice
    used = op._request("tts", {}, SpeechOptions).front.sample(VOICE, "")[0]
    rate = processing_speechop.speaking_rate(42, used.latents.shape[2], op.config)
    quick = op.tts(text, VOICE, voice_text=told)
    assert len(quick.wav) == round(25 * 28 / rate) * HOP and set(quick.evaluations) == {
        "tts(prompt, text)",
        "tts()",
    }
    assert len(op.tts(text, VOICE, voice_text="hm").wav) == 50 * HOP  # no plausible rate
    assert len(op.tts(text, VOICE, voice_text="").wav) == 50 * HOP


def test_long_speech_comes_in_parts_of_one_voice(op: SpeechOp) -> None:
    text = "hello there. how are you now? i am well, thank you."
    short = tiny_speechop()
    short.windows = Windows(2.0, 0.5)
    made = short.tts(text)
    parts = ["hello there.", "how are you", "now?", "i am well,", "thank you."]  # a second each, at 14
    frames = [round(25 * len(part) / 14) for part in parts]
    assert len(made.wav) == sum(frames) * HOP + 4 * int(0.2 * RATE)
    assert made.evaluations == {"tts(text)": 6, "tts()": 30, "tts(prompt, text)": 24}


def test_compose_runs_any_plan(op: SpeechOp) -> None:
    base = Guided("enhance", given(source="noisy"), scale=1.0)
    term = Term("tts", given(text="words"), gamma=1.5, gate=Above(-1.0))
    inputs: dict[str, Any] = {"texts": {"words": WORDS}, "sources": {"noisy": (NOISY, RATE)}}
    listed, planned = op.compose([base, term], **inputs), op.compose(Plan(base, (term,)), **inputs)
    assert np.array_equal(listed.wav, planned.wav)
    assert np.array_equal(listed.wav, enhance(op, WORDS).wav)
    half = op.compose([Average(base, Guided("tts", given(text="words")), 0.5)], **inputs)
    assert half.task == "enhance" and set(half.evaluations) == {"enhance(source)", "tts(text)"}
    two = [Guided("match", given(source="a", prompt="v")), Term("iso_fg", given(source="b"), gamma=0.3)]
    many = op.compose(two, sources={"a": (MINE, RATE), "b": (NOISY, RATE)}, prompts={"v": VOICE})
    assert len(many.wav) == len(MINE) and many.task == "match" and many.transcript is None
    assert op.compose([Guided("tts", given(text="t"))], texts={"t": "hi"}, seconds=0.5).seconds == 0.5


def test_compose_says_what_does_not_fit(op: SpeechOp) -> None:
    base = Guided("enhance", given(source="noisy"))
    with pytest.raises(UsageError, match="'noisy'.*clean"):
        op.compose([base], sources={"clean": (NOISY, RATE)})
    with pytest.raises(UsageError, match="different lengths.*1.30 s.*0.50 s"):
        op.compose([base], sources={"noisy": (NOISY, RATE), "other": (NOISY[: RATE // 2], RATE)})
    with pytest.raises(UsageError, match="without a source"):
        op.compose([Guided("tts")])
    for plan in ([], [Term("tts", given(text="w"))], [base, base]):
        with pytest.raises(UsageError, match="a base"):
            op.compose(plan, sources={"noisy": (NOISY, RATE)})
    with pytest.raises(UsageError, match="'denoise'; it knows tts, enhance"):
        op.compose([Guided("denoise")], seconds=1.0)


# Editing ----------------------------------------------------------------------------------------------------


def test_an_edit_leaves_the_rest_alone(op: SpeechOp) -> None:
    made = op.edit((NOISY, RATE), (0.4, 0.8), "on friday", before="we met", after="")
    new = round(25 * 9 / 14)  # the usual rate: six characters in 0.9 s of context are none
    assert len(made.wav) == len(NOISY) - 10 * HOP + new * HOP
    first, last = 10 * HOP, 20 * HOP
    assert np.array_equal(made.wav[: first - HOP], NOISY[: first - HOP])
    tail = len(NOISY) - last - HOP
    assert np.array_equal(made.wav[-tail:], NOISY[-tail:])
    assert made.transcript == "we met on friday" and made.parts[0].begin == pytest.approx(0.4)
    assert set(made.evaluations) == {"tts(text)", "tts()"}
    assert np.array_equal(
        made.wav, op.edit((NOISY, RATE), (0.4, 0.8), "On Friday", before="we met", after="").wav
    )


def test_words_around_an_edit_are_recognised(op: SpeechOp) -> None:
    lengths: list[int] = []

    def listen(wav: np.ndarray) -> str:
        lengths.append(len(wav))
        return f"part {'abc'[len(lengths)]}"

    made = op.edit((NOISY, RATE), (0.4, 0.8), "on friday", recogniser=listen)
    assert made.transcript == "part b on friday part c"
    assert lengths == [10 * HOP, len(NOISY) - 20 * HOP]
    start = op.edit((NOISY, RATE), (0.0, 0.5), "well", after="now")  # nothing before: nobody is asked
    end = op.edit((NOISY, RATE), (0.8, 1.3), "well", before="so")
    assert (start.transcript, end.transcript) == ("well now", "so well")
    inserted = op.edit((NOISY, RATE), (0.6, 0.6), "oh", before="", after="")
    assert len(inserted.wav) == len(NOISY) + round(25 * 2 / 14) * HOP


@pytest.mark.parametrize(
    "span, message",
    [
        ((0.8, 0.4), "reversed"),
        ((-0.1, 0.4), "lasts 1.30 s"),
        ((0.5, 1.6), "lasts 1.30 s"),
        ((0.1, float("nan")), "two numbers"),
        ((0.1,), "two numbers"),
    ],
)
def test_spans_that_are_none(op: SpeechOp, span: tuple[float, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        op.edit((NOISY, RATE), span, "hello", before="", after="")


def test_an_edit_has_to_fit_a_window(op: SpeechOp) -> None:
    with pytest.raises(PromptError, match="shorter pieces"):
        op.edit((NOISY, RATE), (0.2, 0.5), "very long words " * 10, before="", after="")


def test_context_lies_around_the_span() -> None:
    assert edits.place((4.0, 5.0), 10.0, 250, 25, 50) == edits.Place(75, 100, 125, 150)
    assert edits.place((0.2, 0.3), 10.0, 250, 25, 50) == edits.Place(0, 5, 8, 53)
    assert edits.place((9.9, 10.0), 10.0, 250, 25, 50) == edits.Place(197, 247, 250, 250)
    assert edits.place((0.0, 10.05), 10.0, 250, 25, 50) == edits.Place(0, 0, 250, 250)


# Windows ----------------------------------------------------------------------------------------------------


def faithful(op: SpeechOp, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network then predicts the source itself, which windows must not change."""
    monkeypatch.setattr(op.model, "condition", lambda given: given)
    monkeypatch.setattr("gpa.models.speechop.run_speechop.join", lambda contexts: contexts[0])

    def denoise(z: Tensor, lam: Tensor, context: Conditions, clean: Any = None) -> Tensor:
        source = torch.zeros_like(z) if context.source is None else context.source
        return v_from_x(z, source, lam)

    monkeypatch.setattr(op.model, "denoise", denoise)


def windowed(seconds: float = 1.0, overlap: float = 0.25, **changes: Any) -> SpeechOp:
    op = tiny_speechop(compose={"guidance_s2s": 1.0}, **changes)
    op.windows = Windows(seconds, overlap)
    return op


def test_windows_agree_where_they_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    op, long = windowed(), (speechlike(4.0), RATE)
    whole = tiny_speechop(compose={"guidance_s2s": 1.0})
    made, once = op.enhance(long), None
    assert len(made.wav) == 4 * RATE and len(made.parts) == 5
    assert made.evaluations == {"enhance(source)": 5 * 6}
    with monkeypatch.context() as patch:
        faithful(op, patch)
        faithful(whole, patch)
        made, once = op.enhance(long), whole.enhance(long)
    np.testing.assert_allclose(made.wav, once.wav, atol=2e-4)  # no trace of the cuts


def test_no_jump_at_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    op = windowed()
    kept: list[Tensor] = []
    inner = op.codec.decode
    monkeypatch.setattr(op.codec, "decode", lambda z: kept.append(z) or inner(z))
    for seed in range(3):
        op.enhance((speechlike(4.0), RATE), seed=seed)
    cuts = op.windows.cut(100, 25)
    steps = torch.stack([(z[0, :, 1:] - z[0, :, :-1]).square().sum(0).sqrt() for z in kept])  # (3, T - 1)
    seams = [before[1] - 1 for before in cuts[:-1]]  # between the last known frame and the first new one
    inside = [i for i in range(99) if i not in seams]
    assert steps[:, seams].max() <= steps[:, inside].max()
    assert steps[:, seams].mean() <= 1.5 * steps[:, inside].mean()


def test_known_frames_are_kept_and_heard_by_the_next_window(monkeypatch: pytest.MonkeyPatch) -> None:
    op, seen = windowed(), []
    from gpa.models.speechop import run_speechop

    inner = run_speechop.sample

    def sample(model: Any, plan: Plan, inputs: Any, seeds: list[int], settings: Any) -> Tensor:
        out = inner(model, plan, inputs, seeds, settings)
        seen.append((inputs, out, seeds))
        return out

    monkeypatch.setattr(run_speechop, "sample", sample)
    op.enhance((speechlike(2.0), RATE), seed=7)
    cuts = op.windows.cut(50, 25)
    assert [seeds for *_, seeds in seen] == [[7 + i * SEED_STEP] for i in range(len(cuts))]
    assert seen[0][0].known is None
    for (_, first, _), (inputs, second, _), (_, stop), (start, _) in zip(
        seen, seen[1:], cuts, cuts[1:], strict=False
    ):
        shared = stop - start
        assert shared >= 6 and inputs.known.mask[0].tolist() == [True] * shared + [False] * (
            inputs.mask.shape[1] - shared
        )
        assert torch.equal(second[..., :shared], first[..., -shared:])
        assert torch.equal(inputs.sources["source"][..., :shared], first[..., -shared:])  # as in training


@pytest.mark.parametrize("frames", [1, 2, 24, 25, 26, 44, 45, 100, 1000, 1001])
def test_windows_cover_everything_evenly(frames: int) -> None:
    cuts = Windows(1.0, 0.2).cut(frames, 25)
    assert cuts[0][0] == 0 and cuts[-1][1] == frames and all(0 < b - a <= 25 for a, b in cuts)
    assert all(b[1] - a[0] >= 5 for a, b in zip(cuts[1:], cuts, strict=False))
    assert len({b - a for a, b in cuts}) == 1 and len(cuts) == (1 if frames <= 25 else -(-(frames - 5) // 20))


def test_a_given_transcript_is_shared_out_with_a_warning() -> None:
    op = windowed()
    text = "one two three four five six seven eight"
    with pytest.warns(AudioWarning, match="0.0-0.8.*a guess.*list"):
        made = op.enhance((speechlike(2.0), RATE), text)
    assert made.transcript == text and len(made.parts) == 3
    assert made.parts[0].text.startswith("one two") and made.parts[-1].text.endswith("seven eight")
    with pytest.warns(AudioWarning):
        said = op.compose([Guided("tts", given(text="w"))], texts={"w": text}, seconds=2.0)
    assert said.transcript == text and len(said.parts) == 3
    listed = op.enhance((speechlike(2.0), RATE), [part.text for part in made.parts])
    assert np.array_equal(listed.wav, made.wav)
    with pytest.raises(UsageError, match="2 transcripts for 3 windows.*0.0-0.8, 0.6-"):
        op.enhance((speechlike(2.0), RATE), ["one", "two"])


def test_each_window_is_recognised_for_itself() -> None:
    op, lengths = windowed(), []
    answers = iter(["one two", "two three", ""])

    def listen(wav: np.ndarray) -> str:
        lengths.append(len(wav))
        return next(answers)

    with pytest.warns(AudioWarning, match="no text for 1.2 to 2.0 s"):
        made = op.enhance((speechlike(2.0), RATE), "asr", recogniser=listen)
    assert [p.text for p in made.parts] == ["one two", "two three", ""]
    assert made.transcript == "one two three" and len(lengths) == 3
    assert made.evaluations["tts(text)"] == 2 * 3  # the third window follows no text
    assert made.evaluations["enhance(source)"] == 3 * 6


def test_progress_is_told() -> None:
    op, seen = windowed(), []
    op.progress = lambda done, total: seen.append((done, total))
    op.enhance((speechlike(2.0), RATE), steps=2)
    assert seen == [(i, 9) for i in range(1, 10)]


# Words and levels -------------------------------------------------------------------------------------------


def test_words_are_shared_by_speaking_time() -> None:
    wav = np.zeros(RATE * 4, np.float32)
    wav[:RATE] = wav[3 * RATE :] = 0.3  # two seconds of pause in the middle
    assert share("aa bb cc dd", [(0, 1.5), (1.0, 4.0)], wav, RATE) == ["aa bb", "cc dd"]
    assert share("aa bb cc dd", [(0, 4.0)], wav, RATE) == ["aa bb cc dd"]
    assert share("aa bb cc dd", [(0, 0.5), (0.3, 3.5), (3.5, 4)], wav, RATE) == ["aa", "bb cc", "dd"]
    assert share("aa bb", [(0, 2), (2, 4)], np.zeros(RATE * 4, np.float32), RATE)  # silence: somewhere
    assert join_words(["a b c", "b c d", "", "d d e"]) == "a b c d d e"
    assert pieces("one two. three, four five", 12) == ["one two.", "three,", "four five"]
    assert pieces("short", 99) == ["short"] and pieces("toolongaword", 3) == ["toolongaword"]


def test_sources_are_brought_to_a_standard_level(op: SpeechOp) -> None:
    for factor in (0.01, 1.0, 1.5):
        gain = standard_gain(NOISY * factor, RATE)
        assert gain * factor == pytest.approx(standard_gain(NOISY, RATE), rel=1e-3)
    powers = (
        np.square(NOISY[: len(NOISY) // 320 * 320]).reshape(-1, 320).mean(1) * standard_gain(NOISY, RATE) ** 2
    )
    assert np.sqrt(powers[powers > powers.max() * 1e-4].mean()) == pytest.approx(LEVEL, rel=0.02)
    click = np.zeros(RATE, np.float32)
    click[100] = 0.5
    assert standard_gain(click, RATE) == 2.0 and standard_gain(0 * click, RATE) == 1.0
    quiet_, loud = enhance(op, audio=(NOISY * 0.1, RATE)).wav, enhance(op, audio=(NOISY, RATE)).wav
    assert log_mel_distance(op, quiet_ * 10, loud) < 1e-2
    assert log_mel_distance(op, quiet_ * 9, loud) > 5e-2


def test_quietest_place() -> None:
    wav = np.full(4 * RATE, 0.2, np.float32)
    wav[int(2.4 * RATE) : int(2.5 * RATE)] = 0
    assert quietest(wav, RATE, 2.0, 3.0) == int(2.4 * RATE) and quietest(wav[:RATE], RATE, 2.0, 3.0) == RATE


def test_units_of_text() -> None:
    config = tiny_speechop().config
    assert units("a b.", config) == 4
    assert units("hello there", tiny_speechop(tts={"unit": "phonemes"}).config) == round(0.85 * 10)


# Files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(op: SpeechOp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return op.save_pretrained(tmp_path_factory.mktemp("saved") / "model")


def test_a_saved_model_makes_the_same(op: SpeechOp, saved: Path, tmp_path: Path) -> None:
    assert {p.name for p in saved.iterdir()} == {"speechop.json", "model.safetensors", "latent"}
    loaded = SpeechOp.from_pretrained(saved, device="cpu")
    for mine, theirs in ((loaded.model, op.model), (loaded.codec.model, op.codec.model)):
        torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert log_mel_distance(op, enhance(loaded, WORDS).wav, enhance(op, WORDS).wav) < 1e-3
    assert loaded.config == op.config and loaded.path == saved and str(loaded.device) == "cpu"
    half = loaded.save_pretrained(tmp_path / "half", torch.bfloat16)
    again = SpeechOp.from_pretrained(half, device="cpu")
    assert again.precision == torch.bfloat16 and again.model.into.weight.dtype == torch.float32
    assert again.codec.fingerprint() == op.codec.fingerprint()
    assert (half / "model.safetensors").stat().st_size < 0.7 * (saved / "model.safetensors").stat().st_size
    with pytest.raises(UsageError, match="overwrite"):
        again.save_pretrained(half)
    again.save_pretrained(half, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["half"]


@pytest.mark.parametrize("lost", ["speechop.json", "model.safetensors", "latent", "latent/config.json"])
def test_a_missing_part_is_named(saved: Path, tmp_path: Path, lost: str) -> None:
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    shutil.rmtree(copy / lost) if (copy / lost).is_dir() else (copy / lost).unlink()
    with pytest.raises(CheckpointError, match=lost.split("/")[-1]):
        SpeechOp.from_pretrained(copy)


def test_parts_that_do_not_fit(op: SpeechOp, saved: Path, tmp_path: Path, tiny: Path) -> None:
    copy = Path(shutil.copytree(saved, tmp_path / "copy"))
    tiny_speechop(dit={"layers": 1}).config.write(copy)
    with pytest.raises(CheckpointError, match="unexpected"):
        SpeechOp.from_pretrained(copy)
    (copy / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        SpeechOp.from_pretrained(copy)
    other = tiny_speechop
    with pytest.raises(CheckpointError, match="do not belong together"):
        other(latent={"channels": 5})
    with pytest.raises(CheckpointError, match="GPA model"):
        SpeechOp.from_pretrained(tiny)
    with pytest.raises(CheckpointError, match="nowhere"):
        SpeechOp.from_pretrained("nowhere")


def test_a_shipped_name_is_found(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, tmp_path / "assets" / "speechop-mini")
    monkeypatch.setattr(files_speechop, "SHIPPED", tmp_path / "assets")
    assert files_speechop.find("speechop-mini") == tmp_path / "assets" / "speechop-mini"
    with pytest.raises(CheckpointError, match="shipped models: speechop-mini"):
        files_speechop.find(tmp_path)


def test_the_public_class_has_a_recogniser(saved: Path, tiny: Path) -> None:
    op = gpa.SpeechOp.from_pretrained(saved, device="cpu", recogniser=str(tiny))
    assert op.recogniser == str(tiny)  # loaded when it is needed
    listener = op._listener(None)
    assert isinstance(listener, gpa.GPA) and op._listener(None) is listener
    text = recognised(listener, NOISY, RATE, "all")
    assert isinstance(text, str) and isinstance(op.enhance((NOISY, RATE), "asr"), gpa.Sound)


# Bad input --------------------------------------------------------------------------------------------------


def test_audio_of_other_rates_and_channels(op: SpeechOp, tmp_path: Path) -> None:
    fast = speechlike(1.0, rate=44100)
    soundfile.write(tmp_path / "stereo.wav", np.stack([fast, fast], 1), 44100)
    assert op.enhance(tmp_path / "stereo.wav").wav.shape == (RATE,)
    stereo = op.enhance((np.stack([NOISY, NOISY]), RATE))
    assert np.array_equal(stereo.wav, enhance(op).wav)
    stereo.save(tmp_path / "out.flac")
    assert soundfile.info(tmp_path / "out.flac").frames == len(NOISY)


def test_unusable_audio(op: SpeechOp, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.wav", NOISY, RATE)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:9000])
    (tmp_path / "empty.wav").write_bytes(b"")
    for audio, message in (
        (tmp_path / "cut.wav", "truncated"),
        (tmp_path / "empty.wav", "empty"),
        (tmp_path / "none.wav", "does not exist"),
        ((np.zeros(0, np.float32), RATE), "empty"),
        ((np.where(NOISY > 0.3, np.nan, NOISY), RATE), "NaN"),
        (NOISY, "rate"),
    ):
        with pytest.raises(AudioError, match=message):
            op.enhance(audio)
    with pytest.raises(AudioError, match="does not exist"):
        op.extract((NOISY, RATE), tmp_path / "none.wav")


def test_silence_warns_and_stays_finite(op: SpeechOp) -> None:
    with pytest.warns(AudioWarning, match="the recording is silent"):
        made = op.enhance((np.zeros(RATE, np.float32), RATE))
    assert np.isfinite(made.wav).all() and len(made.wav) == RATE


@pytest.mark.parametrize("gamma", [-1, float("nan"), float("inf"), "1", True])
def test_gamma_is_a_strength(op: SpeechOp, gamma: Any) -> None:
    with pytest.raises(UsageError, match="gamma="):
        enhance(op, WORDS, gamma=gamma)


@pytest.mark.parametrize("more", [{"steps": 0}, {"steps": -3}, {"steps": 1.5}, {"seed": -1}, {"seed": "a"}])
def test_settings_are_whole_numbers(op: SpeechOp, more: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(more))}="):
        enhance(op, **more)


def test_steps_override(op: SpeechOp) -> None:
    assert enhance(op, steps=1).evaluations == {"enhance(source)": 2, "enhance()": 2}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no words"),
        ("  ... !", "no words"),
        ("добрый день", "not trained on: б д е й н о р ы ь.*English"),
        ("good 日本", "not trained on: 日 本"),
        ("word " * 20, "99 characters for 1.3 s, over 40"),
    ],
)
def test_transcripts_that_cannot_be(op: SpeechOp, text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        enhance(op, text)
    if "over" not in message:
        with pytest.raises(PromptError, match=message):
            op.tts(text)


def test_accents_and_numbers_are_read() -> None:
    assert spoken("Café, 3 o’clock – naïve!") == spoken("cafe, three o'clock - naive!")


def test_recognisers_that_are_none(op: SpeechOp) -> None:
    with pytest.raises(UsageError, match="no recogniser"):
        enhance(op, "asr")
    with pytest.raises(UsageError, match="no recogniser"):
        op.tts("hello", VOICE)
    for bad in (5, {"asr": 1}):
        with pytest.raises(UsageError, match="recogniser="):
            enhance(op, "asr", recogniser=bad)
    with pytest.raises(UsageError, match="must return text"):
        enhance(op, "asr", recogniser=lambda wav: 5)
    with pytest.raises(UsageError, match="give a string"):
        op.tts(5)  # type: ignore[arg-type]


def test_a_model_without_a_task_says_so() -> None:
    few = tiny_speechop(tasks={"names": ("tts", "enhance"), "weights": {"enhance": 1.0}})
    assert few.enhance((NOISY, RATE)).task == "enhance"
    for call in (
        lambda: few.extract((NOISY, RATE), VOICE),
        lambda: few.separate((NOISY, RATE)),
        lambda: few.match((NOISY, RATE), VOICE),
    ):
        with pytest.raises(UsageError, match="no task.*it knows tts, enhance"):
            call()


@pytest.mark.parametrize("seconds, overlap", [(0.5, 0.1), (8, 5), (8, -1), (float("nan"), 1)])
def test_windows_that_cannot_be(seconds: float, overlap: float) -> None:
    with pytest.raises(UsageError, match="windows of"):
        Windows(seconds, overlap)


def test_plans_without_a_text() -> None:
    base, text = Guided("enhance", given(source="s", text="w")), Term("tts", given(text="w"))
    bare = without(Plan(base, (text, Term("tts", given(text="x")))), ["w"])
    assert bare.base == Guided("enhance", given(source="s")) and [t.given for t in bare.terms] == [
        given(text="x")
    ]
    average = without(Plan(Average(base, base, 0.5)), ["w"])
    assert isinstance(average.base, Average) and average.base.second.given == given(source="s")
    assert label(next(iter(bare.base.weights(0)))) == "enhance(source)"
