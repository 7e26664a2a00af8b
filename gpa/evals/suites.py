"""The suites of our own model: what is asked of it for each case, and how many cases a run takes.

The first k cases of a run over n are those of a run over k, so a quick run is the beginning of a full one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from tqdm import tqdm

from gpa.errors import UsageError
from gpa.evals import baselines, instructed, items
from gpa.evals.measurement import SAMPLE_RATE, Bench, Case, Made, Make, Suite, measure

if TYPE_CHECKING:
    from gpa.codec.base import AudioTokens, CodecSpec
    from gpa.evals.report import Item

T = TypeVar("T")
Mode = Literal["lm", "codec"]


def clips(bench: Bench, n: int) -> list[Case]:
    """Held-out recordings, each in its speaker's voice."""
    return [_of_clip(row) for row in items.dev_clips(bench.manifest, n, bench.seed, bench.split)]


def _of_clip(row: items.Row) -> Case:
    return Case(row["id"], row["text"], row, None, str(row["speaker"]), (row["id"],), _labels(row))


def _labels(row: items.Row) -> dict[str, str]:
    return {"speaker": str(row["speaker"]), "corpus": str(row.get("corpus", ""))}


def noises(bench: Bench, n: int) -> list[Case]:
    """Sounds in which nobody speaks."""
    folder = bench.noise or bench.data / "noise"
    return [Case(row["id"], "", row) for row in items.noises(folder, n, bench.seed)]


def lacking(name: str, bench: Bench) -> str:
    """Why a suite cannot run, be it a program or sounds that are absent, or the model; "" if it can."""
    folder = bench.noise or bench.data / "noise"
    if name == INSTRUCTIONS and bench.model is not None and not bench.model.config.instructed:
        return "the model has not learnt to follow instructions alone (instructions.free of a recipe)"
    if name == NOISE and not folder.is_dir():
        return f"{folder} is no folder: pass --noise DIR with sounds without speech"
    return SUITES[name].missing()


def sentences(bench: Bench, n: int) -> list[items.Sentence]:
    """Sentences that nothing was trained on."""
    seen = [*items.training_texts(bench.manifest), *bench.seen]
    return items.unseen_sentences(bench.data, seen, n, bench.seed)


def spoken(bench: Bench, n: int) -> list[Case]:
    """Unseen sentences in the shipped voices, in turn."""
    if not bench.voices:
        raise UsageError("the tts suite needs voices: pass --voices with names, voice files or recordings")
    found = []
    for number, sentence in enumerate(sentences(bench, n)):
        voice = str(bench.voices[number % len(bench.voices)])
        known = items.speaker_of_voice(bench.manifest, voice)
        speaker = bench.speakers.get(voice, known)
        found.append(Case(sentence.id, sentence.text, None, voice, speaker, (), {"voice": voice}))
    return found


def spoken_unvoiced(bench: Bench, n: int) -> list[Case]:
    """The same sentences for a baseline with a voice of its own."""
    return [Case(sentence.id, sentence.text) for sentence in sentences(bench, n)]


def spoken_from_clips(bench: Bench, n: int) -> list[Case]:
    """The same sentences, each in the voice of a held-out clip; judges know the speaker by other clips."""
    texts = sentences(bench, n)
    voices = items.voice_clips(bench.manifest, len(texts), bench.seed, bench.split)
    found = []
    for sentence, row in zip(texts, voices, strict=True):
        labels = {"voice": str(row["id"]), **_labels(row)}
        path, speaker = bench.path(row), str(row["speaker"])
        found.append(Case(sentence.id, sentence.text, None, path, speaker, (row["id"],), labels))
    return found


def conversions(bench: Bench, n: int) -> list[Case]:
    """Held-out recordings, each to be said in the voice of another speaker's clip."""
    found = []
    for pair in items.pairs(bench.manifest, n, bench.seed, bench.split):
        source, target = pair
        labels = {**_labels(source), "target": str(target["speaker"])}
        both, speaker = (source["id"], target["id"]), str(target["speaker"])
        found.append(Case(pair.id, source["text"], source, bench.path(target), speaker, both, labels))
    return found


def brief_conversions(bench: Bench, n: int) -> list[Case]:
    """Those of recordings and texts that the model takes in one pass: longer ones `run` refuses."""
    limits = bench.need_model().config
    seconds, chars = limits.max_audio_seconds, limits.max_text_chars
    found = [
        case
        for case in conversions(bench, 0)
        if float((case.source or {})["duration"]) <= seconds and len(case.text) <= chars
    ]
    if not found:
        raise UsageError(
            f"split {bench.split!r} has no clip of at most {seconds:g} s and {chars} characters, the most "
            "that the model takes in one pass: choose another --split"
        )
    return found[: n or None]


def _itself(bench: Bench, case: Case, wav: np.ndarray) -> Made:
    return Made(wav)


def _resynthesise(bench: Bench, case: Case, wav: np.ndarray) -> Made:
    codec = bench.need_codec()
    tokens = codec.encode((wav, SAMPLE_RATE))
    made = codec.decode(tokens)
    bits = bits_per_second(codec.spec, tokens)
    return Made(made, codec.spec.sample_rate, values={"bits_per_second": round(bits, 1)})


