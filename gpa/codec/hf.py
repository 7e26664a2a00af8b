"""EnCodec, Mimi and DAC of transformers as codecs with K codebooks; also EnCodec's original `.th` files.

Nothing is fetched at import, and nothing at all with `offline=True` or a local directory. Audio is mono:
channels are averaged on the way in; a model with several channels hears the same signal in each, and its
output is averaged.

    S samples   K codebooks in use   T frames
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    DacConfig,
    DacModel,
    EncodecConfig,
    EncodecModel,
    MimiConfig,
    MimiModel,
    PreTrainedModel,
)

from gpa import disk, hub
from gpa.audio import AudioLike, load
from gpa.codec.base import AudioTokens, CodecSpec, Stream, TokenCodec, checked_codes
from gpa.codec.feature_encoder import half_where_it_fits, library_config, library_model, state_digest
from gpa.codec.hf_decoder import decoder
from gpa.errors import CheckpointError, UsageError, VocabError
from gpa.nn.incremental import BlockDecoder, Each

if TYPE_CHECKING:
    from gpa.codec.voice import Voice

MOST_HOP, MOST_RATE = 1 << 14, 1 << 20  # samples, Hz
KEPT = "gpa_codebooks"  # key of our own in config.json: how many codebooks are in use
# Of a config: where it was, and how it was written.
_NO_SETTINGS = (KEPT, "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
MODELS: dict[str, tuple[type, type]] = {
    "dac": (DacConfig, DacModel),
    "encodec": (EncodecConfig, EncodecModel),
    "mimi": (MimiConfig, MimiModel),
}


class HFCodec(TokenCodec):
    """A transformers codec model behind the `TokenCodec` contract.

    `n_codebooks` K keeps the first K residual codebooks, by default all, or as many as a directory that
    `save_pretrained` wrote was saved with; `bandwidth` (kbit/s, EnCodec only)
    says the same as one of the model's target bandwidths. T = ceil(S / hop) frames: clips are padded with
    zeros to whole frames, which for Mimi and DAC is what their own feature extractors do.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        n_codebooks: int | None = None,
        bandwidth: float | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.kind: str = model.config.model_type
        if self.kind not in MODELS:
            raise CheckpointError(f"model_type {self.kind!r} is not one of {', '.join(MODELS)}")
        _refuse_chunked(model.config)
        self.device = torch.device(device)
        untyped: Any = model  # the three classes share the names encode and decode, not their signatures
        self.model = untyped.to(self.device).float().eval().requires_grad_(False)
        k, c = _n_codebooks(model, n_codebooks, bandwidth), model.config
        self._spec = CodecSpec(
            self.kind, c.sampling_rate, _hop_length(c), k, c.codebook_size, context=_context(model)
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        *,
        n_codebooks: int | None = None,
        bandwidth: float | None = None,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        offline: bool = False,
    ) -> HFCodec:
        """Load a directory or repository in float32; CheckpointError where config or weights do not fit.

        An original EnCodec file (`encodec_24khz-d7cc33bc.th`) is accepted as `path` as well.
        """
        folder = hub.resolve(path, revision, offline)
        model = load_encodec_th(folder) if folder.suffix == ".th" else _load_model(folder)
        try:
            codec = cls(model, n_codebooks=n_codebooks, bandwidth=bandwidth, device=device)
            codec._try()
        except hub.DAMAGE as error:
            if isinstance(error, UsageError):
                raise
            raise CheckpointError(f"{folder}: its settings do not work together ({error})") from error
        return codec

    def _try(self) -> None:
        """Encode and decode a moment: half of a config shows in no tensor's shape."""
        hop = self.spec.hop_length
        if not 0 < hop <= MOST_HOP or not 1000 <= self.spec.sample_rate <= MOST_RATE:
            raise ValueError(f"{hop} samples a frame at {self.spec.sample_rate} Hz")
        wav = np.random.default_rng(0).standard_normal(max(4 * hop, self.spec.sample_rate // 10))
        tokens = self.encode((0.1 * wav.astype(np.float32), self.spec.sample_rate))
        if not np.isfinite(self.decode(tokens)).all():
            raise ValueError("what is decoded is not finite")

    def save_pretrained(self, path: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
        """Write a directory of transformers; its config also names the codebooks in use, `gpa_codebooks`.

        Half precision keeps values that it cannot hold in float32; loading computes in float32 either way.
        """
        folder, config = Path(path), self.model.config
        config.update({KEPT: self.spec.n_codebooks, "architectures": [type(self.model).__name__]})
        state = half_where_it_fits(self.model.state_dict(), dtype or torch.float32)
        with disk.room(folder):
            config.save_pretrained(folder)
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    @property
    def spec(self) -> CodecSpec:
        """Rates and sizes."""
        return self._spec

    def fingerprint(self) -> str:
        """SHA-256 over settings and weights as loaded, whatever the file layout."""
        settings = {k: v for k, v in self.model.config.to_dict().items() if k not in _NO_SETTINGS}
        return state_digest({**settings, KEPT: self.spec.n_codebooks}, self.model.state_dict())

    def parameters(self) -> dict[str, int]:
        """Numbers of weights by part."""
        return {"codec": sum(weight.numel() for weight in self.model.parameters())}

    @torch.inference_mode()
    def encode(self, audio: AudioLike, *, rate: int | None = None) -> AudioTokens:
        """Codes (K, T) of one clip; `rate` is that of a bare array. AudioError if it cannot be used."""
        wav = torch.from_numpy(load(audio, self.spec.sample_rate, rate=rate))
        wav = torch.nn.functional.pad(wav, (0, -len(wav) % self.spec.hop_length)).to(self.device)
        channels = getattr(self.model.config, "audio_channels", 1)
        codes = self._codes(wav.expand(1, channels, -1))[0, : self.spec.n_codebooks]  # (K, T)
        return AudioTokens(codes.cpu().numpy().astype(np.int64))

    def _codes(self, wav: Tensor) -> Tensor:  # (1, channels, S)
        """Codes (1, at least K, T)."""
        k = self.spec.n_codebooks
        if self.kind == "encodec":
            return self.model.encode(wav, bandwidth=_enough_bandwidth(self.model, k)).audio_codes[0]
        if self.kind == "mimi":
            return self.model.encode(wav, num_quantizers=k).audio_codes
        return self.model.encode(wav, n_quantizers=k).audio_codes

    def decode(self, tokens: AudioTokens, voice: Voice | None = None) -> np.ndarray:
        """Waveform (T * hop,) float32 of codes (K, T), which hold the voice too.

        VocabError if they are not codes of this codec.

        DAC's odd strides return a few samples less than whole frames; they are filled with zeros at the end.
        """
        if not np.size(tokens.codes):
            raise VocabError(f"{self.spec.name}: codes of shape ({self.spec.n_codebooks}, T >= 1) are needed")
        if self.spec.context is not None:
            return self.stream().run(tokens)
        return self.decode_at_once(checked_codes(tokens.codes, self.spec))

    def stream(self, voice: Voice | None = None, lookahead: int | None = None) -> Stream:
        """A decoder for codes that come bit by bit; one that hears all of a clip waits for its end."""
        if self.spec.context is None:
            return super().stream(voice, lookahead)
        hop = self.spec.hop_length
        feed = BlockDecoder(decoder(self.model, hop), Each(lambda x: x), hop)
        return Stream(self.spec, feed, lookahead)

    @torch.inference_mode()
    def decode_at_once(self, codes: np.ndarray) -> np.ndarray:
        """The same of codes (K, T) by transformers' own `decode`: equal but for rounding."""
        batch = torch.from_numpy(codes).to(self.device)[None]  # (1, K, T)
        if self.kind == "encodec":
            wav = self.model.decode(batch[None], [None]).audio_values
        elif self.kind == "mimi":
            wav = self.model.decode(batch).audio_values
        else:
            wav = self.model.decode(audio_codes=batch).audio_values
        mono = wav.reshape(-1, wav.shape[-1]).mean(0)
        n_samples = codes.shape[1] * self.spec.hop_length
        mono = torch.nn.functional.pad(mono, (0, max(0, n_samples - len(mono))))[:n_samples]
        return mono.float().cpu().numpy()


def _load_model(folder: Path) -> PreTrainedModel:
    """Model of a transformers directory, every weight accounted for."""
    path = folder / "config.json"
    raw = hub.read_json(path)
    kind = str(raw.get("model_type"))
    if kind not in MODELS:
        raise CheckpointError(f"{path}: model_type {kind!r:.80} is not one of {', '.join(MODELS)}")
    settings, cls = MODELS[kind]
    return library_model(cls, library_config(settings, raw, str(path), (KEPT,)), folder)


def _refuse_chunked(config: Any) -> None:
    """EnCodec's 48 kHz setting: overlapping chunks, each with a loudness that is no code: not (K, T)."""
    for key in ("normalize", "chunk_length_s"):
        if getattr(config, key, None):
            raise CheckpointError(
                f"{config.model_type}: {key} = {getattr(config, key)!r} is not implemented: its tokens "
                "are more than codes. Use a model without it, such as facebook/encodec_24khz"
            )


def _hop_length(config: Any) -> int:
    if config.model_type == "mimi":  # the frame rate includes the extra downsampling after the convolutions
        return round(config.sampling_rate / config.frame_rate)
    return int(config.hop_length)


def _total_codebooks(model: Any) -> int:
    """Codebooks that can be used; EnCodec's come from its largest target bandwidth, spec of the library."""
    if model.config.model_type == "encodec":
        return model.quantizer.get_num_quantizers_for_bandwidth(max(model.config.target_bandwidths))
    return model.config.num_quantizers if model.config.model_type == "mimi" else model.config.n_codebooks


def _context(model: Any) -> tuple[int | None, int] | None:
    """What decoding a frame hears of its neighbours: the kernels of the decoder, added up and rounded up.

    EnCodec's LSTM and Mimi's transformer hear all that came before. Reflected padding, at the start of a
    causal decoder too, lets what follows in.
    """
    c, kind = model.config, model.config.model_type
    causal = kind != "dac" and c.use_causal_conv and c.trim_right_ratio == 1
    if causal and c.pad_mode == "constant":
        return None, 0
    if kind == "mimi" or getattr(c, "norm_type", "weight_norm") != "weight_norm":
        return None
    reach, rate = 0.0, 1
    for layer in model.decoder.modules():
        if isinstance(layer, nn.ConvTranspose1d):
            reach += (layer.kernel_size[0] - 1) // layer.stride[0] / rate
            rate *= layer.stride[0]
        elif isinstance(layer, nn.Conv1d):
            width = (layer.kernel_size[0] - 1) * layer.dilation[0]
            reach += (width if kind == "encodec" else width / 2) / rate  # DAC pads with zeros on both sides
    return (None if kind == "encodec" else math.ceil(reach)), math.ceil(reach)


def _n_codebooks(model: Any, n_codebooks: int | None, bandwidth: float | None) -> int:
    total, config = _total_codebooks(model), model.config
    if bandwidth is not None:
        if config.model_type != "encodec" or n_codebooks is not None:
            raise UsageError("bandwidth is for EnCodec, and instead of n_codebooks: give n_codebooks alone")
        if bandwidth not in config.target_bandwidths:
            raise UsageError(f"bandwidth {bandwidth} kbit/s: choose one of {list(config.target_bandwidths)}")
        return model.quantizer.get_num_quantizers_for_bandwidth(bandwidth)
    fewest = config.num_semantic_quantizers if config.model_type == "mimi" else 1
    chosen = getattr(config, KEPT, total) if n_codebooks is None else n_codebooks
    if not fewest <= chosen <= total:
        raise UsageError(f"n_codebooks {chosen}: this {config.model_type} model allows {fewest} to {total}")
    return chosen


def _enough_bandwidth(model: Any, n_codebooks: int) -> float:
    """Smallest target bandwidth with at least K codebooks; the first K of more are the same."""
    count = model.quantizer.get_num_quantizers_for_bandwidth
    return min(b for b in model.config.target_bandwidths if count(b) >= n_codebooks)


# Names in facebookresearch/encodec -> names in transformers, applied in this order.
_RENAMES: Sequence[tuple[str, str]] = (
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.(conv|convtr)\.\1\.", r".conv."),
    (r"\.(conv|convtr)\.norm\.", r".norm."),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook."),
    (r"\.weight_g$", r".parametrizations.weight.original0"),
    (r"\.weight_v$", r".parametrizations.weight.original1"),
)


def rename_encodec(name: str) -> str:
    """Tensor name of the original EnCodec code as transformers calls it; others pass unchanged."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def load_encodec_th(path: str | os.PathLike, config: EncodecConfig | None = None) -> EncodecModel:
    """EnCodec from an original `.th` file (a pickled state dict, read without running code), strictly.

    `config` defaults to the published 24 kHz model; the 48 kHz model, known by its two input channels, is
    refused by name. Needs neither the `encodec` package nor torchaudio.
    """
    state = {rename_encodec(name): tensor for name, tensor in hub.read_state(path).items()}
    first = state.get("encoder.layers.0.conv.parametrizations.weight.original1")
    if config is None and first is not None and first.ndim == 3 and first.shape[1] == 2:
        raise CheckpointError(f"{path}: the stereo 48 kHz EnCodec is not implemented; use the 24 kHz file")
    model = EncodecModel(config or EncodecConfig())
    hub.load_strict(model, state, where=str(path))
    return model.eval()
