"""The suites: what is made or recognised for each item, and what the judges say about it.

A suite is a function of a `Bench`, which holds the model, the data and the judges; it returns one `Item`
per chosen clip, sentence or pair. A typed error of the model is a failed item, any other is a bug and stops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from tqdm import tqdm

from gpa import audio
from gpa.codec.base import TokenCodec
from gpa.errors import GPAError, UsageError
from gpa.evals import items, wer
from gpa.evals.judges import RECOGNISER, SAMPLE_RATE, Recogniser, versions
from gpa.evals.report import Item, score
from gpa.evals.speaker import SPEAKER_JUDGE, SpeakerJudge, cosine

T = TypeVar("T")
Mode = Literal["lm", "codec"]


@dataclass
class Bench:
    """What suites share. `model` is a GPA or None; `codec` is any TokenCodec (by default the model's).

    `voices` are names of shipped voices for `tts`; `seen` are further texts the model was trained on.
    """

    data: Path
    model: Any = None
    codec: TokenCodec | None = None
    voices: Sequence[str] = ()
    seen: Sequence[str] = ()
    n: int = 50
    seed: int = 0
    split: str = "dev"
    threads: int = 1
    wavs: Path | None = None  # where to keep what was made

    @cached_property
    def manifest(self) -> list[items.Row]:
        """Rows of the data's manifest."""
        return items.read_manifest(self.data)

    @cached_property
    def recogniser(self) -> Recogniser:
        """The word judge."""
        return Recogniser(self.threads)

    @cached_property
    def speaker(self) -> SpeakerJudge:
        """The voice judge."""
        return SpeakerJudge()

    @cached_property
    def _voices_known(self) -> dict[tuple[str, ...], np.ndarray]:
        return {}

    def clip(self, row: items.Row) -> np.ndarray:
        """A clip of the manifest, float32 (S,) at 16 kHz."""
        return audio.load(self.path(row), SAMPLE_RATE)

    def path(self, row: items.Row) -> Path:
        """Where a clip is."""
        return self.data / "speech" / row["path"]

    def clips(self) -> list[items.Row]:
        """The held-out clips of this run."""
        return items.dev_clips(self.manifest, self.n, self.seed, self.split)

    def voice_of(self, row: items.Row, pair: items.Pair) -> np.ndarray:
        """The judge's idea of a row's speaker, from clips other than the two of the pair."""
        return self.speaker_of(row["speaker"], (pair.source["id"], pair.target["id"]))

    def speaker_of(self, speaker: str, without: Sequence[str] = ()) -> np.ndarray:
        """The judge's idea of a speaker of the manifest, from its clips but those."""
        rows = items.enrolment(self.manifest, speaker, without)
        key = tuple(r["id"] for r in rows)
        if key not in self._voices_known:
            self._voices_known[key] = self.speaker.enrol([self.clip(r) for r in rows])
        return self._voices_known[key]

    def hear(self, item: Item, wav: np.ndarray, rate: int, suite: str) -> np.ndarray:
        """Let the word judge hear (S,) at `rate`; fills the item and returns the wav at 16 kHz."""
        item.audio_seconds = len(wav) / rate
        if self.wavs is not None:
            self.wavs.mkdir(parents=True, exist_ok=True)
            audio.save(self.wavs / f"{suite}-{item.id.replace('>', '-to-')}.wav", wav, rate)
        heard = wav if rate == SAMPLE_RATE else audio.load((wav, rate), SAMPLE_RATE)
        item.heard = self.recogniser(heard)
        return heard

    def need_model(self) -> Any:
        """The model, or UsageError."""
        if self.model is None:
            raise UsageError("this suite needs a model: pass --model")
        return self.model

    def need_codec(self) -> TokenCodec:
        """The codec of the suite `codec`, or UsageError."""
        if self.codec is not None:
            return self.codec
        if self.model is None:
            raise UsageError("the codec suite needs --codec or --model")
        return self.model.codec


def timed(item: Item, make: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
    """What `make` returns, its time noted; None and the reason noted where the model refuses or fails."""
    begin = time.perf_counter()
    try:
        return make(*args, **kwargs)
    except GPAError as e:
        item.error = f"{type(e).__name__}: {e}"
        return None
    finally:
        item.seconds = time.perf_counter() - begin


def progress(things: Sequence[T], suite: str) -> Iterator[T]:
    """A bar on stderr."""
    bar: Iterable[T] = tqdm(things, desc=suite, dynamic_ncols=True)
    return iter(bar)


def floor(bench: Bench) -> list[Item]:
    """The judge on the original recordings: no model, the least error rate that anything can be given."""
    found = []
    for row in progress(bench.clips(), "floor"):
        item = Item(row["id"], row["text"], values={"speaker": row["speaker"], "corpus": row["corpus"]})
        wav = bench.clip(row)
        item.heard, item.audio_seconds = bench.recogniser(wav), len(wav) / SAMPLE_RATE
        found.append(item)
    return found


def _resynthesise(coder: TokenCodec, wav: np.ndarray) -> np.ndarray:
    return coder.decode(coder.encode((wav, SAMPLE_RATE)))


def codec(bench: Bench) -> list[Item]:
    """Encode and decode held-out recordings; the judge hears the original and the result."""
    coder = bench.need_codec()
    found = []
    for row in progress(bench.clips(), "codec"):
        wav = bench.clip(row)
        item = Item(row["id"], row["text"], floor=bench.recogniser(wav), values={"speaker": row["speaker"]})
        made = timed(item, _resynthesise, coder, wav)
        if made is not None:
            bench.hear(item, made, coder.spec.sample_rate, "codec")
        found.append(item)
    return found


def tts(bench: Bench) -> list[Item]:
    """Unseen sentences in the shipped voices, in turn."""
    model = bench.need_model()
    if not bench.voices:
        raise UsageError("the tts suite needs voices: pass --voices with names, voice files or recordings")
    seen = [*items.training_texts(bench.manifest), *bench.seen]
    found = []
    sentences = items.unseen_sentences(bench.data, seen, bench.n, bench.seed)
    for number, sentence in enumerate(progress(sentences, "tts")):
        voice = bench.voices[number % len(bench.voices)]
        item = Item(sentence.id, sentence.text, values={"voice": str(voice)}, shares={"stopped": False})
        speech = timed(item, model.tts, sentence.text, voice=voice, seed=bench.seed)
        if speech is not None:
            item.shares["stopped"] = speech.finish_reason == "stop"
            heard = bench.hear(item, speech.wav, speech.sample_rate, "tts")
            if any(row["speaker"] == voice for row in bench.manifest):
                own = bench.speaker_of(str(voice))
                item.values["similarity"] = round(cosine(bench.speaker.embed(heard), own), 4)
        found.append(item)
    return found


def asr(bench: Bench) -> list[Item]:
    """The model's own transcripts of held-out clips against the reference."""
    model = bench.need_model()
    found = []
    for row in progress(bench.clips(), "asr"):
        wav = bench.clip(row)
        item = Item(row["id"], row["text"], audio_seconds=len(wav) / SAMPLE_RATE, shares={"stopped": False})
        item.values["speaker"] = row["speaker"]
        transcript = timed(item, model.asr, (wav, SAMPLE_RATE))
        if transcript is not None:
            item.heard = transcript.text
            item.shares["stopped"] = transcript.finish_reason == "stop"
        found.append(item)
    return found


def _convert(bench: Bench, mode: Mode) -> list[Item]:
    model, suite = bench.need_model(), f"vc-{mode}"
    found = []
    for pair in progress(items.pairs(bench.manifest, bench.n, bench.seed, bench.split), suite):
        source, target = bench.path(pair.source), bench.path(pair.target)
        item = Item(pair.id, pair.source["text"], floor=bench.recogniser(bench.clip(pair.source)))
        item.shares["nearer target"] = False
        options = {"mode": mode} if mode == "codec" else {"mode": mode, "seed": bench.seed}
        speech = timed(item, model.vc, source, voice=target, **options)
        if speech is not None:
            heard = bench.hear(item, speech.wav, speech.sample_rate, suite)
            voice = bench.speaker.embed(heard)
            to_target = cosine(voice, bench.voice_of(pair.target, pair))
            to_source = cosine(voice, bench.voice_of(pair.source, pair))
            item.values = {"to_target": round(to_target, 4), "to_source": round(to_source, 4)}
            item.shares["nearer target"] = to_target > to_source
        found.append(item)
    return found


def vc_lm(bench: Bench) -> list[Item]:
    """Conversion by the language model: held-out sources, each to the voice of another speaker's clip."""
    return _convert(bench, "lm")


def vc_codec(bench: Bench) -> list[Item]:
    """The same pairs without the language model: the source's semantic ids with the target's global ids."""
    return _convert(bench, "codec")


SUITES: dict[str, Callable[[Bench], list[Item]]] = {
    "floor": floor,
    "codec": codec,
    "tts": tts,
    "asr": asr,
    "vc-lm": vc_lm,
    "vc-codec": vc_codec,
}


def run_suite(name: str, bench: Bench) -> list[Item]:
    """Run one of SUITES and count its edits."""
    found = SUITES[name](bench)
    score(found, wer.normaliser())
    return found


def about(bench: Bench) -> dict[str, Any]:
    """What a reader needs to repeat the numbers."""
    return {
        "seed": bench.seed,
        "n": bench.n,
        "split": bench.split,
        "recogniser": RECOGNISER,
        "normaliser": wer.NORMALISER,
        "speaker_judge": SPEAKER_JUDGE,
        "voices": [str(voice) for voice in bench.voices],
        "data_sha256": items.data_hash(bench.data),
        "versions": versions(),
    }
