"""Sound in and out: the one front end every path, byte string, stream, array and upload goes through.

Knows files, rates, channels and loudness; knows nothing about tokens or models, and needs no torch.
Shapes: S samples, C channels. Waveforms are float32 (S,), mono, full scale +-1, unless stated otherwise.
"""

import contextlib
import io
import os
import re
import struct
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr

from gpa.errors import AudioError, AudioWarning

AudioLike = str | os.PathLike[str] | bytes | BinaryIO | tuple[np.ndarray, int] | np.ndarray

SAMPLE_RATE = 16000  # Hz, of every published tokenizer
MIN_SECONDS = 0.04  # two 20 ms frames: less gives no token at all
MAX_CHANNELS = 8  # a longer axis of a 2-D array is taken for time
END_SLACK = 0.1  # seconds; manifests round their segment ends

_SILENCE = 1e-3  # RMS of the loudest 20 ms, -60 dB: below any usable recording
# Peak-normalised speech has a handful of such samples, clipped speech many.
_CLIP_LEVEL, _CLIP_SHARE = 0.999, 1e-3
_RATES = (1000, 768000)  # Hz; outside them a "rate" is a mistake, often a swapped argument
FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")  # of a WAV file of plain samples
_BLOCK = 1 << 14  # libvorbis may overflow its stack when handed minutes of sound at once

