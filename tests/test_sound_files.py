"""Files as people have them: every container, cut or lying, from pipes, through ffmpeg; whole or refused."""

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gpa import audio
from gpa.audio import mpeg, xiph
from gpa.audio.opening import LIMIT, Opened
from gpa.errors import AudioError, AudioWarning, UsageError

RATE = 16000
SAMPLES = 5 * RATE + 123
ROOT = Path(__file__).resolve().parent.parent

REFUSED = "truncated|is empty" if shutil.which("ffmpeg") else "truncated|is empty|needs ffmpeg"
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def sweep(rate: int = RATE, samples: int = SAMPLES) -> np.ndarray:
    """Float32 (S,): tones and noise in turn, so that a variable bit rate varies."""
    random = np.random.default_rng(0)
    tone = np.sin(np.arange(samples) * (0.05 + 0.1 * (np.arange(samples) // rate % 3)))
    noise = random.standard_normal(samples) * (np.arange(samples) // (rate // 2) % 2)
    return (0.2 * tone + 0.1 * noise).astype(np.float32)


def encoded(form: str, subtype: str = "PCM_16", wav: np.ndarray | None = None, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sweep() if wav is None else wav, rate, subtype, format=form)
    return file.getvalue()


def ffmpeg(*options: str, wav: np.ndarray | None = None) -> bytes:
    """What ffmpeg writes into a pipe."""
    command = ["ffmpeg", "-v", "error", "-i", "pipe:0", *options, "pipe:1"]
    return subprocess.run(command, input=encoded("WAV", wav=wav), capture_output=True, check=True).stdout


def put(data: bytes, at: int, form: str, value: int) -> bytes:
    new = struct.pack(form, value)
    return data[:at] + new + data[at + len(new) :]


def opened(data: bytes) -> Opened:
    return Opened(io.BytesIO(data), len(data), "it")


# Cut --------------------------------------------------------------------------------------------------------

STATED = [
    *(("WAV", kind) for kind in ("PCM_16", "PCM_24", "FLOAT", "ULAW", "GSM610", "MS_ADPCM", "IMA_ADPCM")),
    *((kind, "PCM_16") for kind in ("WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "SVX", "NIST", "VOC")),
    *((kind, "PCM_16") for kind in ("MAT4", "MAT5", "AVR", "HTK", "MPC2K", "SDS", "FLAC")),
    *(("AU", "ULAW"), ("NIST", "ULAW"), ("W64", "GSM610"), ("CAF", "ALAC_16"), ("WVE", "ALAW")),
    *(("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("MAT5", "DOUBLE")),
]


@pytest.mark.parametrize(("form", "subtype"), STATED)
def test_a_file_is_whole_or_refused_wherever_it_is_cut(form: str, subtype: str) -> None:
    rate = 8000 if form == "WVE" else RATE
    data = encoded(form, subtype, rate=rate)
    plain = soundfile.read(io.BytesIO(data))[0].astype(np.float32)
    whole = audio.load(data, rate)
    assert SAMPLES <= len(whole) < SAMPLES + 1100  # block codecs fill their last block
    np.testing.assert_allclose(whole, plain[: len(whole)], atol=1e-6)
    if subtype == "GSM610":  # libsndfile takes a pad byte for one more block, of noise
        assert len(whole) % 320 == 0 and len(whole) - SAMPLES < 320
    for share in (0.02, 0.3, 0.5, 0.77, 0.99):
        with pytest.raises(AudioError, match=REFUSED):
            audio.load(data[: int(share * len(data))], rate)
    if form != "SDS":  # its packets are filled up
        with pytest.raises(AudioError, match="truncated"):
            audio.load(data[:-5], rate)


@pytest.mark.parametrize("form", ["PAF", "PVF", "IRCAM"])
def test_containers_that_state_no_length_are_read(form: str) -> None:
    plain = soundfile.read(io.BytesIO(encoded(form)))[0].astype(np.float32)
    np.testing.assert_array_equal(audio.load(encoded(form)), plain)


# Lies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [44, 36])
def test_a_wav_whose_size_counts_the_header_is_read_with_a_warning(extra: int) -> None:
    data = encoded("WAV")
    with pytest.warns(AudioWarning, match=f"{extra} bytes shorter than its header says, which counts itself"):
        found = audio.load(put(data, 40, "<I", len(data) - 44 + extra))
    np.testing.assert_array_equal(found, audio.load(data))


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFF000])
@pytest.mark.parametrize(("form", "at", "order"), [("WAV", 40, "<I"), ("AU", 8, ">I")])
def test_a_size_that_nobody_filled_in_means_up_to_the_end(size: int, form: str, at: int, order: str) -> None:
    data = encoded(form)
    np.testing.assert_array_equal(audio.load(put(data, at, order, size)), audio.load(data))


@pytest.mark.parametrize(("form", "at", "order"), [("WAV", 40, "<I"), ("AU", 8, ">I"), ("RF64", 28, "<Q")])
@pytest.mark.filterwarnings("ignore::gpa.errors.AudioWarning")
@pytest.mark.parametrize(("times", "message"), [(0.5, "goes on for"), (2.0, "truncated")])
def test_a_size_that_is_too_small_or_too_large_is_refused(
    form: str, at: int, order: str, times: float, message: str
) -> None:
    data = encoded(form)
    (size,) = struct.unpack_from(order, data, at)
    with pytest.raises(AudioError, match=message):
        audio.load(put(data, at, order, int(times * size)))


@pytest.mark.parametrize("rate", [0, 1, 999, 768001, 2**31, 2**32 - 1])
@pytest.mark.parametrize(("form", "at", "order"), [("WAV", 24, "<I"), ("AU", 16, ">I"), ("W64", 68, "<I")])
@pytest.mark.filterwarnings("ignore::gpa.errors.AudioWarning")
def test_a_rate_that_is_none_is_refused(form: str, at: int, order: str, rate: int) -> None:
    data = encoded(form)
    assert struct.unpack_from(order, data, at) == (RATE,)
    with pytest.raises(AudioError, match=f"a sample rate of {rate} Hz|not readable|no sample rate"):
        audio.load(put(data, at, order, rate))


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (24, "<I", 48000, "contradicts itself: 48000 Hz, 2 bytes a sample, 32000 bytes a second"),
        (28, "<I", 16000, "contradicts itself"),
        (32, "<H", 4, "contradicts itself"),
    ],
)
def test_a_wav_header_that_contradicts_itself_warns(at: int, form: str, value: int, message: str) -> None:
    with pytest.warns(AudioWarning, match=message):
        audio.load(put(encoded("WAV"), at, form, value))


@pytest.mark.parametrize(("at", "value"), [(22, 2), (22, 1024), (34, 8), (34, 24), (34, 32), (20, 6)])
def test_a_wav_of_other_channels_or_bits_is_refused(at: int, value: int) -> None:
    with pytest.raises(AudioError, match="channels of .* bits.*its header is wrong"):
        audio.load(put(encoded("WAV"), at, "<H", value))


@pytest.mark.parametrize(
    ("form", "chunk", "at", "kind", "value"),
    [
        *(("AIFF", b"COMM", 8, ">h", channels) for channels in (2, 3, 0)),
        *(("AIFF", b"COMM", 14, ">h", bits) for bits in (8, 24, 32)),
        *(("AIFF", b"COMM", 10, ">I", count) for count in (SAMPLES // 2, 2 * SAMPLES)),
        *(("CAF", b"desc", 36, ">I", channels) for channels in (2, 3)),
        ("CAF", b"desc", 40, ">I", 8),
    ],
)
def test_an_aiff_or_caf_of_other_channels_bits_or_samples_is_refused(
    form: str, chunk: bytes, at: int, kind: str, value: int
) -> None:
    data = encoded(form)
    with pytest.raises(AudioError, match="says .* channels .*its header is wrong"):
        audio.load(put(data, data.index(chunk) + at, kind, value))


@pytest.mark.parametrize(
    "subtype", ["PCM_S8", "PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"]
)
def test_an_aiff_of_any_kind_of_samples_is_whole(subtype: str) -> None:
    for odd in (0, 1):  # of an odd number of bytes one is padding
        wav = sweep()[odd:]
        file = io.BytesIO()
        soundfile.write(file, wav, RATE, subtype, format="AIFF")
        assert len(audio.load(file.getvalue())) - len(wav) in (0, 1)  # the padding, of one byte a sample


@pytest.mark.parametrize(
    "tail",
    [
        bytes(3000),
        b"TAG" + bytes(125),
        b"LIST\x1a\0\0\0INFOISFT\x0e\0\0\0Lavf58.29.100\0",
        b"LIST\x1a\0\0\0INFO",
    ],
)
@pytest.mark.parametrize("form", ["WAV", "AU", "W64", "FLAC"])
def test_padding_and_tags_after_the_sound_are_left_out(form: str, tail: bytes) -> None:
    if form != "WAV" and tail.startswith(b"LIST"):
        pytest.skip("a chunk of WAV files")
    np.testing.assert_array_equal(audio.load(encoded(form) + tail), audio.load(encoded(form)))


@pytest.mark.parametrize("form", ["WAV", "AU", "AVR", "MPC2K", "NIST", "VOC", "MP3"])
def test_other_bytes_after_the_sound_are_no_sound(form: str) -> None:
    subtype = "MPEG_LAYER_III" if form == "MP3" else "PCM_16"
    with pytest.raises(AudioError, match="goes on for 1000|its header says|is damaged at byte"):
        audio.load(encoded(form, subtype) + b"\x12\x34" * 500)


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
def test_a_tag_before_the_sound_is_skipped(form: str) -> None:
    tag = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)
    np.testing.assert_array_equal(audio.load(tag + encoded(form)), audio.load(encoded(form)))


@pytest.mark.parametrize(
    "head", [b"ID3\x04\0\0\0\0\0\x0a", b"RIFF", b"fLaC", b"OggS", b"FORM", b"caff", b"\xff\xfb\x90"]
)
def test_a_file_that_ends_within_its_first_bytes_is_refused(head: bytes) -> None:
    for size in range(len(head) + 1):
        with pytest.raises(AudioError):
            audio.load(head[:size])


# FLAC and Ogg -----------------------------------------------------------------------------------------------


def with_total(data: bytes, total: int) -> bytes:
    return put(data, 18, ">Q", int.from_bytes(data[18:26], "big") >> 36 << 36 | total)


@pytest.mark.parametrize("channels", [1, 2])
def test_flac_of_unknown_length_is_whole(channels: int) -> None:
    wav = np.stack([sweep(), 0.5 * sweep()][:channels], 1)
    data = encoded("FLAC", wav=wav)
    unknown = with_total(data, 0)
    assert soundfile.info(io.BytesIO(unknown)).frames > 1 << 40
    np.testing.assert_array_equal(audio.load(unknown), audio.load(data))
    assert audio.load(unknown, begin=1.0, end=2.5).shape == (24000,)
    for share in (0.3, 0.9, 0.999):
        with pytest.raises(AudioError, match="truncated"):
            audio.load(unknown[: int(share * len(data))])


@pytest.mark.parametrize(("total", "message"), [(1, "its header says 1"), (SAMPLES + 1, "truncated")])
def test_flac_of_another_length_than_stated_is_refused(total: int, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        audio.load(with_total(encoded("FLAC"), total))


def test_checksums_are_those_of_the_standards() -> None:
    data = np.random.default_rng(0).bytes(500)

    def slow(polynomial: int, bits: int) -> int:
        value = 0
        for byte in data:
            value ^= byte << bits - 8
            for _ in range(8):
                value = (value << 1) ^ (polynomial if value >> bits - 1 else 0)
        return value & (1 << bits) - 1

    assert xiph._crc8(data) == slow(0x107, 8)
    assert xiph._crc16(data) == slow(0x18005, 16)
    assert xiph._crc(data) == slow(0x104C11DB7, 32)


def pages(data: bytes) -> list[bytes]:
    return [b"OggS" + page for page in data.split(b"OggS")[1:]]


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_is_refused_without_its_end_with_a_hole_and_with_another_bit(subtype: str) -> None:
    data = encoded("OGG", subtype)
    found = pages(data)
    assert len(found) > 4 and b"".join(found) == data
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 16
    for bad, message in (
        (b"".join(found[:-1]), "lacks the mark of its end.*ffmpeg"),
        (b"".join(found[:3] + found[4:]), "damaged or truncated at byte"),
        (bytes(flipped), "damaged"),
        (data + data, "several Ogg streams"),
        (data + b"more", "truncated|damaged"),
    ):
        with pytest.raises(AudioError, match=message):
            audio.load(bad)


# MP3 --------------------------------------------------------------------------------------------------------


def bare(rate: int, **options: float | str) -> bytes:
    """An MP3 stream without a Xing header, as one that is written into a pipe."""
    file = io.BytesIO()
    wav = sweep(rate, 5 * rate)
    soundfile.write(file, wav, rate, "MPEG_LAYER_III", format="MP3", **options)
    data = file.getvalue()
    first = mpeg.parse(data[:4])
    assert first is not None and data[first.info : first.info + 4] in (b"Xing", b"Info")
    return data[first.size :]


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize(("rate", "frame"), [(44100, 1152), (16000, 576), (8000, 576)])
def test_mp3_without_a_header_of_its_own_is_whole(rate: int, frame: int, mode: str) -> None:
    data = bare(rate, bitrate_mode=mode, compression_level=0.7)
    count = next(n for n in range(1, 2000) if data_ends(data, n))
    found = audio.load(data, rate)
    assert len(found) == count * frame - 529 >= 5 * rate
    wav = sweep(rate, 5 * rate)
    delays = [np.dot(found[at : at + 4 * rate], wav[: 4 * rate]) for at in range(3000)]
    # mpg123 leaves out the 529 samples of delay that every MP3 decoder has
    late = found[int(np.argmax(delays)) :][: len(wav)]  # the encoder's delay
    assert np.corrcoef(late, wav[: len(late)])[0, 1] > 0.8
    for share in (0.1, 0.5, 0.9):
        short = data[: int(share * len(data)) // 24 * 24 + 7]  # no frame ends there
        with pytest.raises(AudioError, match="truncated"):
            audio.load(short, rate)


def data_ends(data: bytes, count: int) -> bool:
    at = 0
    for _ in range(count):
        frame = mpeg.parse(data[at : at + 4])
        if frame is None:
            return False
        at += frame.size
    return at == len(data)


def test_tags_around_mp3_are_no_frames_and_two_files_in_one_are_both_read() -> None:
    data = bare(RATE)
    tag = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)
    plain = audio.load(data)
    for other in (tag + data, data + b"TAG" + bytes(125), tag + data + bytes(700), data + tag):
        np.testing.assert_array_equal(audio.load(other), plain)
    assert len(audio.load(data + data)) == 2 * len(plain) + 529
    assert len(audio.load(data + tag + data)) == 2 * len(plain) + 529


def test_mp3_that_loses_its_sync_is_refused_also_at_once() -> None:
    data = encoded("MP3", "MPEG_LAYER_III")
    first = mpeg.parse(data[:4])
    assert first is not None
    for at in (2, first.size, first.size + 1):
        with pytest.raises(AudioError, match="is damaged at byte"):
            audio.load(put(data, at, ">H", 0x00F1))


def test_mp3_in_wav_is_read() -> None:
    data = bare(RATE)
    head = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 4000, 1, 0, 12, 1, 2, 576, 1, 1105)
    wave = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(data)) + data
    riff = b"RIFF" + struct.pack("<I", len(wave)) + wave
    np.testing.assert_array_equal(audio.load(riff), audio.load(data))
    with pytest.raises(AudioError, match="truncated"):
        audio.load(riff[: len(riff) // 2])


# Limits -----------------------------------------------------------------------------------------------------


def test_the_limit_is_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    silence = encoded("FLAC", wav=np.zeros(40 * RATE, np.float32))
    (tmp_path / "long.flac").write_bytes(silence)
    monkeypatch.setenv(LIMIT, "0.01")  # 36 s
    for source in (tmp_path / "long.flac", silence, with_total(silence, 0), (np.zeros(40 * RATE), RATE)):
        with pytest.raises(AudioError, match=r"limit of 0\.01 h, for instance with GPA_AUDIO_HOURS="):
            audio.load(source)
    assert len(audio.load(tmp_path / "long.flac", begin=2, end=34)) == 32 * RATE
    monkeypatch.setenv(LIMIT, "0.02")
    assert len(audio.load(silence)) == 40 * RATE
    for bad in ("no", "-1", "0", "nan", "1e9"):
        monkeypatch.setenv(LIMIT, bad)
        with pytest.raises(UsageError, match=f"{LIMIT}={bad} is no number of hours"):
            audio.load(silence)


def test_a_stream_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            assert size > 0
            self.given += size
            return b"RIFF" + bytes(size - 4)

    monkeypatch.setenv(LIMIT, "0.01")
    stream = Endless()
    with pytest.raises(AudioError, match="has more than 6 MiB, and a stream is held"):
        audio.load(stream)  # type: ignore[arg-type]
    assert stream.given < 10 << 20


def test_headers_that_promise_much_take_little_memory() -> None:
    code = """
import resource, sys
from gpa import audio
from gpa.errors import AudioError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        for block in audio.blocks(path):
            pass
    except AudioError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    made = {
        "total.flac": with_total(encoded("FLAC"), 2**36 - 1),
        "unknown.flac": with_total(encoded("FLAC"), 0),
        "wide.au": put(put(encoded("AU"), 20, ">I", 1024), 16, ">I", 768000),
        "one.wav": put(encoded("WAV")[:65536], 24, "<I", 1),
    }
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name, data in made.items():
            (Path(folder) / name).write_bytes(data)
        command = [sys.executable, "-c", code, *(str(Path(folder) / name) for name in made)]
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(run.stdout.split()[-1]) < 200, run.stdout  # MiB


# Opened once ------------------------------------------------------------------------------------------------


def fed(path: Path, data: bytes) -> threading.Thread:
    os.mkfifo(path)
    thread = threading.Thread(target=path.write_bytes, args=(data,), daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(("form", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "OPUS")])
@pytest.mark.parametrize("read", [audio.load, lambda path: np.concatenate(list(audio.blocks(path)))])
def test_a_fifo_is_read_once(tmp_path: Path, form: str, subtype: str, read: Callable) -> None:
    data = encoded(form, subtype)
    writer = fed(tmp_path / "fifo", data)
    np.testing.assert_array_equal(read(tmp_path / "fifo"), audio.load(data))
    writer.join(5)
    assert not writer.is_alive()


def test_a_stream_larger_than_memory_is_for_is_held_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpa.audio.opening._MEMORY", 1 << 16)
    monkeypatch.setattr("gpa.audio.opening._BLOCK", 1 << 14)
    data = encoded("WAV")
    np.testing.assert_array_equal(audio.load(io.BytesIO(data)), audio.load(data))


def test_a_stream_that_breaks_is_an_error() -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError(28, "No space left on device")

    with pytest.raises(AudioError, match="cannot be read to its end .*No space left.*the space in"):
        audio.load(Broken())  # type: ignore[arg-type]


def test_a_name_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    Path(path).write_bytes(encoded("WAV"))
    shown = re.escape(f"{tmp_path}/caf\\xe9.wav: this file name is not UTF-8: rename the file")
    for source in (path, Path(path), os.fsencode(path) and Path(path)):
        with pytest.raises(AudioError, match=shown):
            audio.load(source)
    with pytest.raises(AudioError, match=shown):
        audio.save(path, sweep(), RATE)


# Samples ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [-1.0, -0.6])
def test_channels_that_cancel_each_other_give_one(gain: float) -> None:
    wav = sweep()
    for stereo in (np.stack([wav, gain * wav], 1), np.stack([gain * wav, wav, wav, wav], 1)):
        data = encoded("WAV", "FLOAT", stereo)
        for source in (data, (stereo, RATE)):
            with pytest.warns(AudioWarning, match="opposite phase.*alone is used"):
                found = audio.load(source)
            assert abs(np.corrcoef(found, wav)[0, 1]) > 0.99 and np.abs(found).max() == np.abs(wav).max()


@pytest.mark.filterwarnings("error")
def test_other_channels_are_averaged() -> None:
    wav, other = sweep(), np.random.default_rng(1).standard_normal(SAMPLES).astype(np.float32) / 9
    for stereo in ([wav, wav], [wav, other], [wav, 0 * wav], [wav, -0.01 * wav], [wav, wav, 0.5 * wav]):
        found = audio.load((np.stack(stereo, 1), RATE))
        np.testing.assert_allclose(found, np.mean(stereo, 0), atol=1e-7)


def test_silence_before_inverted_channels_decides_nothing() -> None:
    wav = np.concatenate([np.zeros(25 * RATE, np.float32), sweep()])
    with pytest.warns(AudioWarning, match="opposite phase"):
        found = audio.load((np.stack([wav, -wav], 1), RATE))
    np.testing.assert_array_equal(found[25 * RATE :], wav[25 * RATE :])


@pytest.mark.parametrize(("full", "bits"), [(127, 8), (32768, 16), (9000, 16), (8388608, 24), (2**31, 32)])
def test_integers_in_floats_are_refused_by_that_name(full: float, bits: int) -> None:
    wav = sweep() / np.abs(sweep()).max() * np.float32(full)
    for source in (encoded("WAV", "FLOAT", wav), (wav, RATE)):
        with pytest.raises(AudioError, match=f"they are {bits}-bit integers, and full scale is 1: divide"):
            audio.load(source)
    assert np.abs(audio.load((4 * wav / full, RATE))).max() == pytest.approx(4)  # loud, yet sound


# ffmpeg -----------------------------------------------------------------------------------------------------

FOREIGN = {
    "MP4/M4A": b"\0\0\0\x20ftypM4A \0\0\0\0",
    "WebM/Matroska": b"\x1aE\xdf\xa3\x9f",
    "WMA/ASF": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\0\xaa",
    r"AAC \(ADTS\)": b"\xff\xf1\x50\x80\x2e\x7f\xfc",
    "AMR": b"#!AMR\n",
    "AVI": b"RIFF\x10\0\0\0AVI LIST",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_without_ffmpeg_its_formats_are_refused_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AudioError, match=f"is {name}, which needs ffmpeg, and it is not installed: install"):
        audio.load(FOREIGN[name] + bytes(500))


PIPED = {
    "m4a": ("-c:a", "aac", "-f", "mp4", "-movflags", "frag_keyframe+empty_moov"),
    "aac": ("-c:a", "aac", "-f", "adts"),
    "webm": ("-c:a", "libopus", "-f", "webm"),
    "mka": ("-c:a", "flac", "-f", "matroska"),
    "wma": ("-c:a", "wmav2", "-f", "asf"),
    "oggflac": ("-c:a", "flac", "-f", "ogg"),
    "mp3": ("-c:a", "libmp3lame", "-q:a", "4", "-f", "mp3"),
    "flac": ("-f", "flac"),
    "caf": ("-f", "caf"),
    "w64": ("-f", "w64"),
    "wav": ("-f", "wav"),
}
ENDLESS = ("wav", "w64", "caf", "m4a")  # their length is not in the stream, or not to the sample


@needs_ffmpeg
@pytest.mark.parametrize("name", PIPED)
def test_what_ffmpeg_writes_into_a_pipe_is_whole_or_refused(name: str) -> None:
    data = ffmpeg(*PIPED[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = audio.load(data)
    assert -0.1 < len(found) / RATE - SAMPLES / RATE < 0.2
    wav = sweep()
    delays = [abs(np.dot(found[at : at + 4 * RATE], wav[: 4 * RATE])) for at in range(4000)]
    assert max(delays) > 0.7 * np.dot(wav[: 4 * RATE], wav[: 4 * RATE])
    if name not in ENDLESS:
        for share in (0.3, 0.5, 0.9):
            with pytest.raises(AudioError, match="truncated|damaged|not readable"):
                audio.load(data[: int(share * len(data))])


@needs_ffmpeg
def test_a_path_a_stream_and_bytes_go_through_ffmpeg_alike(tmp_path: Path) -> None:
    data = ffmpeg("-c:a", "libopus", "-f", "webm")
    (tmp_path / "clip.webm").write_bytes(data)
    expected = audio.load(data)
    for source in (tmp_path / "clip.webm", io.BytesIO(data)):
        np.testing.assert_array_equal(audio.load(source), expected)
    part = audio.load(data, begin=1.0, end=2.0)  # Opus is at 48 kHz: the resampler's edges differ
    np.testing.assert_allclose(part[200:-200], expected[RATE + 200 : 2 * RATE - 200], atol=1e-6)
    assert audio.seconds(tmp_path / "clip.webm") == pytest.approx(SAMPLES / RATE, abs=0.1)
    with pytest.raises(AudioError, match="is no span of it"):
        audio.load(data, begin=1.0, end=9.0)


# The commands -----------------------------------------------------------------------------------------------


def gpa(*words: str | Path, cwd: Path, **options: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own; `options` are environment variables."""
    command = [sys.executable, "-m", "gpa", *map(os.fspath, words)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **options}
    run = subprocess.run(command, capture_output=True, cwd=cwd, env=env, timeout=120)
    assert b"Traceback" not in run.stderr, run.stderr.decode()
    return run


def test_a_batch_goes_on_after_files_that_cannot_be_read(tiny: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.wav")
    (tmp_path / odd).write_bytes(encoded("WAV"))
    (tmp_path / "cut.w64").write_bytes(encoded("W64")[:50000])
    (tmp_path / "phone.m4a").write_bytes(FOREIGN["MP4/M4A"] + bytes(500))
    (tmp_path / "good.au").write_bytes(encoded("AU"))
    writer = fed(tmp_path / "pipe", encoded("FLAC"))
    files = [odd, "cut.w64", "phone.m4a", "pipe", "good.au"]
    model = ("--model", tiny, "--max-new-tokens", "4", "--json")
    run = gpa("asr", *files, *model, cwd=tmp_path, PATH=str(tmp_path))
    writer.join(5)
    assert run.returncode == AudioError.exit_code
    rows = [json.loads(line) for line in run.stdout.decode("utf-8").splitlines()]
    assert [row["path"] for row in rows] == files
    said = ["not UTF-8: rename", "is truncated", "is MP4/M4A, which needs ffmpeg", "", ""]
    assert all(what in row.get("error", "") for what, row in zip(said, rows, strict=True))
    assert ["error" in row for row in rows] == [True, True, True, False, False]
    assert rows[3]["duration"] == rows[4]["duration"] == pytest.approx(SAMPLES / RATE, abs=1e-3)


def test_vc_takes_pipes_and_refuses_a_name_that_is_not_utf8_first(tiny: Path, tmp_path: Path) -> None:
    writers = [
        fed(tmp_path / "in", encoded("WAV", "GSM610")),
        fed(tmp_path / "voice", encoded("OGG", "OPUS")),
    ]
    model = ("--model", tiny, "--max-new-tokens", "4")
    run = gpa("vc", "in", "--voice", "voice", "-o", "out.wav", *model, cwd=tmp_path)
    assert run.returncode == 0, run.stderr.decode()
    for writer in writers:
        writer.join(5)
    assert soundfile.info(tmp_path / "out.wav").frames > 0
    run = gpa("vc", "gone.wav", "-o", os.fsdecode(b"v\xe9.wav"), *model, cwd=tmp_path)
    assert run.returncode == AudioError.exit_code and b"v\\xe9.wav: this file name is not UTF-8" in run.stderr