def bits_per_second(spec: CodecSpec, tokens: AudioTokens) -> float:
    """Bits of a clip's codes and timbre over its seconds, all values taken as equally likely."""
    books, frames = tokens.codes.shape
    constant = spec.n_global * math.log2(spec.global_size) if spec.n_global else 0.0
    constant += tokens.timbre.bits if tokens.timbre else 0.0
    return (books * frames * math.log2(spec.codebook_size) + constant) / (frames / spec.frame_rate)


def _speaker(*, best: bool = False) -> Make:
    """Says a text once, or as often as the checkpoint says and keeps the best."""

    def speak(bench: Bench, case: Case, wav: np.ndarray) -> Made:
        model = bench.need_model()
        options: dict[str, Any] = {"best_of": model.processor.takes({})} if best else {}
        speech = model.tts(case.text, voice=case.voice, seed=bench.seed, **options)
        return Made(speech.wav, speech.sample_rate, stopped=speech.finish_reason == "stop")

    return speak


def _recognise(bench: Bench, case: Case, wav: np.ndarray) -> Made:
    found = bench.need_model().asr((wav, SAMPLE_RATE))
    return Made(text=found.text, stopped=found.finish_reason == "stop")


def _overhear(bench: Bench, case: Case, wav: np.ndarray) -> Made:
    return Made(text=bench.need_model().asr((wav, SAMPLE_RATE)).text)


def _converter(mode: Mode) -> Make:
    def convert(bench: Bench, case: Case, wav: np.ndarray) -> Made:
        options: dict[str, Any] = {"mode": mode} if mode == "codec" else {"mode": mode, "seed": bench.seed}
        speech = bench.need_model().vc((wav, SAMPLE_RATE), voice=case.voice, **options)
        stopped = speech.finish_reason == "stop" if mode == "lm" else None
        return Made(speech.wav, speech.sample_rate, stopped=stopped)

    return convert


NOISE = "asr-noise"  # needs no speech: a folder of one's own does
MINI: dict[str, Suite] = {
    "floor": Suite("the recordings themselves", clips, _itself),
    "codec": Suite("recordings encoded and decoded", clips, _resynthesise, "codec"),
    "tts": Suite("unseen sentences in the shipped voices", spoken, _speaker(), "model", stops=True),
    "tts-clip": Suite(
        "unseen sentences in the voice of a clip", spoken_from_clips, _speaker(), "model", stops=True
    ),
    "asr": Suite(
        "recordings written down by the model", clips, _recognise, "model", stops=True, reads=True
    ),
    NOISE: Suite("sounds without speech: words invented a minute", noises, _overhear, "model", reads=True),
    "vc-lm": Suite(
        "recordings in another voice, by the language model", conversions, _converter("lm"), "model",
        stops=True, converts=True,
    ),
    "vc-codec": Suite(
        "the same, only the voice codes exchanged", conversions, _converter("codec"), "model", converts=True
    ),
}  # fmt: skip
INSTRUCTIONS = "instructions"  # not for every model
FURTHER: dict[str, Suite] = {
    INSTRUCTIONS: Suite(
        "instructions in held-out wordings, without a task's token", brief_conversions, instructed.follow,
        "model", reads=True,
    ),
    "tts-best": Suite(
        "the sentences of tts, of several takes the best", spoken, _speaker(best=True), "model", stops=True
    ),
    "tts-clip-best": Suite(
        "those of tts-clip likewise", spoken_from_clips, _speaker(best=True), "model", stops=True
    ),
}  # fmt: skip
BASELINES: dict[str, Suite] = {
    "tts-espeak-ng": baselines.suite(baselines.ESPEAK, spoken_unvoiced),
    "tts-flite": baselines.suite(baselines.FLITE, spoken_unvoiced),
    "asr-pocketsphinx": baselines.suite(baselines.SPHINX, clips),
    "codec-opus": baselines.suite(baselines.OPUS, clips),
    "codec-codec2": baselines.suite(baselines.CODEC2, clips),
}
SUITES = MINI | FURTHER | BASELINES
# Items of a full run, and of a quick one. Sentences are short, so there are more of them.
FULL = dict.fromkeys(SUITES, 40) | {"asr": 60, "asr-pocketsphinx": 60, NOISE: 100}
FULL |= dict.fromkeys(("tts", "tts-clip", "tts-best", "tts-clip-best", "tts-espeak-ng", "tts-flite"), 80)
QUICK = dict.fromkeys(SUITES, 4)
# Which suites are about the same cases, so that a report can say which of two is better: ours, the peer.
PEERS = (
    ("codec", "codec-opus"),
    ("codec", "codec-codec2"),
    ("tts", "tts-espeak-ng"),
    ("tts", "tts-flite"),
    ("tts-best", "tts"),
    ("tts-best", "tts-flite"),
    ("tts-clip-best", "tts-clip"),
    ("asr", "asr-pocketsphinx"),
    ("vc-lm", "vc-codec"),
)


def run(name: str, bench: Bench) -> list[Item]:
    """One suite over `bench.n` cases, in memory; UsageError for what it needs and has not."""
    suite = SUITES[name]
    check(name, bench)
    return [measure(name, suite, bench, case) for case in progress(suite.cases(bench, bench.n), name)]


def check(name: str, bench: Bench) -> None:
    """UsageError unless the bench has what a suite needs."""
    if SUITES[name].needs == "model":
        bench.need_model()
    elif SUITES[name].needs == "codec":
        bench.need_codec()


def progress(things: Sequence[T], name: str) -> Iterator[T]:
    """A bar on stderr, where that is a terminal."""
    return iter(tqdm(things, desc=name, dynamic_ncols=True, disable=None))
