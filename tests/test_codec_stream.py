"""Streamed decoding of every codec is its decoding, however codes are cut, at a cost linear in them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import EncodecModel

from conftest import speechlike
from gpa.codec import load_codec
from gpa.codec.base import AudioTokens, CodecSpec, DecodeAgain, Stream, TokenCodec, block_end
from gpa.codec.bicodec import BiCodec
from gpa.codec.bicodec_config import BiCodecConfig
from gpa.codec.bicodec_model import BiCodecModel
from gpa.codec.hf import HFCodec
from gpa.codec.lookahead import bounded
from gpa.codec.source_filter import Excitation
from gpa.codec.voice import Voice
from gpa.codec.waveform import WaveGenerator
from gpa.errors import UsageError, VocabError
from gpa.nn.convnext import FrameConv, SamplingBlock
from gpa.nn.incremental import BlockDecoder, Each, Layer, Series
from test_hf_codec import dac, encodec, encodec_config, filled, mimi

FRAMES = 61


def constant() -> EncodecModel:
    return filled(EncodecModel(encodec_config(pad_mode="constant")))


def centred() -> EncodecModel:
    return filled(EncodecModel(encodec_config(use_causal_conv=False)))


def normed() -> EncodecModel:
    return filled(EncodecModel(encodec_config(norm_type="time_group_norm")))


MAKE: dict[str, Callable[[], torch.nn.Module]] = {
    "encodec": encodec,
    "encodec-constant": constant,
    "encodec-centred": centred,
    "encodec-normed": normed,
    "mimi": mimi,
    "dac": dac,
}
NAMES = [*MAKE, "gpa-mini", "published", "tiny", "near"]
BLOCKWISE = [name for name in NAMES if name != "encodec-normed"]  # whose norms hear the whole clip


@pytest.fixture(scope="module")
def codecs(mini_codec: BiCodec, replica: Path, tiny: Path) -> dict[str, TokenCodec]:
    torch.manual_seed(0)
    made: dict[str, TokenCodec] = {name: HFCodec(make()) for name, make in MAKE.items()}  # type: ignore[arg-type]
    published, small = load_codec(replica / "BiCodec"), load_codec(tiny / "codec")
    return {**made, "gpa-mini": mini_codec, "published": published, "tiny": small, "near": near(small)}


def near(codec: TokenCodec) -> BiCodec:
    """The tiny codec with pulses and noise and a network that hears 5 of its frames ahead, the sound 3."""
    assert isinstance(codec, BiCodec)
    config = codec.config.to_dict()
    wave: dict[str, Any] = {"channels": 16, "hidden": 32, "layers": 2, "bands": 20, "lookahead": 0}
    wave["refiner"] = {"dim": 16, "hidden": 32, "layers": 1}
    wave["input_channel"] = config["decoder"]["input_channel"]
    made = {**config, "prenet": {**config["prenet"], "lookahead": 5}, "decoder": wave}
    model = BiCodecModel(BiCodecConfig.from_dict(made))
    torch.nn.init.normal_(model.decoder.refiner.out.weight, std=0.5)  # type: ignore[union-attr, arg-type]
    return BiCodec(model, codec.features)


def test_a_bounded_look_ahead_is_kept(codecs: dict[str, TokenCodec]) -> None:
    """160 ms, of which the network hears 100 and the windows of its sound 60; one id less is missed."""
    codec = codecs["near"]
    assert codec.spec.context == (None, 4) and codec.spec.hop_length == 640
    (tokens, voice) = clip(codec)
    whole = codec.decode(tokens, voice)
    for ahead, same in ((4, True), (3, False)):
        codes = tokens.codes.copy()
        codes[0, 31 + ahead :] = (codes[0, 31 + ahead :] + 5) % 64
        other = codec.decode(AudioTokens(codes), voice)
        assert np.array_equal(other[: 31 * 640], whole[: 31 * 640]) == same


@pytest.fixture(scope="module")
def mini_codec() -> BiCodec:
    if not mini_codec_folder().is_dir():
        pytest.skip("gpa-mini is not here")
    return load_codec(mini_codec_folder() / "codec")


def mini_codec_folder() -> Path:
    return Path(__file__).parent.parent / "gpa" / "assets" / "gpa-mini"


def clip(codec: TokenCodec, frames: int = FRAMES) -> tuple[AudioTokens, Voice | None]:
    random, spec = np.random.default_rng(0), codec.spec
    codes = random.integers(0, spec.codebook_size, (spec.n_codebooks, frames))
    voice = tuple(random.integers(0, spec.global_size, spec.n_global).tolist()) if spec.n_global else ()
    return AudioTokens(codes), Voice(voice) if voice else None


def parts(codes: np.ndarray, cuts: list[int]) -> Iterator[AudioTokens]:
    edges = [0, *cuts, codes.shape[1]]
    return (AudioTokens(codes[:, a:b]) for a, b in zip(edges, edges[1:], strict=False))


def streamed(stream: Stream, tokens: AudioTokens, cuts: list[int]) -> list[np.ndarray]:
    """What each push gives, then what finishing does."""
    return [stream.push(part) for part in parts(tokens.codes, cuts)] + [stream.finish()]


CUTS = {
    **{f"by {n}": list(range(n, FRAMES, n)) for n in (1, 2, 3, 7, 50)},
    "random": sorted(np.random.default_rng(1).integers(0, FRAMES, 9).tolist()),
    "with empty pushes": [0, 0, 7, 7, 30, 30, 30, FRAMES],
    "all at once": [],
}


@pytest.mark.parametrize("name", NAMES)
def test_streamed_is_decoded_to_the_bit(codecs: dict[str, TokenCodec], name: str) -> None:
    codec = codecs[name]
    tokens, voice = clip(codec)
    whole = codec.decode(tokens, voice)
    assert whole.shape == (FRAMES * codec.spec.hop_length,) and whole.dtype == np.float32
    for cuts in CUTS.values():
        found = np.concatenate(streamed(codec.stream(voice), tokens, cuts))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_final_is_out(codecs: dict[str, TokenCodec], name: str) -> None:
    """Frames wait for their block and for the right context, never longer; without a context, for the end."""
    codec = codecs[name]
    (tokens, voice), hop, context = clip(codec), codec.spec.hop_length, codec.spec.context
    out, stream = 0, codec.stream(voice)
    for t, part in enumerate(parts(tokens.codes, list(range(1, FRAMES))), 1):
        out += len(stream.push(part))
        through = max((end for end in map(block_end, range(9)) if end <= t), default=0)
        assert out <= through * hop if context else out == 0
        if context:
            assert out >= (through - context[1]) * hop
    assert len(stream.finish()) == FRAMES * hop - out


@pytest.mark.parametrize("name", NAMES)
def test_streams_do_not_hear_each_other(codecs: dict[str, TokenCodec], name: str) -> None:
    codec = codecs[name]
    tokens, voice = clip(codec)
    other = AudioTokens(tokens.codes[:, ::-1].copy())
    one, two = codec.stream(voice), codec.stream(voice)
    cuts = zip(parts(tokens.codes, [9, 40]), parts(other.codes, [30, 31]), strict=True)
    found = [(one.push(a), two.push(b)) for a, b in cuts]
    found.append((one.finish(), two.finish()))
    for wavs, expected in zip(zip(*found, strict=True), (tokens, other), strict=True):
        np.testing.assert_array_equal(np.concatenate(wavs), codec.decode(expected, voice))


def test_clips_shorter_than_the_context_and_one_of_nothing(codecs: dict[str, TokenCodec]) -> None:
    for codec in codecs.values():
        for frames in (1, 2, 5):
            tokens, voice = clip(codec, frames)
            found = np.concatenate(streamed(codec.stream(voice), tokens, [frames // 2]))
            np.testing.assert_array_equal(found, codec.decode(tokens, voice))
        assert codec.stream(voice).finish().size == 0


def test_wrong_use_is_refused(codecs: dict[str, TokenCodec]) -> None:
    for codec in codecs.values():
        tokens, voice = clip(codec, 2)
        for wrong in (tokens.codes + codec.spec.codebook_size, tokens.codes[0], tokens.codes / 2):
            with pytest.raises(VocabError, match=codec.spec.name):
                codec.stream(voice).push(AudioTokens(wrong))
        with pytest.raises(UsageError, match="lookahead -1"):
            codec.stream(voice, lookahead=-1)
        stream = codec.stream(voice)
        stream.run(tokens)
        assert stream.finish().size == 0  # the rest comes once
        with pytest.raises(UsageError, match="finished"):
            stream.push(tokens)


# The network in one pass ------------------------------------------------------------------------------------


def generator(rates: tuple[int, ...], kernels: tuple[int, ...]) -> dict[str, Any]:
    return {"channels": 2 ** len(rates) * 4, "rates": rates, "kernel_sizes": kernels}


BANDS = {"channels": 16, "hidden": 32, "layers": 2, "bands": 20, "hop_length": 64}
SHAPES: dict[str, tuple[tuple[int, ...], dict[str, Any], int]] = {  # ratios, decoder, samples of a latent
    "generator as published": ((1, 1), generator((8, 5, 4, 2), (16, 11, 8, 4)), 320),
    "generator, kernels of one rate": ((1,), generator((4, 2), (4, 2)), 8),
    "generator, long kernels": ((2,), generator((2, 3), (8, 9)), 6),
    "generator, odd ratios": ((3, 2), generator((2,), (4,)), 2),
    "spectrum": ((2,), {"channels": 8, "hidden": 16, "layers": 2, "n_fft": 64, "hop_length": 16}, 16),
    "bands": ((2,), BANDS, 64),
    "bands, sharpened": ((1,), {**BANDS, "sharpen": (0.5, 0.5), "voiced_to": 3000.0}, 64),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_compute_what_the_network_does_at_once(codecs: dict[str, TokenCodec], shape: str) -> None:
    """In float64, where nothing hides: layer by layer, at both ends and across blocks."""
    ratios, wave, hop = SHAPES[shape]
    small: Any = codecs["tiny"]
    tree = small.config.to_dict()
    tree["prenet"] |= {"sample_ratios": ratios}
    tree["decoder"] = {"input_channel": tree["decoder"]["input_channel"], **wave}
    tree["latent_hop_length"] = int(np.prod(ratios)) * hop
    torch.manual_seed(0)
    model = BiCodecModel(BiCodecConfig.from_dict(tree)).double().eval().requires_grad_(False)
    for parameter in model.decoder.parameters():  # biases and scales that count
        parameter.add_(0.1 * torch.randn_like(parameter))
    speaker = torch.randn(1, tree["speaker_encoder"]["out_dim"], dtype=torch.float64)
    spec = CodecSpec("bicodec", 16000, tree["latent_hop_length"], 1, small.spec.codebook_size)
    for frames in (1, 2, 3, 4, 5, 61, 150):
        codes = np.random.default_rng(frames).integers(0, spec.codebook_size, (1, frames))
        network = Series(Each(lambda x: x[:, 0]), model.streaming(speaker))
        feed = BlockDecoder(network, model.decoder.renderer(), model.frames_per_id)
        found = np.concatenate(streamed(Stream(spec, feed), AudioTokens(codes), list(range(1, frames))))
        whole = model.render(model.drawn(torch.from_numpy(codes), speaker))[0].numpy()
        assert found.shape == whole.shape
        assert np.abs(found - whole).max() <= 1e-6 * np.abs(whole).max()


@pytest.mark.parametrize("name", MAKE)
def test_blocks_compute_what_transformers_does_at_once(codecs: dict[str, TokenCodec], name: str) -> None:
    codec: Any = codecs[name]
    for frames in (1, 2, 3, 61, 150):
        tokens, _ = clip(codec, frames)
        whole = codec.decode_at_once(tokens.codes)
        assert np.abs(codec.decode(tokens) - whole).max() <= 1e-6 * max(1.0, np.abs(whole).max())


@pytest.mark.parametrize("name", ["encodec", "encodec-centred", "dac", "published", "tiny"])
def test_a_codec_without_layers_decodes_again_in_its_context(
    codecs: dict[str, TokenCodec], name: str
) -> None:
    """The feed of codecs that say no more than their context; with half of it, the stream is another."""
    codec: Any = codecs[name]
    (tokens, voice), spec = clip(codec, 150), codec.spec
    whole = codec.decode(tokens, voice)

    def error() -> float:
        stream = Stream(codec.spec, DecodeAgain(codec, voice))
        return float(np.abs(np.concatenate(streamed(stream, tokens, [*range(1, 150)])) - whole).max())

    assert error() <= 1e-6 * max(1.0, np.abs(whole).max())
    left, right = spec.context or (0, 0)
    codec._spec = replace(spec, context=(left and left // 4, right // 4))
    try:
        assert error() > 1e-5
    finally:
        codec._spec = spec


def test_the_context_of_pulses_ends_on_the_right(mini_codec: BiCodec) -> None:
    """What comes later than it changes nothing; what comes before, even at the start, may."""
    (tokens, voice), hop = clip(mini_codec, 90), mini_codec.spec.hop_length
    left, right = mini_codec.spec.context or (0, 0)
    assert left is None and right < 25
    whole = mini_codec.decode(tokens, voice)

    def changed(at: int) -> np.ndarray:
        codes = tokens.codes.copy()
        codes[0, at:] = 7
        return np.flatnonzero(np.abs(mini_codec.decode(AudioTokens(codes), voice) - whole) > 1e-6) // hop

    assert 60 - right <= changed(60).min() < 60 - right + 8  # the outermost is inaudible
    first = AudioTokens(np.concatenate([[[9]], tokens.codes[:, 1:]], 1))
    assert np.abs(mini_codec.decode(first, voice) - whole)[80 * hop :].max() > 1e-2  # its phase runs on


# Cost -------------------------------------------------------------------------------------------------------


def operations(run: Callable[[], object]) -> int:
    """Multiplications and additions of all matrix products, convolutions and attentions."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("lookahead", [None, 2])