# What people hand in instead of audio, by the first bytes, with what to do about it.
_FOREIGN = (
    (b"version https://git-lfs", 0, "a Git-LFS pointer, not the audio itself", "run  git lfs pull"),
    (b"ftyp", 4, "an MP4/M4A container", "convert it:  ffmpeg -i IN -ac 1 OUT.wav"),
    (b"\x1aE\xdf\xa3", 0, "a WebM/Matroska container", "convert it:  ffmpeg -i IN -ac 1 OUT.wav"),
    (b"<", 0, "a web page or XML", "download the file itself"),
    (b"{", 0, "JSON text", "give the audio file it names"),
)


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
    Raises AudioError naming the source and the remedy.
    """
    target = _checked_rate(sample_rate, "sample_rate")
    samples, true_rate, name = load_raw(source, rate=rate, begin=begin, end=end)
    mono = samples.mean(axis=1)  # (S, C) -> (S,)
    if true_rate != target:
        mono = soxr.resample(mono, true_rate, target, quality="VHQ")
    return mono.astype(np.float32)


def blocks(source: AudioLike, sample_rate: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """Yield the samples of `load` bit by bit, float32 (S_i,), so that hours of a file take little memory.

    AudioError as for `load`; for a file that turns out shorter than it says, after the last block.
    """
    target = _checked_rate(sample_rate, "sample_rate")
    resampler = None
    for samples, true_rate, last in _raw_blocks(source):
        if true_rate != target and resampler is None:
            resampler = soxr.ResampleStream(true_rate, target, 1, dtype="float64", quality="VHQ")
        mono = samples.mean(axis=1)  # (S, C) -> (S,)
        yield (resampler.resample_chunk(mono, last=last) if resampler else mono).astype(np.float32)


def _raw_blocks(source: AudioLike) -> Iterator[tuple[np.ndarray, int, bool]]:
    """Yield ten seconds of float64 (S_i, C), the rate, and whether they are the last."""
    if isinstance(source, tuple) or hasattr(source, "__array__"):
        samples, rate, name = load_raw(source)
        for start in range(0, len(samples), 10 * rate):
            yield samples[start : start + 10 * rate], rate, start + 10 * rate >= len(samples)
        return
    data, name = _open(source)
    with _reading(data, name) as file:
        _, stop = _span(file.frames, file.samplerate, 0.0, None, name)
        done = 0
        while done < stop:
            block = _finite(file.read(10 * file.samplerate, "float64", always_2d=True), name)
            done += len(block) or stop  # an MP3 may end early
            yield block, file.samplerate, done >= stop
        _check_length(file, file.tell(), stop, name)


def seconds(path: str | os.PathLike[str]) -> float:
    """Duration of a file as its header states it; AudioError if there is none that can be read."""
    try:
        info = soundfile.info(os.fspath(path))
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(f"{path}: cannot be read ({error})") from error
    return float(info.frames / info.samplerate)


def load_raw(
    source: AudioLike, *, rate: int | None = None, begin: float = 0.0, end: float | None = None
) -> tuple[np.ndarray, int, str]:
    """Return (samples float64 (S, C), true rate in Hz, name for messages); arguments as for `load`."""
    if isinstance(source, tuple) or hasattr(source, "__array__"):
        samples, true_rate, name = _from_array(source, rate)
        start, stop = _span(len(samples), true_rate, begin, end, name)
        samples = samples[start:stop]
    elif rate is not None:
        raise AudioError("rate= is for bare arrays; files, bytes and streams have their own: leave it out")
    else:
        data, name = _open(source)
        samples, true_rate = _decode(data, name, begin, end)
    return _finite(samples, name), true_rate, name


def _finite(samples: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(samples).all():
        raise AudioError(f"{name} contains NaN or infinite samples: export it again")
    return samples


def _from_array(source: Any, rate: int | None) -> tuple[np.ndarray, int, str]:
    """Return a given array as float64 (S, C)."""
    if isinstance(source, tuple):
        if len(source) != 2 or not hasattr(source[0], "__array__"):
            raise AudioError("a tuple must be (array, rate), in this order")
        if rate is not None:
            raise AudioError("the rate was given twice: pass (array, rate), or the array and rate=")
        source, rate = source
    if rate is None:
        raise AudioError("an array has no sample rate of its own: pass rate= in Hz")
    rate = _checked_rate(rate, "rate")
    try:
        array = np.asarray(source)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a GPU, or one that needs gradients
        raise AudioError(
            f"{type(source).__name__} cannot become a numpy array ({error}): detach it"
        ) from error
    name = f"the given array, {array.dtype} {array.shape},"
    return _full_scale(_time_first(array, name), name), rate, name


def _time_first(array: np.ndarray, name: str) -> np.ndarray:
    """Return (S, C), whichever axis holds the channels."""
    if array.ndim == 1:
        return array[:, None]
    if array.ndim == 2 and min(array.shape) <= MAX_CHANNELS:
        return array.T if array.shape[0] < array.shape[1] else array
    raise AudioError(f"{name} is not one clip: give (S,) or (S, C) with at most {MAX_CHANNELS} channels")


def _full_scale(array: np.ndarray, name: str) -> np.ndarray:
    """Return float64 with integers scaled to +-1 by the range of their type, unsigned ones centred."""
    if array.dtype.kind == "f":
        return array.astype(np.float64)
    # No audio has 64-bit integers: they are int16 after a careless sum, and scaling would silence them.
    if array.dtype.kind not in "iu" or array.dtype.itemsize > 4:
        raise AudioError(f"{name} has no known full scale: convert it to float32 in +-1, or to int16")
    half = 2.0 ** (8 * array.dtype.itemsize - 1)
    offset = half if array.dtype.kind == "u" else 0.0
    return (array.astype(np.float64) - offset) / half


def _open(source: Any) -> tuple[Any, str]:
    """Return what soundfile can open, and a name for messages; refuse what clearly is not audio."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, name = bytes(source), f"the given bytes ({len(source)})"
    elif hasattr(source, "read"):
        label = getattr(source, "name", None)
        name = label if isinstance(label, str) and label else "the given stream"
        data = source.read()
        if not isinstance(data, bytes):
            raise AudioError(f"{name} is open in text mode: open it with 'rb'")
    elif isinstance(source, (str, os.PathLike)):
        return _open_path(Path(os.fsdecode(source)))
    else:
        raise AudioError(
            f"{type(source).__name__} is not audio: give a path, bytes, a stream, or an array with rate="
        )
    _refuse_foreign(data[:64], name)
    return io.BytesIO(data), name


def _open_path(path: Path) -> tuple[str, str]:
    """Return a readable audio path twice: to open, and as its name in messages."""
    if path.is_dir():
        raise AudioError(f"{path} is a folder: give one audio file in it")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise AudioError(f"{path} does not exist: check the path (working folder {Path.cwd()})") from None
    except (OSError, ValueError) as error:  # no permission; a null byte in the name
        raise AudioError(f"{path} cannot be opened ({error}): check its name and permissions") from error
    _refuse_foreign(head, str(path))
    return str(path), str(path)


