"""The audio front end: one result whichever way sound comes in, an explained error when it is unusable."""

import io
import os
import re
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from gpa import audio
from gpa.codec.reference import check_reference, normalise_loudness, reference_clip
from gpa.errors import AudioError, AudioWarning, GPAError

RATE = 16000


def encoded(wav: np.ndarray, rate: int, form: str = "WAV", subtype: str | None = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wav, rate, format=form, subtype=subtype)
    return buffer.getvalue()


# One front end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_path_bytes_stream_and_array_agree_exactly(tmp_path: Path, rate: int, channels: int) -> None:
    wide = (
        np.random.default_rng(rate + channels).integers(-9000, 9000, (rate // 4, channels)).astype(np.int16)
    )
    path = tmp_path / "clip.wav"
    soundfile.write(path, wide, rate)
    expected = audio.load(path)
    assert expected.dtype == np.float32 and expected.shape == (RATE // 4,)
    with path.open("rb") as stream:
        others = [
            str(path),
            path.read_bytes(),
            bytearray(path.read_bytes()),
            io.BytesIO(path.read_bytes()),
            stream,
            (wide, rate),
            (wide.T, rate),
            (wide.astype(np.float32) / 32768, rate),
            (wide / 32768, float(rate)),
            (wide.astype(np.int32) * 65536, np.int64(rate)),
        ]
        for other in others:
            np.testing.assert_array_equal(audio.load(other), expected)
    np.testing.assert_array_equal(audio.load(wide, rate=rate), expected)


def test_channels_are_averaged_and_rate_is_the_true_one(second: np.ndarray) -> None:
    stereo = np.stack([second, 0.5 * second], axis=1).astype(np.float64)
    np.testing.assert_array_equal(audio.load((stereo, RATE)), (0.75 * second).astype(np.float32))
    expected = soxr.resample(second.astype(np.float64), 24000, RATE, quality="VHQ").astype(np.float32)
    np.testing.assert_array_equal(audio.load((second, 24000)), expected)
    assert audio.load((second, RATE), 24000).shape == (24000,)


@pytest.mark.parametrize(
    ("dtype", "zero", "half"),
    [
        (np.uint8, 128, 64),
        (np.int8, 0, 64),
        (np.int16, 0, 16384),
        (np.uint16, 32768, 16384),
        (np.int32, 0, 1 << 30),
    ],
)
def test_integers_are_scaled_by_their_range(dtype: type, zero: int, half: int) -> None:
    samples = np.array([zero, zero + half, zero - half] * 400).astype(dtype)
    np.testing.assert_array_equal(audio.load((samples, RATE))[:3], [0.0, 0.5, -0.5])


@pytest.mark.parametrize(
    ("form", "subtype"), [("FLAC", "PCM_16"), ("AIFF", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "PCM_U8")]
)
def test_lossless_formats(second: np.ndarray, form: str, subtype: str) -> None:
    tolerance = 1 / 128 if subtype == "PCM_U8" else 0
    np.testing.assert_allclose(audio.load(encoded(second, RATE, form, subtype)), second, atol=tolerance)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_lossy_formats_agree_with_a_plain_read(second: np.ndarray, subtype: str) -> None:
    data = encoded(second, RATE, "OGG", subtype)
    plain, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == RATE
    np.testing.assert_array_equal(audio.load(data), plain)
    np.testing.assert_array_equal(audio.load(data, begin=0.3, end=0.7), plain[4800:11200])


def test_begin_and_end_select_the_same_span_everywhere(wav_file: Path, second: np.ndarray) -> None:
    for source in (wav_file, wav_file.read_bytes(), (second, RATE)):
        np.testing.assert_array_equal(audio.load(source, begin=0.25, end=0.5), second[4000:8000])
        np.testing.assert_array_equal(
            audio.load(source, begin=0.9, end=1.05), second[14400:]
        )  # rounding slack
    for begin, end in (
        (-1, None),
        (0.5, 0.5),
        (0.5, 0.2),
        (1.5, None),
        (0, 9),
        (0, float("nan")),
        (0.5, 0.52),
    ):
        for source in (wav_file, (second, RATE)):
            with pytest.raises(AudioError, match="begin=|at least 40 ms"):
                audio.load(source, begin=begin, end=end)


def test_torch_tensors_are_arrays(second: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(second)
    np.testing.assert_array_equal(audio.load(tensor, rate=RATE), second)
    with pytest.raises(AudioError, match="detach"):
        audio.load(tensor.requires_grad_(), rate=RATE)
    with pytest.raises(AudioError, match=r"BFloat16.*\.float\(\)"):
        audio.load(torch.zeros(RATE, dtype=torch.bfloat16), rate=RATE)


# What cannot be used ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "Git-LFS pointer.*git lfs pull",
        ),
        (b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(200), "MP4/M4A.*ffmpeg"),
        (b"\x1aE\xdf\xa3" + bytes(200), "WebM.*ffmpeg"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b'{"error": "not found"}', "JSON"),
        (b"this is no sound" * 50, "not readable audio.*ffmpeg"),
        (bytes(4000), "not readable audio"),
    ],
)
def test_files_that_are_not_audio(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=re.escape(str(path)) + ".*" + message):
        audio.load(path)
    for source in (content, io.BytesIO(content)):
        with pytest.raises(AudioError, match="the given (bytes|stream).*" + message):
            audio.load(source)


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("AIFF", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
    ],
)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.01])
def test_truncated_files_are_refused_not_shortened(
    tmp_path: Path, second: np.ndarray, form: str, subtype: str, share: float
) -> None:
    data = encoded(np.tile(second, 3), RATE, form, subtype)
    path = tmp_path / "cut"
    path.write_bytes(data[: int(share * len(data))])
    for source in (path, path.read_bytes()):
        with pytest.raises(AudioError, match="(cut|bytes.*) is (truncated|not readable|empty)"):
            audio.load(source)