@pytest.mark.parametrize("name", BLOCKWISE)
def test_the_cost_is_linear(codecs: dict[str, TokenCodec], name: str, lookahead: int | None) -> None:
    """From the 103rd frame on, twice the frames cost twice the operations, pushed one by one."""
    codec = codecs[name]

    def cost(frames: int) -> int:
        tokens, voice = clip(codec, frames)
        stream = codec.stream(voice, lookahead)
        return operations(lambda: streamed(stream, tokens, list(range(1, frames))))

    short, middle, long = cost(103), cost(203), cost(403)
    assert long - middle == 2 * (middle - short) > 0


@pytest.mark.parametrize("name", ["published", "tiny", "gpa-mini"])
def test_streaming_costs_what_one_pass_does(codecs: dict[str, TokenCodec], name: str) -> None:
    """Every output of every layer once; with a look-ahead, the layers' right halves again in each block."""
    codec: Any = codecs[name]
    tokens, voice = clip(codec, 253)
    ids = torch.tensor([voice.codes if voice else ()])
    once = operations(lambda: codec.model.frames(torch.from_numpy(tokens.codes), ids))
    assert operations(lambda: codec.stream(voice).run(tokens)) <= 1.05 * once
    cut = operations(lambda: codec.stream(voice, lookahead=1).run(tokens))
    assert 1.05 * once < cut < (1.3 + codec.model.context()[1] / 25) * once


