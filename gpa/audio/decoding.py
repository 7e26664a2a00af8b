"""One decoder for every source: blocks of samples as they come, and a comparison with what was promised.

Knows libsndfile, ffmpeg and arrays; knows no target rate. float64 (S_i, C), full scale +-1.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr

from gpa.audio import containers, ffmpeg, mpeg, xiph
from gpa.audio.arrays import Mixer, checked_rate, from_array, is_rate, usable
from gpa.audio.opening import Opened, most_seconds, opened, too_long, truncated
from gpa.errors import AudioError

AudioLike = str | os.PathLike[str] | bytes | BinaryIO | tuple[np.ndarray, int] | np.ndarray

SAMPLE_RATE = 16000  # Hz, of every published tokenizer
MIN_SECONDS = 0.04  # two 20 ms frames: less gives no token at all
END_SLACK = 0.1  # seconds; manifests round their segment ends

_BLOCK = 10.0  # seconds
_VALUES = 1 << 22  # of a block, in all channels
_HEADERLESS = {".gsm": "GSM610", ".vox": "VOX_ADPCM"}  # telephone sound at 8 kHz, known by its suffix alone
_COUNTS = re.compile(r"^\s*(?:Frames|Data length)\s+:? ?(\d+)", re.MULTILINE)  # in its log


class Sound(NamedTuple):
    """A source being decoded: its name for messages, its rate, how many samples it has if it says so.

    `read` gives at most n further samples, none at the end; `skip` leaves out n.
    """

    name: str
    rate: int
    frames: int | None
    read: Callable[[int], np.ndarray]
    skip: Callable[[int], object]


def load(
    source: AudioLike,
    sample_rate: int = SAMPLE_RATE,
    *,
    rate: int | None = None,
    begin: float = 0.0,
    end: float | None = None,
) -> np.ndarray:
    """Return any kind of audio as float32 (S,) at `sample_rate`: channels averaged, resampled by soxr VHQ.

    `source` is a path, encoded bytes, a binary stream (read from where it stands), `(array, rate)`, or an
    array with `rate=`. Arrays are (S,), (S, C) or (C, S) with C <= 8; integers are scaled by their range.
    `begin` and `end` are seconds of the source. The same sound gives the same samples whichever way it comes.
    Of channels that cancel each other one is taken, with an AudioWarning.
    Raises AudioError naming the source and the remedy, also beyond the hours of GPA_AUDIO_HOURS.
    """
    return np.concatenate(list(blocks(source, sample_rate, rate=rate, begin=begin, end=end)))


def blocks(
    source: AudioLike,
    sample_rate: int = SAMPLE_RATE,
    *,
    rate: int | None = None,
    begin: float = 0.0,
    end: float | None = None,
) -> Iterator[np.ndarray]:
    """Yield the samples of `load` bit by bit, float32 (S_i,), so that hours of a file take little memory.

    AudioError as for `load`; for a file that turns out shorter than it says, after the last block.
    """
    target = checked_rate(sample_rate, "sample_rate")
    mixed, resampler = None, None
    for samples, true_rate, name in _raw_blocks(source, rate, begin, end):
        if mixed is None:
            mixed = Mixer(name)
            if true_rate != target:
                resampler = soxr.ResampleStream(true_rate, target, 1, dtype="float64", quality="VHQ")
        mono = mixed(samples)  # (S, C) -> (S,)
        yield (resampler.resample_chunk(mono) if resampler else mono).astype(np.float32)
    if resampler:
        yield resampler.resample_chunk(np.zeros(0), last=True).astype(np.float32)


def seconds(path: str | os.PathLike[str]) -> float:
    """Duration of a file, by its header where that states it; AudioError if it cannot be read."""
    with decoding(path) as sound:
        if sound.frames is not None:
            return sound.frames / sound.rate
    return sum(len(block) / rate for block, rate, _ in _raw_blocks(path))


def _raw_blocks(
    source: Any, rate: int | None = None, begin: float = 0.0, end: float | None = None
) -> Iterator[tuple[np.ndarray, int, str]]:
    """Yield float64 (S_i, C), true rate and name, of `begin` to `end` seconds; AudioError as for `load`.

    What has fewer samples than it states is an error after its last block.
    """
    with decoding(source, rate) as sound:
        start, stop = _span(sound.frames, sound.rate, begin, end, sound.name)
        most = start + round(most_seconds() * sound.rate)
        if stop is not None and stop > most:
            raise too_long(sound.name, f"has {(stop - start) / sound.rate / 3600:.1f} h of sound")
        sound.skip(start)
        at = start
        while stop is None or at < stop:
            wanted = round(_BLOCK * sound.rate)
            block = sound.read(wanted if stop is None else min(wanted, stop - at))
            if not len(block):
                break
            at += len(block)
            if at > most:
                raise too_long(sound.name, "goes on and on")
            yield usable(block, sound.name), sound.rate, sound.name
        if sound.frames is None:
            _span(at, sound.rate, begin, end, sound.name)  # the length is known now
        elif stop is not None and at < stop:
            raise truncated(sound.name)


@contextlib.contextmanager
def decoding(source: Any, rate: int | None = None) -> Iterator[Sound]:
    """Open a source of any kind; AudioError for what cannot be read, then or later."""
    if isinstance(source, tuple) or hasattr(source, "__array__"):
        yield _of_array(*from_array(source, rate))
        return
    if rate is not None:
        own = isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(source, "read")
        kind = "files, bytes and streams have their own" if own else f"{type(source).__name__} is none"
        remedy = "leave it out" if own else "np.asarray makes an array of a list of numbers"
        raise AudioError(f"rate= is for bare arrays, and {kind}: {remedy}")
    suffix = Path(source).suffix.lower() if isinstance(source, (str, os.PathLike)) else ""
    with opened(source) as file, contextlib.ExitStack() as stack:
        head = file.at(0, ffmpeg.HEAD)
        form = ffmpeg.foreign(head)
        if form is None:
            stack.enter_context(_explained(file.name))
            try:
                whole = _whole(file)
                most = containers.gsm_samples(whole)  # before the decoder has the file
                sound = _of_file(stack.enter_context(_libsndfile(whole, suffix)), file.name, most)
            except soundfile.LibsndfileError:
                form = ffmpeg.other_codec(head)
                if form is None:
                    raise
        if form is not None:
            sound = _of_pipe(stack.enter_context(ffmpeg.converted(file, form)), file.name)
        yield sound


def _of_array(samples: np.ndarray, rate: int, name: str) -> Sound:
    at = 0

    def read(count: int) -> np.ndarray:
        nonlocal at
        at += count
        return samples[at - count : at]

    return Sound(name, rate, len(samples), read, read)


def _whole(file: Opened) -> Opened:
    """The file as libsndfile reads all of it; AudioError if it does not hold what its container states."""
    head = file.at(0, 10)
    if head.startswith(b"ID3"):  # before FLAC or MP3, or by mistake before anything
        file = file.section(min(10 + mpeg.id3_size(head), file.size), file.size)
        head = file.at(0, 10)
    if head.startswith(b"OggS"):
        xiph.check_pages(file)
    elif head.startswith(b"fLaC"):
        return xiph.whole_flac(file)
    elif mpeg.begins(file):
        return mpeg.counted(file)
    else:
        file = containers.checked(file)
        inside = containers.mp3_inside(file)
        return mpeg.counted(inside) if inside is not None and mpeg.begins(inside) else file
    return file


def _libsndfile(opened: Opened, suffix: str) -> soundfile.SoundFile:
    opened.file.seek(0)
    if subtype := _HEADERLESS.get(suffix):
        return soundfile.SoundFile(opened.file, "r", 8000, 1, subtype, format="RAW")
    return soundfile.SoundFile(opened.file)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """AudioError for what libsndfile cannot read, at once or later."""
    try:
        yield
    except (soundfile.LibsndfileError, RuntimeError) as error:
        said = getattr(error, "error_string", str(error)).strip()
        what = f"{name} is not readable audio, or is truncated ({said})"
        remedy = "fetch it again, or convert it:  ffmpeg -i IN -ac 1 OUT.wav"
        raise AudioError(f"{what}: {remedy}") from error


def _of_pipe(pipe: ffmpeg.Pipe, name: str) -> Sound:
    rate = _stated_rate(pipe.rate, name)
    return Sound(name, rate, None, pipe.read, partial(_decode_over, pipe.read))


def _of_file(file: soundfile.SoundFile, name: str, most_frames: int | None) -> Sound:
    rate = _stated_rate(file.samplerate, name)
    most = max(1, _VALUES // file.channels)
    counts = _COUNTS.findall(file.extra_info) if file.format in ("AVR", "MPC2K", "WVE") else ()
    for count in map(int, counts):
        if count > file.frames:
            raise truncated(name)
        if count < file.frames:
            raise AudioError(f"{name} has {file.frames} samples, its header says {count}: export it again")

    def read(count: int) -> np.ndarray:
        return file.read(min(count, most), dtype="float64", always_2d=True)

    # Lossy streams seek only nearly, and some not at all: they are decoded from the beginning.
    exact = file.subtype.startswith("PCM_") or file.subtype in ("FLOAT", "DOUBLE")
    skip = file.seek if exact else partial(_decode_over, read)
    frames = file.frames if most_frames is None else min(file.frames, most_frames)
    return Sound(name, rate, frames, read, skip)


def _stated_rate(rate: int, name: str) -> int:
    if not is_rate(rate):
        raise AudioError(f"{name} states a sample rate of {rate} Hz: its header is wrong, export it again")
    return rate


def _decode_over(read: Callable[[int], np.ndarray], count: int) -> None:
    while count > 0 and (found := len(read(min(count, _VALUES)))):
        count -= found


def _span(
    frames: int | None, rate: int, begin: float, end: float | None, name: str
) -> tuple[int, int | None]:
    """The first and the last-plus-one sample of `begin..end` seconds, inside a clip of known length."""
    if frames is None:
        if not 0 <= begin < (np.inf if end is None else end):
            raise AudioError(f"{name}: begin={begin}, end={end} is no span of it")
        return round(begin * rate), None if end is None else round(end * rate)
    length = frames / rate
    last = length if end is None else end
    if frames == 0:
        raise AudioError(f"{name} is empty: record or download it again")
    if not 0 <= begin < last <= length + END_SLACK:
        raise AudioError(f"{name} has {length:.2f} s of sound: begin={begin}, end={end} is no span of it")
    start, stop = round(begin * rate), min(round(last * rate), frames)
    if stop - start < MIN_SECONDS * rate:
        seconds = max(stop - start, 0) / rate
        least = 1000 * MIN_SECONDS
        raise AudioError(f"{name} is {1000 * seconds:.0f} ms long: at least {least:.0f} ms are needed")
    return start, stop