def test_a_wav_written_into_a_pipe_has_no_size_and_is_whole(second: np.ndarray) -> None:
    data = bytearray(encoded(second, RATE))
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    np.testing.assert_array_equal(audio.load(bytes(data)), second)


def test_missing_folder_unreadable_and_odd_sources(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path / "gone.wav", "gone.wav does not exist: check the path"),
        (tmp_path, "is a folder"),
        ("a\0b.wav", "cannot be opened"),
        (None, "NoneType is not audio"),
        ([0.0, 0.1], "list is not audio"),
        (io.StringIO("text"), "text mode"),
        (("clip.wav", RATE), "must be"),
        ((RATE, np.zeros(9)), "in this order"),
        (([0.0] * RATE, RATE), r"not \(list, int\): np.asarray makes an array of a list"),
        ((None, RATE), r"not \(NoneType, int\)"),
        ("", "the path is empty"),
        ("a" * 5000, "5000 characters.*cannot be opened .File name too long"),
    ):
        with pytest.raises(AudioError, match=message):
            audio.load(source)  # type: ignore[arg-type]
    for source, message in (
        ([0.0] * RATE, "and list is none: np.asarray"),
        (None, "and NoneType is none"),
        (b"RIFF", "files, bytes and streams have their own: leave it out"),
    ):
        with pytest.raises(AudioError, match=message):
            audio.load(source, rate=RATE)  # type: ignore[arg-type]
    with (tmp_path / "new").open("wb") as file, pytest.raises(AudioError, match="not open for reading"):
        audio.load(file)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(second: np.ndarray, value: float) -> None:
    bad = second.copy()
    bad[7000] = value
    for source in ((bad, RATE), encoded(bad, RATE, subtype="FLOAT")):
        with pytest.raises(AudioError, match="NaN or infinite"):
            audio.load(source)


@pytest.mark.parametrize("samples", [0, 1, 639])
def test_empty_and_under_40_ms(samples: int) -> None:
    wav = np.zeros(samples, np.float32)
    for source in ((wav, RATE), encoded(wav, RATE)):
        with pytest.raises(AudioError, match="empty|at least 40 ms"):
            audio.load(source)
    assert len(audio.load((np.zeros(640), RATE))) == 640


