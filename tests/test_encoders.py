"""Bodies of sound: equal bytes however the sound was cut, headers for streams and for complete bodies."""

import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr

from conftest import speechlike
from gpa import audio
from gpa.audio import encoders
from gpa.audio.encoders import FORMATS, Encoder, available, encoded
from gpa.audio.tempo import Tempo
from gpa.errors import AudioError, UsageError

RATE, OUT = 16000, 24000
WAV = speechlike(2.5)


def streamed(name: str, cuts: int, rate: int = OUT, speed: float = 1.0) -> bytes:
    encoder = Encoder(name, RATE, rate, speed=speed)
    return b"".join([encoder.push(part) for part in np.array_split(WAV, cuts)]) + encoder.finish()


@pytest.mark.parametrize("name", [name for name in FORMATS if name in available()])
def test_bytes_depend_on_the_sound_alone(name: str) -> None:
    one = streamed(name, 1)
    assert one == streamed(name, 9) == streamed(name, 400)
    code = f"import test_encoders as t, sys; sys.stdout.buffer.write(t.streamed({name!r}, 5))"
    other = subprocess.run([sys.executable, "-c", code], cwd=__file__.rpartition("/")[0], capture_output=True)
    assert one == other.stdout, other.stderr


@pytest.mark.parametrize("name", ["mp3", "opus", "flac", "wav"])
def test_sound_comes_back(name: str) -> None:
    """What is decoded sounds as what was encoded, whether or not the body has its length."""
    wanted = soxr.resample(WAV, RATE, OUT, "VHQ")
    whole, rate = soundfile.read(io.BytesIO(encoded(name, WAV, RATE, OUT)), dtype="float32")
    assert rate == OUT and len(whole) == len(wanted)
    body = io.BytesIO(streamed(name, 20))
    blocks = list(soundfile.SoundFile(body).blocks(4096, dtype="float32"))
    found = np.concatenate(blocks)
    late = int(np.argmax(np.correlate(found[:OUT], wanted[: OUT // 2], "valid")))  # the delay of the encoder
    assert late < 2500
    for made in (whole, found[late:]):
        both = min(len(made), len(wanted))
        assert np.corrcoef(made[:both], wanted[:both])[0, 1] > 0.97


def test_pcm_is_the_resampled_sound_at_24_kHz() -> None:
    wanted = audio.pcm16(soxr.resample(WAV, RATE, OUT, "VHQ")).astype("<i2").tobytes()
    assert streamed("pcm", 37) == wanted
    assert streamed("wav", 37)[44:] == wanted
    at_source = Encoder("pcm", RATE, RATE)
    assert at_source.push(WAV) + at_source.finish() == audio.pcm16(WAV).astype("<i2").tobytes()


def test_a_stream_of_wav_has_one_header_without_sizes_and_a_complete_one_has_them() -> None:
    stream, whole = streamed("wav", 50), encoded("wav", WAV, RATE, OUT)
    assert stream[4:8] == stream[40:44] == b"\xff\xff\xff\xff" and stream.count(b"RIFF") == 1
    assert int.from_bytes(whole[4:8], "little") == len(whole) - 8
    assert int.from_bytes(whole[40:44], "little") == len(whole) - 44
    assert stream[44:] == whole[44:]


def test_sound_comes_early() -> None:
    """Long before the end, and no byte twice. Opus has pages of a second; FLAC and AAC come at the end."""
    for name, seconds in (("pcm", 0.1), ("wav", 0.1), ("mp3", 0.2), ("opus", 1.2)):
        encoder = Encoder(name, RATE, OUT)
        head = encoder.push(WAV[: round(seconds * RATE)])
        assert len(head) > 300, name
        assert head + encoder.push(WAV[round(seconds * RATE) :]) + encoder.finish() == streamed(name, 1)


def test_aac_is_read_by_ffmpeg() -> None:
    if "aac" not in available():
        pytest.skip("no ffmpeg")
    command = "ffmpeg -v error -f aac -i pipe:0 -f s16le pipe:1".split()
    read = subprocess.run(command, input=streamed("aac", 5), capture_output=True, check=True).stdout
    assert abs(len(read) // 2 - len(WAV) * 1.5) < 3 * 1024


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="opus at 44100 Hz: choose 8000"):
        Encoder("opus", RATE, 44100)
    monkeypatch.setattr(encoders.shutil, "which", lambda name: None)
    available.cache_clear()
    try:
        with pytest.raises(AudioError, match="aac cannot be encoded on this server: choose mp3"):
            Encoder("aac", RATE, OUT)
    finally:
        available.cache_clear()


@pytest.mark.parametrize("speed", [0.25, 0.8, 1.0, 1.5, 4.0])
def test_speed_changes_length_and_not_pitch(speed: float) -> None:
    tone = (0.5 * np.sin(2 * np.pi * 200 * np.arange(2 * RATE) / RATE)).astype(np.float32)
    for wav in (tone, WAV):
        made = []
        for cuts in (1, 11, 500):
            tempo = Tempo(speed, RATE)
            made.append(np.concatenate([*map(tempo.push, np.array_split(wav, cuts)), tempo.finish()]))
        assert len(made[0]) == round(len(wav) / speed)
        assert np.array_equal(made[0], made[1]) and np.array_equal(made[0], made[2])
        assert abs(made[0].std() / wav.std() - 1) < 0.06
        assert np.abs(np.diff(made[0])).max() < 1.3 * np.abs(np.diff(wav)).max(), "a click"
        if wav is tone:
            spectrum = np.abs(np.fft.rfft(made[0] * np.hanning(len(made[0]))))
            assert abs(np.argmax(spectrum) * RATE / len(made[0]) - 200) < 3


def test_nothing_and_little_can_be_encoded() -> None:
    for name in available():
        for samples in (0, 1, 100):
            for speed in (1.0, 2.0):
                encoder = Encoder(name, RATE, OUT, complete=True, speed=speed)
                assert encoder.push(np.zeros(samples, np.float32)) == b""
                assert isinstance(encoder.finish(), bytes)