def _refuse_foreign(head: bytes, name: str) -> None:
    if not head:
        raise AudioError(f"{name} is empty: record or download it again; a stream already read needs seek(0)")
    for magic, offset, what, remedy in _FOREIGN:
        if head[offset : offset + len(magic)] == magic:
            raise AudioError(f"{name} is {what}: {remedy}")


def _decode(data: Any, name: str, begin: float, end: float | None) -> tuple[np.ndarray, int]:
    """Return the wanted span as float64 (S, C), and its rate; a file cut short is refused, not shortened."""
    with _reading(data, name) as file:
        start, stop = _span(file.frames, file.samplerate, begin, end, name)
        exact = file.subtype.startswith("PCM_") or file.subtype in ("FLOAT", "DOUBLE")
        skip = 0 if exact else start  # lossy streams seek only nearly: they are decoded from the beginning
        file.seek(start - skip)
        samples = file.read(stop - start + skip, dtype="float64", always_2d=True)[skip:]
        _check_length(file, len(samples), stop - start, name)
        return samples, file.samplerate


@contextlib.contextmanager
def _reading(data: Any, name: str) -> Iterator[soundfile.SoundFile]:
    """Open what `_open` returned; AudioError for what cannot be read, then or later."""
    try:
        with soundfile.SoundFile(data) as file:
            if _cut_short(file.extra_info):
                raise AudioError(f"{name} is truncated: copy or download it again")
            yield file
    except (soundfile.LibsndfileError, RuntimeError) as error:
        what = f"{name} is not readable audio, or is truncated ({str(error).strip()})"
        remedy = "fetch it again, or convert it:  ffmpeg -i IN -ac 1 OUT.wav"
        raise AudioError(f"{what}: {remedy}") from error


def _check_length(file: soundfile.SoundFile, found: int, stated: int, name: str) -> None:
    # An MP3 states its length in whole frames or as an estimate, all other formats exactly.
    if found < stated * (0.95 if file.format == "MPEG" else 1.0):
        raise AudioError(f"{name} is truncated: copy or download it again")


def _cut_short(info: str) -> bool:
    """Whether libsndfile's log says that the file ends before its header does."""
    if "Junk after the last page" in info:
        return True  # Ogg cut inside a page; a live recording stopped between two pages is whole
    for stated, found in re.findall(r"^\s*(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", info, re.MULTILINE):
        # Writers into a pipe cannot know the size and state 0 or about 2 or 4 GiB: that is no cut.
        if int(found) < int(stated) < 0x7FFFF000:
            return True
    return False


def _span(frames: int, rate: int, begin: float, end: float | None, name: str) -> tuple[int, int]:
    """Return the first and the last-plus-one sample of `begin..end` seconds of a clip, both inside it."""
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


def _checked_rate(rate: Any, what: str) -> int:
    number = isinstance(rate, (int, float, np.number))
    if not number or not _RATES[0] <= rate <= _RATES[1] or rate != int(rate):
        raise AudioError(f"{what}={rate!r} is no sample rate: give whole Hz, such as 16000")
    return int(rate)


def as_wave(wav: np.ndarray, what: str) -> np.ndarray:
    """Return `wav` as float64 (S,) or raise: the functions below take what `load` returns, nothing looser."""
    array = np.asarray(wav)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind != "f":
        raise AudioError(
            f"{what} needs a float waveform (S,), got {array.dtype} {array.shape}: use gpa.audio.load"
        )
    if not np.isfinite(array).all():
        raise AudioError(f"{what} got NaN or infinite samples")
    return array.astype(np.float64)