@pytest.mark.parametrize(
    ("array", "rate", "message"),
    [
        (np.zeros(9000), None, "pass rate="),
        (np.zeros(9000), 16, "no sample rate"),
        (np.zeros(9000), -16000, "no sample rate"),
        (np.zeros(9000), 16000.5, "no sample rate"),
        (np.zeros(9000), float("nan"), "no sample rate"),
        (np.zeros(9000), "16000", "no sample rate"),
        (np.zeros((90, 90)), RATE, "not one clip"),
        (np.zeros((1, 1, 9000)), RATE, "not one clip"),
        (np.array(1.0), RATE, "not one clip"),
        (np.zeros(9000, np.int64), RATE, "no known full scale"),
        (np.zeros(9000, bool), RATE, "no known full scale"),
        (np.zeros(9000, complex), RATE, "no known full scale"),
        (np.array(["a"] * 9000), RATE, "no known full scale"),
    ],
)
def test_arrays_that_are_not_clips(array: np.ndarray, rate: Any, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        audio.load(array, rate=rate)


def test_a_rate_that_cannot_apply_is_not_ignored(wav_file: Path, second: np.ndarray) -> None:
    with pytest.raises(AudioError, match="leave it out"):
        audio.load(wav_file, rate=24000)
    with pytest.raises(AudioError, match="twice"):
        audio.load((second, RATE), rate=RATE)
    with pytest.raises(AudioError, match="sample_rate=0"):
        audio.load(wav_file, 0)
    assert issubclass(AudioError, ValueError) and issubclass(AudioError, GPAError)


# Warnings ---------------------------------------------------------------------------------------------------


def test_silence_clipping_and_short_references_warn(second: np.ndarray) -> None:
    for wav, message in (
        (np.zeros(16000), "clip.wav is silent"),
        (1e-4 * second, "clip.wav is silent"),
        (np.clip(6 * second, -1, 1), "clip.wav is clipped"),
    ):
        with pytest.warns(AudioWarning, match=message):
            audio.check_speech(np.asarray(wav, np.float32), RATE, name="clip.wav")
    for nothing in (np.zeros(96_000), 1e-4 * np.tile(second, 6)):  # no voice is in it
        with pytest.raises(AudioError, match="clip.wav is silent"):
            check_reference(np.asarray(nothing, np.float32), RATE, name="clip.wav")
    with pytest.warns(AudioWarning, match="only 1.0 s") as seen:
        check_reference(second, RATE, name="clip.wav")
    assert seen[0].filename == __file__


def test_good_speech_does_not_warn(second: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audio.check_speech(second, RATE)
        audio.check_speech(0.01 * second, RATE)
        check_reference(np.tile(second / np.abs(second).max(), 4), RATE)


# Loudness and reference -------------------------------------------------------------------------------------


def slow_loudness(wav: np.ndarray) -> np.ndarray:
    """The rule of the published loader, sentence by sentence on Python floats."""
    x = [float(v) for v in wav]
    s = sorted(abs(v) for v in x)
    if s[-1] < 0.1:
        x = [0.1 * v / max(s[-1], 1e-3) for v in x]
    t = [v for v in s if v > 0.01]
    n = len(t)
    if n > 10:
        top = t[int(0.9 * n) : int(0.99 * n)]
        gain = min(max(0.2 / (sum(top) / len(top)), 0.1), 10.0)
        x = [gain * v for v in x]
        peak = max(abs(v) for v in x)
        if peak > 1:
            x = [v / peak for v in x]
    return np.array(x, np.float32)


@pytest.mark.parametrize("gain", [1e-5, 5e-4, 0.015, 0.02, 0.1, 0.3, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("samples", [1, 10, 11, 12, 100, 4001])
def test_loudness_equals_its_slow_twin(gain: float, samples: int) -> None:
    random = np.random.default_rng(samples)
    wav = (gain * random.standard_normal(samples) * random.random(samples)).astype(np.float32)
    fast = normalise_loudness(wav)
    assert fast.dtype == np.float32
    np.testing.assert_allclose(fast, slow_loudness(wav), rtol=2e-7, atol=0)


def test_loudness_leaves_its_input_alone_and_refuses_what_load_does_not_return(second: np.ndarray) -> None:
    before = second.copy()
    normalise_loudness(second)
    np.testing.assert_array_equal(second, before)
    for bad in (
        np.zeros(0, np.float32),
        np.zeros((2, 9), np.float32),
        np.zeros(9, int),
        np.array([np.nan] * 9),
    ):
        with pytest.raises(AudioError):
            normalise_loudness(bad)


@pytest.mark.parametrize("samples", [1, 7, 99, 100, 101, 250])
def test_reference_is_tiled_then_cut(samples: int) -> None:
    wav = np.arange(samples, dtype=np.float32)
    clip = reference_clip(wav, 100)
    assert clip.dtype == np.float32
    np.testing.assert_array_equal(clip, [i % samples for i in range(100)])
    for bad, length in ((wav[:0], 100), (wav, 0), (wav[None], 100)):
        with pytest.raises(AudioError, match="reference_clip"):
            reference_clip(bad, length)


# Saving -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_save_and_load_are_inverse_in_16_bits(tmp_path: Path, second: np.ndarray, suffix: str) -> None:
    path = tmp_path / "new" / f"out{suffix}"
    audio.save(path, second, RATE)
    np.testing.assert_array_equal(audio.load(path), second)
    assert soundfile.info(path).subtype == "PCM_16" and soundfile.info(path).samplerate == RATE
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_save_clips_and_writes_long_ogg(tmp_path: Path, second: np.ndarray) -> None:
    audio.save(tmp_path / "loud.wav", 5 * second, RATE)
    loud = audio.load(tmp_path / "loud.wav")
    np.testing.assert_allclose(loud, np.clip(5 * second, -1, 1), atol=1 / 32768)
    audio.save(str(tmp_path / "out.ogg"), np.tile(second, 60), RATE)
    assert len(audio.load(tmp_path / "out.ogg")) == 60 * RATE


def test_save_failure_keeps_the_old_file_and_leaves_nothing_behind(
    tmp_path: Path, second: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.wav"
    audio.save(path, second, RATE)
    old = path.read_bytes()

    def refuse(source: Any, target: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(AudioError, match="disk full"):
            audio.save(path, 0.5 * second, RATE)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["out.wav"]
    for target, message in (
        (tmp_path / "out.m4a", "use one of .wav, .flac, .ogg"),
        (tmp_path / "out", "use one of"),
        (path / "inside.wav", "is a file, and no folder"),
        (Path("/proc/a.wav"), "cannot be written"),  # where no byte is free, and no disk is full
    ):
        with pytest.raises(AudioError, match=message):
            audio.save(target, second, RATE)
    with pytest.raises(AudioError, match="NaN"):
        audio.save(path, np.full(900, np.nan, np.float32), RATE)


def test_a_wav_of_more_than_4_gib_says_that_it_goes_on() -> None:
    file = io.BytesIO()
    stream = audio.WavStream(file, 16_000)
    stream.write(np.zeros(8, np.float32))
    assert stream._header(1 << 33)[-4:] == b"\xff" * 4 == stream._header(1 << 33)[4:8]
    stream.close()
    assert stream._header(16) == file.getvalue()[:44] and len(file.getvalue()) == 60


def test_bytes_of_equal_samples_are_equal_at_any_time_of_day() -> None:
    wav = np.linspace(-0.5, 0.5, 1600, dtype=np.float32)
    first = audio.to_bytes(wav, 16_000)
    time.sleep(1.1)  # libsndfile stamps a float WAV with the second it was written in
    assert audio.to_bytes(wav, 16_000) == first
    np.testing.assert_array_equal(audio.load(first, 16_000), wav)
