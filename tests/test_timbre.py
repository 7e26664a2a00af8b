"""A voice's timbre: measured against what a decoder draws, drawn, kept in voices, refused if strange."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import speechlike
from gpa import GPA, audio
from gpa.codec import bicodec
from gpa.codec.base import AudioTokens
from gpa.codec.bicodec import BiCodec
from gpa.codec.bicodec_config import WaveConfig
from gpa.codec.harmonic import FLOOR, HarmonicDecoder
from gpa.codec.timbre import CENTRE, GAINS, SHIFTS, STEP, Timbre, measure
from gpa.errors import CheckpointError, UsageError
from gpa.evals.suites import bits_per_second
from gpa.models.gpa.outputs_gpa import Voice
from gpa.train.export import assemble

BANDS, LEAST = 20, math.log(FLOOR) / 2
MINI = Path(__file__).parents[1] / "gpa" / "assets" / "gpa-mini"


@pytest.fixture(scope="module")
def decoder() -> HarmonicDecoder:
    torch.manual_seed(0)
    return HarmonicDecoder(WaveConfig(8, 16, hidden=32, layers=1, bands=BANDS, hop_length=320), 16_000).eval()


@pytest.fixture(scope="module")
def mini() -> GPA:
    if not MINI.is_dir():
        pytest.skip("no shipped model")
    return GPA.from_pretrained(MINI, offline=True)


def log_mels(frames: int = 400, seed: int = 0) -> torch.Tensor:
    """Bands (K, T) around CENTRE."""
    generator = torch.Generator().manual_seed(seed)
    return CENTRE + 0.4 * torch.randn(BANDS, frames, generator=generator)


def test_the_line_between_two_clips_is_found() -> None:
    ours = log_mels()
    found = measure(math.exp(0.3) * (ours - CENTRE) + CENTRE + 0.5, ours, LEAST)
    assert found.gain == (3,) * BANDS and found.shift == (5,) * BANDS
    other = torch.where(torch.arange(BANDS)[:, None] < 7, ours + 0.2, ours - 0.4)
    assert measure(other, ours, LEAST) == Timbre((0,) * BANDS, (2,) * 7 + (-4,) * 13)


def test_what_it_finds_stays_in_range_and_equal_sound_asks_for_nothing() -> None:
    ours = log_mels()
    assert not any((*(same := measure(ours, ours, LEAST)).gain, *same.shift))
    wild = measure(9 * ours + 50, ours, LEAST)
    assert set(wild.gain) == {GAINS[1]} and set(wild.shift) == {SHIFTS[1]}
    assert Timbre.from_dict(wild.to_dict()) == wild


def test_silence_asks_for_nothing_and_a_short_clip_for_less() -> None:
    ours = log_mels()
    silent = measure(torch.full_like(ours, LEAST), ours, LEAST)
    assert not any((*silent.gain, *silent.shift))
    few = measure(log_mels(40) + 1.0, log_mels(40), LEAST)
    assert all(0 < step < 5 for step in few.shift)
    assert measure(ours[:, :1], ours[:, :1], LEAST).shift == (0,) * BANDS


def test_a_decoder_draws_a_timbre(decoder: HarmonicDecoder) -> None:
    frames = decoder(torch.randn(1, 8, 60))
    nothing = Timbre((0,) * BANDS, (0,) * BANDS)
    assert torch.equal(decoder.retouched(frames, nothing), frames)
    louder = decoder.retouched(frames, Timbre((0,) * BANDS, (5,) * BANDS))
    assert torch.allclose(louder[:, : 2 * BANDS], frames[:, : 2 * BANDS] + 5 * STEP, atol=1e-5)
    assert torch.equal(louder[:, 2 * BANDS :], frames[:, 2 * BANDS :])
    tilted = Timbre((0,) * BANDS, tuple(range(-10, 10)))
    before, after = (
        decoder.log_mel(decoder.render(f))[0].mean(1) for f in (frames, decoder.retouched(frames, tilted))
    )
    gained = (after - before) / STEP
    assert (gained.diff() > 0).all() and (gained[2:-2] - torch.arange(-8, 8)).abs().max() < 2


def test_a_decoder_refuses_the_timbre_of_another(decoder: HarmonicDecoder) -> None:
    with pytest.raises(UsageError, match="3 bands; this decoder draws 20"):
        decoder.retouched(decoder(torch.randn(1, 8, 5)), Timbre((0,) * 3, (0,) * 3))


@pytest.mark.parametrize(
    "raw",
    [
        None,
        [],
        {"gain": [0]},
        {"gain": [0], "shift": [0, 0]},
        {"gain": [0.5], "shift": [0]},
        {"gain": [True], "shift": [0]},
        {"gain": [GAINS[1] + 1], "shift": [0]},
        {"gain": [0], "shift": [SHIFTS[0] - 1]},
    ],
)
def test_files_are_checked(raw: object) -> None:
    with pytest.raises(CheckpointError, match=r"v\.json: a timbre is two equal lists"):
        Timbre.from_dict(raw, "v.json")


def test_resynthesis_comes_nearer_to_a_voice_unlike_any(mini: GPA) -> None:
    """A shipped recording through a filter: its bands' levels come back, its words and timing stay."""
    wav = audio.load(MINI / "golden" / "audio_0.wav")
    wav = np.convolve(wav, [1.0, 0.0, 0.0, 0.7, 0.0, -0.5], "same").astype(np.float32) / 2
    tokens = mini.codec.encode((wav, 16_000))
    assert tokens.timbre is not None and 500 < tokens.timbre.bits < 700
    without = replace(tokens, timbre=None)
    more = bits_per_second(mini.codec.spec, tokens) - bits_per_second(mini.codec.spec, without)
    assert more * tokens.codes.shape[1] / mini.codec.spec.frame_rate == pytest.approx(tokens.timbre.bits)
    plain, drawn = mini.codec.decode(without), mini.codec.decode(tokens)
    assert plain.shape == drawn.shape
    decoder = mini.codec.model.decoder
    assert isinstance(decoder, HarmonicDecoder)

    def bands(sound: np.ndarray) -> torch.Tensor:
        sound = np.pad(sound, (0, len(plain) - len(sound)))
        mel = decoder.log_mel(
            torch.from_numpy(sound / np.sqrt(np.square(sound).mean()) * 0.05).float()[None]
        )[0]
        return mel[:, mel.mean(0) > mel.mean(0).quantile(0.3)].mean(1)

    real = bands(wav)
    assert (bands(drawn) - real).abs().mean() < 0.6 * (bands(plain) - real).abs().mean()


