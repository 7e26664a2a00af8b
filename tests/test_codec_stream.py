"""Streamed decoding of every codec equals decoding the whole, however the codes are cut."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EncodecModel

from conftest import speechlike
from gpa.codec import load_codec
from gpa.codec.base import AudioTokens, CodecSpec, TokenCodec
from gpa.codec.bicodec import BiCodec
from gpa.codec.hf import HFCodec
from gpa.codec.voice import Voice
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
# Frames that wait for what follows them; None: all, until the end.
WAITING = {"encodec-constant": 0, "mimi": 0, "encodec-normed": None, "gpa-mini": None}


@pytest.fixture(scope="module")
def codecs(mini_codec: BiCodec, replica: Path) -> dict[str, TokenCodec]:
    torch.manual_seed(0)
    made: dict[str, TokenCodec] = {name: HFCodec(make()) for name, make in MAKE.items()}  # type: ignore[arg-type]
    return {**made, "gpa-mini": mini_codec, "published": load_codec(replica / "BiCodec")}


@pytest.fixture(scope="module")
def mini_codec() -> BiCodec:
    return load_codec(Path(__file__).parent.parent / "gpa" / "assets" / "gpa-mini" / "codec")


def clip(codec: TokenCodec, frames: int = FRAMES) -> tuple[AudioTokens, Voice | None]:
    random, spec = np.random.default_rng(0), codec.spec
    codes = random.integers(0, spec.codebook_size, (spec.n_codebooks, frames))
    voice = tuple(random.integers(0, spec.global_size, spec.n_global).tolist()) if spec.n_global else ()
    return AudioTokens(codes), Voice(voice) if voice else None


def streamed(
    codec: TokenCodec, tokens: AudioTokens, voice: Voice | None, cuts: list[int]
) -> list[np.ndarray]:
    """What each push gives, then what finishing does."""
    stream, edges = codec.stream(voice), [0, *cuts, tokens.codes.shape[1]]
    spans = zip(edges, edges[1:], strict=False)
    return [stream.push(AudioTokens(tokens.codes[:, a:b])) for a, b in spans] + [stream.finish()]


CUTS = {
    "one by one": list(range(1, FRAMES)),
    "empty pushes": [0, 0, 7, 7, 30, 30, 30, FRAMES],
    "all at once": [],
    "uneven": [1, 3, 4, 9, 23, 24, 55],
}


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("name", [*MAKE, "gpa-mini", "published"])
def test_streamed_equals_the_whole(codecs: dict[str, TokenCodec], name: str, cuts: str) -> None:
    codec = codecs[name]
    tokens, voice = clip(codec)
    whole = codec.decode(tokens, voice)
    parts = streamed(codec, tokens, voice, CUTS[cuts])
    found = np.concatenate(parts)
    assert found.shape == whole.shape and found.dtype == np.float32
    assert np.abs(found - whole).max() <= 1e-6 * max(1.0, np.abs(whole).max())
    waiting = WAITING.get(name, codec.spec.context and codec.spec.context[1])
    late = FRAMES if waiting is None else min(FRAMES, waiting)
    assert len(parts[-1]) == late * codec.spec.hop_length


def test_a_clip_shorter_than_the_context_and_one_of_nothing(codecs: dict[str, TokenCodec]) -> None:
    for codec in codecs.values():
        tokens, voice = clip(codec, 2)
        found = np.concatenate(streamed(codec, tokens, voice, [1]))
        whole = codec.decode(tokens, voice)
        np.testing.assert_allclose(found, whole, rtol=0, atol=1e-6 * max(1.0, float(np.abs(whole).max())))
        assert codec.stream(voice).finish().size == 0


@pytest.mark.parametrize("name", ["encodec", "encodec-centred", "dac"])
def test_the_context_is_needed(codecs: dict[str, TokenCodec], name: str) -> None:
    """Half of it, and the stream is not the whole: the stated context does something."""
    codec = codecs[name]
    left, right = codec.spec.context or (0, 0)
    tokens, voice = clip(codec)
    before = codec.spec
    codec._spec = replace(before, context=(left and left // 4, right // 4))  # type: ignore[attr-defined]
    try:
        found = np.concatenate(streamed(codec, tokens, voice, CUTS["one by one"]))
    finally:
        codec._spec = before  # type: ignore[attr-defined]
    assert np.abs(found - codec.decode(tokens, voice)).max() > 1e-5


def test_a_harmonic_decoder_hears_the_whole_clip(mini_codec: BiCodec) -> None:
    """Why its context is None: phase and noise run on from the start, so a window sounds otherwise."""
    tokens, voice = clip(mini_codec)
    reach, hop = mini_codec.model.context(), mini_codec.spec.hop_length
    at = reach + 5
    window = mini_codec.decode(AudioTokens(tokens.codes[:, at - reach :]), voice)[reach * hop :]
    assert mini_codec.spec.context is None
    assert np.abs(window - mini_codec.decode(tokens, voice)[at * hop :]).max() > 1e-2


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