def check_speech(wav: np.ndarray, sample_rate: int, *, name: str = "the audio", stacklevel: int = 2) -> None:
    """Warn (AudioWarning) when float32 (S,) is silent, or clipped in more than one sample of a thousand."""
    x = as_wave(wav, "check_speech")
    frame = max(1, min(len(x), round(0.02 * sample_rate)))
    power = np.square(x[: len(x) // frame * frame]).reshape(-1, frame).mean(axis=1)  # (S,) -> (frames,)
    if power.max() < _SILENCE**2:
        message = f"{name} is silent (loudest 20 ms below -60 dB): check the microphone or the channel"
        warnings.warn(message, AudioWarning, stacklevel=stacklevel)
    share = float(np.mean(np.abs(x) >= _CLIP_LEVEL))
    if share > _CLIP_SHARE:
        message = (
            f"{name} is clipped ({100 * share:.1f} % of its samples at full scale): lower the recording level"
        )
        warnings.warn(message, AudioWarning, stacklevel=stacklevel)


def save(path: str | os.PathLike[str], wav: np.ndarray, sample_rate: int) -> None:
    """Write float (S,) as 16-bit WAV or, by suffix, FLAC or Ogg Vorbis; values beyond +-1 are clipped.

    See `writing`, which takes the sound bit by bit.
    """
    wav = as_wave(wav, "save")
    with writing(path, sample_rate) as write:
        write(wav)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], sample_rate: int) -> Iterator[Callable[[np.ndarray], object]]:
    """A function that appends float (S,) to a file like those of `save`.

    Missing folders are made. The file appears whole or not at all: it is written under a temporary name
    beside its own, then renamed. Raises AudioError for another suffix or a refused place.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise AudioError(f"{path}: cannot write '{path.suffix}' files, use one of {', '.join(FORMATS)}")
    container, subtype = FORMATS[path.suffix.lower()]
    rate = _checked_rate(sample_rate, "sample_rate")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with soundfile.SoundFile(temporary, "w", rate, 1, subtype, format=container) as file:
            yield lambda wav: [file.write(block) for block in _blocks(wav, subtype)]
        os.replace(temporary, path)
    except (OSError, soundfile.LibsndfileError) as error:
        remedy = "check the folder, its permissions and space"
        raise AudioError(f"{path} cannot be written ({error}): {remedy}") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def _blocks(wav: np.ndarray, subtype: str) -> Iterator[np.ndarray]:
    # libsndfile would scale by 32767 but reads by 32768; with one factor saved samples return unchanged.
    samples = pcm16(wav) if subtype == "PCM_16" else np.clip(wav, -1.0, 1.0)
    return (samples[start : start + _BLOCK] for start in range(0, len(samples), _BLOCK))


def pcm16(wav: np.ndarray) -> np.ndarray:
    """Float (S,) as int16, with the factor of `load`, so that what was read is written unchanged."""
    return np.clip(np.rint(np.asarray(wav) * 32768.0), -32768, 32767).astype(np.int16)


class WavStream:
    """A 16-bit WAV that is heard while it is written: its header says that it goes on until the end.

    `close` puts the true sizes there where the file can be rewound; it leaves the file open.
    """

    def __init__(self, file: BinaryIO, sample_rate: int) -> None:
        self._file, self._rate, self._size = file, _checked_rate(sample_rate, "sample_rate"), 0
        self._put(self._header(0xFFFFFFFF))

    def write(self, wav: np.ndarray) -> None:
        """Append float (S,)."""
        self._size += self._put(pcm16(wav).astype("<i2").tobytes())

    def close(self) -> None:
        """Say how long it became, if that is still possible."""
        if self._file.seekable():
            self._file.seek(-self._size - _HEADER.size, os.SEEK_CUR)
            self._put(self._header(self._size))
            self._file.seek(self._size, os.SEEK_CUR)

    def _put(self, data: bytes) -> int:
        self._file.write(data)
        self._file.flush()
        return len(data)

    def _header(self, size: int) -> bytes:
        form = (b"WAVE", b"fmt ", 16, 1, 1, self._rate, 2 * self._rate, 2, 16, b"data")
        return _HEADER.pack(b"RIFF", min(size + _HEADER.size - 8, 0xFFFFFFFF), *form, min(size, 0xFFFFFFFF))


def to_bytes(wav: np.ndarray, sample_rate: int) -> bytes:
    """Return float (S,), (S, C) or (C, S) as a float32 AU file, which `load` reads unchanged.

    Equal samples give equal bytes: a WAV file of floats would also hold the time.
    """
    file = io.BytesIO()
    samples = _time_first(np.asarray(wav, np.float32), "to_bytes")
    soundfile.write(file, samples, _checked_rate(sample_rate, "sample_rate"), "FLOAT", format="AU")
    return file.getvalue()
