"""Random sound files of every kind that libsndfile writes: cut, with flipped bytes, with lying headers.

The sound is whole, to the sample, or refused. What leaves it whole (a tag or zeros at the end, a sample of
another value) may be read.
"""

import io
import resource
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from gpa import audio
from gpa.errors import AudioWarning

MEMORY = 256 << 10  # KiB that a trial may add to the most that was used before it
WAV = ("PCM_16", "PCM_U8", "PCM_24", "FLOAT", "ULAW", "GSM610", "MS_ADPCM", "IMA_ADPCM")
KINDS = (
    *(("WAV", subtype) for subtype in WAV),
    *((kind, "PCM_16") for kind in ("WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "SVX", "NIST", "VOC")),
    *((kind, "PCM_16") for kind in ("MAT4", "MAT5", "AVR", "HTK", "MPC2K", "FLAC")),
    *(("W64", "GSM610"), ("AIFF", "ALAW"), ("AU", "ULAW"), ("CAF", "ALAC_16"), ("FLAC", "PCM_24")),
    *(("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("WVE", "ALAW")),
)
MONO = ("GSM610", "SVX", "HTK", "WVE")
RATES = (8000, 16000, 48000)  # Hz; a lie about one is another sound
SEALED = ("FLAC", "OGG")  # every byte is under a checksum
HEADER = 1200  # bytes that no header of these is longer than; beyond, a flipped byte is another sound

Harm = Callable[[np.random.Generator, bytes, str], bytes]


def trial(random: np.random.Generator, folder: Path) -> bool:
    """Write a file, harm it, read it: samples as before."""
    kind, subtype = KINDS[random.integers(len(KINDS))]
    rate = 8000 if kind == "WVE" else int(random.choice(RATES))
    data = written(random, kind, subtype, rate)
    (folder / "whole").write_bytes(data)
    whole = audio.load(folder / "whole", rate)
    harm = HARMS[random.integers(len(HARMS))]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (folder / "harmed").write_bytes(harm(random, data, kind))
    what = f"{kind} {subtype} {rate} {harm.__name__}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", AudioWarning)
            found = audio.load(folder / "harmed", rate)
    except AudioWarning:
        return False  # it is said
    finally:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert used < MEMORY, f"{what}: {used >> 10} MiB"
    # An MP3 or ALAC whose header lies about delay or frames is read with the encoder's padding.
    padded = 4 * 1152 if kind == "MP3" or subtype == "ALAC_16" else 0
    assert 0 <= len(found) - len(whole) <= padded, f"{what}: {len(found)} samples instead of {len(whole)}"
    return True


def written(random: np.random.Generator, kind: str, subtype: str, rate: int) -> bytes:
    """Noise that comes and goes, 0.1 to 3 s."""
    samples = int(random.integers(rate // 10, 3 * rate))
    channels = 1 if kind in MONO or subtype in MONO else int(random.integers(1, 3))
    noise = random.uniform(-0.5, 0.5, (samples, channels))
    file = io.BytesIO()
    soundfile.write(file, noise * np.sin(np.arange(samples) / 2000)[:, None], rate, subtype, format=kind)
    return _endless(random, file.getvalue(), kind)


def _endless(random: np.random.Generator, data: bytes, kind: str) -> bytes:
    """Sometimes the same without a length, as writers into pipes leave it."""
    if random.random() < 0.7:
        return data
    if kind == "FLAC":
        packed = int.from_bytes(data[18:26], "big") >> 36 << 36
        return data[:18] + packed.to_bytes(8, "big") + bytes(16) + data[42:]
    if kind == "MP3":
        from gpa.audio.mpeg import parse

        frame = parse(data[:4])
        assert frame is not None
        return data[frame.size :]
    return data


def cut(random: np.random.Generator, data: bytes, kind: str) -> bytes:
    """The beginning of it."""
    return data[: int(random.integers(0, len(data)))]


def cut_a_little(random: np.random.Generator, data: bytes, kind: str) -> bytes:
    """All but the last few bytes."""
    return data[: -int(random.integers(3, 300))]


def flip(random: np.random.Generator, data: bytes, kind: str) -> bytes:
    """One byte to another, in the sound, or anywhere under a checksum."""
    at = int(random.integers(4 if kind in SEALED else min(HEADER, len(data) - 1), len(data)))
    return data[:at] + bytes((data[at] ^ int(random.integers(1, 256)),)) + data[at + 1 :]


def lie(random: np.random.Generator, data: bytes, kind: str) -> bytes:
    """A length in the header, of bytes or of samples, that is another."""
    sizes = {len(data) - begin: begin for begin in range(12, HEADER)}
    places = []
    for at in range(4, min(HEADER, len(data) - 4)):
        for order in "<>":
            (value,) = struct.unpack_from(order + "I", data, at)
            if value in sizes and value > 400 and value not in RATES:
                places.append((at, order, value))
    if not places or kind == "MAT4":  # there the rate is eight bytes that may look like anything
        return cut(random, data, kind)
    at, order, value = places[random.integers(len(places))]
    new = int(value * random.uniform(0.1, 3)) if random.random() < 0.7 else int(random.integers(1 << 31))
    return data[:at] + struct.pack(order + "I", new) + data[at + 4 :]


def tagged(random: np.random.Generator, data: bytes, kind: str) -> bytes:
    """An ID3 tag at the end, or zeros."""
    return data + (b"TAG" + bytes(125) if random.random() < 0.5 else bytes(int(random.integers(1, 4000))))


def more(random: np.random.Generator, data: bytes, kind: str) -> bytes:
    """Other bytes at the end."""
    return data + random.bytes(int(random.integers(9, 4000)))


HARMS: tuple[Harm, ...] = (cut, cut, cut_a_little, flip, flip, lie, lie, tagged, more)