def test_voices_keep_their_timbre_and_speak_with_it(
    mini: GPA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = mini.voice(MINI / "golden" / "audio_1.wav", name="eve")
    assert voice.timbre is not None
    assert not any(v.timbre for v in mini.voices.values()), "the decoder has learnt these (docs/log.md)"
    voice.save(tmp_path / "eve.json")
    assert Voice.load(tmp_path / "eve.json") == voice
    source = MINI / "golden" / "audio_0.wav"
    with_it = mini.vc(source, voice=tmp_path / "eve.json", mode="codec")
    without = mini.vc(source, voice=replace(voice, timbre=None), mode="codec")
    assert np.array_equal(with_it.tokens, without.tokens) and not np.array_equal(with_it.wav, without.wav)
    tree = json.loads((tmp_path / "eve.json").read_text())
    tree["timbre"]["decoder"] = "0" * 64
    (tmp_path / "old.json").write_text(json.dumps(tree))
    told: list[str] = []
    monkeypatch.setattr(bicodec.logger, "warning", lambda text, *what: told.append(text % what))
    assert mini.resolve_voice(tmp_path / "old.json") == replace(voice, name="eve", timbre=None)
    assert len(told) == 1 and "make it again" in told[0]


@pytest.mark.parametrize("timbres", [True, False])
def test_voices_are_shipped_with_a_timbre_or_without(mini: GPA, timbres: bool, tmp_path: Path) -> None:
    voices = {"eve": MINI / "golden" / "audio_1.wav"}
    assert isinstance(mini.codec, BiCodec)
    path = assemble(MINI, mini.codec, tmp_path / "out", voices=voices, timbres=timbres)
    found, wanted = Voice.load(path / "voices" / "eve.json"), mini.voice(voices["eve"], name="eve")
    assert found.codes == wanted.codes and found.timbre == (wanted.timbre if timbres else None)
    with pytest.raises(UsageError, match=r"lists \['wordz'\]: known are words, ngrams"):
        assemble(MINI, mini.codec, tmp_path / "no", lists={"wordz": MINI / "words.txt"})


@pytest.mark.parametrize(
    "wav", [np.zeros(16_000, np.float32), np.full(800, 0.1, np.float32)], ids=["silent", "short"]
)
def test_a_clip_without_a_voice_has_a_timbre_that_does_nothing_bad(mini: GPA, wav: np.ndarray) -> None:
    tokens = mini.codec.encode((wav, 16_000))
    assert tokens.timbre is not None and np.isfinite(mini.codec.decode(tokens)).all()
    if not wav.any():
        assert not any((*tokens.timbre.gain, *tokens.timbre.shift))


def test_a_codec_without_bands_has_none_and_takes_none(tiny: Path) -> None:
    tiny_codec = BiCodec.from_pretrained(tiny / "codec")
    tokens = tiny_codec.encode((speechlike(1.0), 16_000))
    assert tokens.timbre is None
    with pytest.raises(UsageError, match="takes no timbre"):
        tiny_codec.decode(AudioTokens(tokens.codes, tokens.global_, Timbre((0,) * 80, (0,) * 80)))