# Look-ahead -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lookahead", [0, 1, 4, 8])
@pytest.mark.parametrize("name", BLOCKWISE)
def test_a_look_ahead_depends_on_the_index_alone(
    codecs: dict[str, TokenCodec], name: str, lookahead: int
) -> None:
    codec = codecs[name]
    tokens, voice = clip(codec)
    found = [np.concatenate(streamed(codec.stream(voice, lookahead), tokens, cuts)) for cuts in CUTS.values()]
    assert all(np.array_equal(wav, found[0]) for wav in found)
    assert len(found[0]) == FRAMES * codec.spec.hop_length


@pytest.mark.parametrize("lookahead", [0, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_look_ahead_cuts_the_future_of_a_block(
    codecs: dict[str, TokenCodec], name: str, lookahead: int
) -> None:
    """A block is that of a clip which ends so much later; pulses and noise run on from block to block."""
    codec: Any = codecs[name]
    tokens, voice = clip(codec, 80)
    pulses = name in ("gpa-mini", "near")
    render = codec.render if pulses else lambda frames: frames[0]
    blocks, begin = [], 0
    for end in (*(e for e in map(block_end, range(9)) if e + lookahead <= 80), 80):
        cut = codec.frames(AudioTokens(tokens.codes[:, : end + lookahead]), voice)
        rate = cut.shape[1] // min(80, end + lookahead)
        blocks.append(cut[:, begin * rate : end * rate])
        begin = end
    expected = render(np.concatenate(blocks, 1))
    found = codec.stream(voice, lookahead).run(tokens)
    # What is rounded off a pitch adds up in the phase of pulses.
    assert np.abs(found - expected).max() < (1e-3 if pulses else 1e-5) * np.abs(expected).max()
    if lookahead == 0:
        exact = codec.spec.context is not None and codec.spec.context[1] == 0
        assert exact == (np.abs(found - codec.decode(tokens, voice)).max() < 1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", BLOCKWISE)
def test_enough_look_ahead_is_exact_and_little_is_early(codecs: dict[str, TokenCodec], name: str) -> None:
    codec = codecs[name]
    tokens, voice = clip(codec)
    right = (codec.spec.context or (0, 0))[1]
    enough = codec.stream(voice, lookahead=right).run(tokens)
    np.testing.assert_array_equal(enough, codec.decode(tokens, voice))
    first = len(codec.stream(voice, lookahead=1).push(AudioTokens(tokens.codes[:, :5])))
    assert first >= 2 * codec.spec.hop_length


def test_the_error_of_a_look_ahead_is_the_stated_one(mini_codec: BiCodec, repo: Path) -> None:
    """Of the shipped weights on the shipped recordings: RMS over frames and bands of log-mel, in dB.

    The wave itself says little: once a pitch differs, the phase of the pulses does for good.
    """
    page = (repo / "docs" / "performance.md").read_text(encoding="utf-8")
    stated = re.findall(r"^\| (\d+|pulses half a turn on) \|.*?\| ([\d.]+) \|$", page, re.MULTILINE)
    decoder: Any = mini_codec.harmonic

    def level(wav: np.ndarray) -> np.ndarray:
        return 20 / np.log(10) * decoder.log_mel(torch.from_numpy(wav)[None])[0].numpy()  # nepers to dB

    def turned(tokens: AudioTokens) -> np.ndarray:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Excitation, "START", 0.5)
            return mini_codec.decode(tokens)

    clips = [mini_codec.encode(path) for path in sorted((mini_codec_folder() / "golden").glob("*.wav"))]
    assert len(clips) == 2 and len(stated) == 9
    for name, error in stated:
        squares = []
        for tokens in clips:
            voice = Voice(tuple(tokens.global_.tolist()), timbre=tokens.timbre)  # type: ignore[union-attr]
            cut = mini_codec.stream(voice, int(name)).run(tokens) if name.isdigit() else turned(tokens)
            squares.append(np.mean((level(cut) - level(mini_codec.decode(tokens))) ** 2))
        assert np.sqrt(np.mean(squares)) == pytest.approx(float(error), abs=0.1), name


# Layers by themselves ---------------------------------------------------------------------------------------


def test_a_fork_leaves_the_layer_as_it_was() -> None:
    def made() -> Layer:
        torch.manual_seed(0)
        return WaveGenerator(4, 8, [3, 2], [7, 4]).requires_grad_(False).streaming()

    x = torch.randn(1, 4, 40, generator=torch.Generator().manual_seed(1))
    plain, forked = made(), made()
    found = []
    for part in x.split(7, -1):
        found.append(forked.push(part, False))
        assert forked.fork().push(part[..., :0], True).shape[-1] > 0
    expected = [plain.push(part, False) for part in x.split(7, -1)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# Voices -----------------------------------------------------------------------------------------------------


def test_what_a_voice_is(codecs: dict[str, TokenCodec], tmp_path: Path) -> None:
    """Global codes, or an acoustic prompt of three seconds; a file of either comes back."""
    for codec in codecs.values():
        spec = codec.spec
        made = codec.voice((speechlike(4.0, seed=1), 16000), name="anna")
        assert len(made.codes) == spec.voice_size
        assert codec.checked(made) is made
        replace(made, text="hello there").save(tmp_path / "anna.json")
        assert Voice.load(tmp_path / "anna.json") == replace(made, text="hello there")
    prompt = codecs["mimi"].voice((speechlike(1.0, seed=1), 16000))
    codes = codecs["mimi"].encode((speechlike(1.0, seed=1), 16000)).codes
    np.testing.assert_array_equal(codecs["mimi"].spec.pattern.parse(prompt.codes), codes)


def test_rates_of_codes() -> None:
    spec = CodecSpec("x", 16000, 320, 4, 32)
    assert (spec.frame_rate, spec.code_rate, spec.pattern.n_ids, spec.voice_size) == (50, 200, 128, 600)


@pytest.mark.parametrize("up", [2, 3, 4])
def test_what_hears_less_ahead_begins_as_if_the_future_stayed(up: int) -> None:
    """On steady sound both are the same; frames too far ahead count as the last one that is heard."""
    torch.manual_seed(0)
    whole, less = (SamplingBlock(4, up=up, causal=causal).double() for causal in (False, True))
    less.load_state_dict(whole.state_dict() | bounded(less, whole.state_dict()))
    steady = torch.randn(1, 4, 1, dtype=torch.float64).expand(1, 4, 20)
    middle = slice(5 * up, 15 * up)
    torch.testing.assert_close(less(steady)[..., middle], whole(steady)[..., middle])
    frame = FrameConv(3, 3, 1).double()
    centred = FrameConv(3, 3).double()
    frame.load_state_dict(centred.state_dict() | bounded(frame, centred.state_dict()))
    x = torch.randn(1, 3, 20, dtype=torch.float64)
    held = x.clone()
    held[..., 12:] = x[..., 11:12]
    torch.testing.assert_close(frame(x)[..., 10], centred(held)[..., 10])
