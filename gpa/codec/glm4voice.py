"""GLM-4-Voice speech tokenizer: 16 kHz audio to 12.5 ids per second, encode only (arXiv 2412.02612).

A Whisper encoder with causal convolutions and block-causal attention, cut at its quantiser. Every size comes
from config.json and preprocessor_config.json. The waveform is used raw: no loudness step, because the log-mel
is not scale-free.

    B batch   S samples   M mel bins   T frames of 20 ms   N ids of 80 ms   D width   H heads
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from gpa import disk, hub
from gpa.audio import AudioLike, load
from gpa.codec.base import CodecSpec
from gpa.codec.feature_encoder import state_digest
from gpa.config import Rate, Size, Within, build_stored
from gpa.errors import CheckpointError
from gpa.nn.mel import mel_filters
from gpa.nn.whisper_encoder import EncoderLayer

# Behaviours this file implements; any other value of these keys is refused by name.
_ENCODER_RULES: dict[str, Any] = {
    "activation_function": "gelu",
    "encoder_causal_attention": False,
    "encoder_causal_convolution": True,
    "pooling_type": "avg",
    "quantize_causal_encoder": False,
    "quantize_encoder_only": True,
    "scale_embedding": False,
}
_FEATURE_RULES: dict[str, Any] = {
    "dither": 0.0,
    "do_normalize": False,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "padding_side": "right",
    "padding_value": 0.0,
}
_FEATURE_SIZES = ("hop_length", "n_fft", "n_samples", "sampling_rate")
# Keys that shape training, or parts that the tokenizer does not have; a new key of these families is refused.
_FAMILIES = ("encoder_", "pooling_", "quantize_")
_TRAINING_KEYS = {
    "encoder_layerdrop",
    "encoder_layers",  # of the Whisper encoder it was cut from; the file holds quantize_position layers
    "quantize_commit_coefficient",
    "quantize_ema_decay",
    "quantize_loss_scale",
    "quantize_restart_interval",
}
# State of training, and the norm after the last layer of a whole Whisper encoder.
_IGNORED_TENSORS = ("ema_count", "ema_weight", "layer_norm.*")


Mels = Annotated[int, Within(1, 1024)]
Window = Annotated[int, Within(2, 1 << 14)]
Depth = Annotated[int, Within(1, 512)]


@dataclass(frozen=True)
class GLM4VoiceConfig:
    """Sizes under the names of config.json; the last four are from preprocessor_config.json."""

    d_model: Size
    encoder_attention_heads: Size
    encoder_ffn_dim: Size
    max_source_positions: Rate  # frames of 20 ms
    num_mel_bins: Mels
    pooling_kernel_size: Rate  # frames per id
    pooling_position: Depth
    quantize_causal_block_size: Rate  # frames of a bidirectional block
    quantize_position: Depth  # layers before the quantiser, all that are kept
    quantize_vocab_size: Size
    hop_length: Rate  # samples per 10-ms mel frame
    n_fft: Window
    n_samples: Size  # longest clip of one pass
    sampling_rate: Rate

    @classmethod
    def from_dir(cls, path: Path) -> GLM4VoiceConfig:
        """Read both config files; CheckpointError names a key that is absent or not implemented."""
        model_file, feature_file = path / "config.json", path / "preprocessor_config.json"
        model, feature = hub.read_json(model_file), hub.read_json(feature_file)
        _refuse(model, _ENCODER_RULES, model_file)
        _refuse(feature, _FEATURE_RULES, feature_file)
        known = {f.name for f in fields(cls)}
        for key in model:
            if key.startswith(_FAMILIES) and key not in known | _TRAINING_KEYS | set(_ENCODER_RULES):
                raise CheckpointError(f"{model_file}: {key} = {model[key]!r} is not implemented")
        source: dict[str, Any] = {**model, **{key: feature.get(key) for key in _FEATURE_SIZES}}
        config = build_stored(cls, {key: source[key] for key in known if key in source}, str(path), "sizes")
        if feature.get("feature_size", model["num_mel_bins"]) != model["num_mel_bins"]:
            raise CheckpointError(f"{feature_file}: feature_size differs from num_mel_bins of config.json")
        config._check(model_file)
        return config

    def _check(self, where: Path) -> None:
        if self.pooling_position != self.quantize_position:
            raise CheckpointError(f"{where}: pooling_position != quantize_position is not implemented")
        if self.d_model % self.encoder_attention_heads:
            raise CheckpointError(f"{where}: encoder_attention_heads does not divide d_model")
        for key in ("max_source_positions", "quantize_causal_block_size"):
            if getattr(self, key) % self.pooling_kernel_size:
                raise CheckpointError(f"{where}: {key} must be a multiple of pooling_kernel_size")
        if self.window <= self.block:
            raise CheckpointError(f"{where}: max_source_positions must hold 2 x quantize_causal_block_size")

    @property
    def samples_per_id(self) -> int:
        """Samples of one id: mel hop, stride 2 of the second convolution, pooling."""
        return self.hop_length * 2 * self.pooling_kernel_size

    @property
    def block(self) -> int:
        """Samples of one bidirectional block (4 s)."""
        return self.quantize_causal_block_size * self.hop_length * 2

    @property
    def limit(self) -> int:
        """Longest clip, in samples, that one pass takes (30 s)."""
        return min(self.n_samples, self.max_source_positions * self.hop_length * 2)

    @property
    def window(self) -> int:
        """Whole blocks, in samples, that fit into one pass (28 s)."""
        return self.limit // self.block * self.block


def _refuse(found: dict[str, Any], rules: dict[str, Any], where: Path) -> None:
    for key, value in rules.items():
        if found.get(key, value) != value:
            raise CheckpointError(f"{where}: {key} = {found[key]!r} is not implemented, only {value!r}")


def block_mask(n_frames: Tensor, length: int, block: int) -> Tensor:
    """Who may attend to whom: keys up to the query or in its block, and inside the clip.

    `n_frames` (B,) is the number of real frames of each clip; result (B, 1, T, T) bool with T = `length`.
    """
    t = torch.arange(length, device=n_frames.device)
    near = (t[None] <= t[:, None]) | (t[None] // block == t[:, None] // block)  # (T queries, T keys)
    return (near & (t < n_frames[:, None])[:, None])[:, None]


class GLM4VoiceEncoder(nn.Module):
    """Log-mel to quantised states; tensor names are those of the published file."""

    def __init__(self, config: GLM4VoiceConfig) -> None:
        super().__init__()
        self.config = config
        width, pool = config.d_model, config.pooling_kernel_size
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, 3)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        sizes = (width, config.encoder_attention_heads, config.encoder_ffn_dim)
        self.layers = nn.ModuleList(EncoderLayer(*sizes) for _ in range(config.quantize_position))
        self.codebook = nn.Embedding(config.quantize_vocab_size, width)
        self.embed_positions2 = nn.Embedding(config.max_source_positions // pool, width)

    def pooled(self, mel: Tensor, n_frames: Tensor) -> Tensor:
        """States before quantisation (B, N, D) of log-mel (B, M, 2T); `n_frames` (B,) counts real frames."""
        x = F.gelu(self.conv1(F.pad(mel, (2, 0))))  # left padding only: causal
        x = F.gelu(self.conv2(F.pad(x, (2, 0)))).transpose(1, 2)  # (B, T, D)
        x = x + self.embed_positions.weight[: x.shape[1]]
        mask = block_mask(n_frames, x.shape[1], self.config.quantize_causal_block_size)
        for layer in self.layers:
            x = layer(x, mask)
        pool = self.config.pooling_kernel_size
        x = F.pad(x, (0, 0, 0, -x.shape[1] % pool))
        return F.avg_pool1d(x.transpose(1, 2), pool).transpose(1, 2)  # (B, N, D)

    def quantize(self, pooled: Tensor) -> Tensor:
        """Index (B, N) of the Euclidean nearest codebook row."""
        rows = self.codebook.weight
        # |x|^2 is the same for all rows and left out
        return (rows.pow(2).sum(1) - 2 * pooled @ rows.T).argmin(-1)

    def forward(self, mel: Tensor, n_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, N) and the reference's `last_hidden_state` (B, N, D): codebook row plus position."""
        ids = self.quantize(self.pooled(mel, n_frames))
        return ids, self.codebook(ids) + self.embed_positions2.weight[: ids.shape[1]]


class LogMel(nn.Module):
    """Whisper's log-mel features with the sizes of preprocessor_config.json."""

    filters: Tensor
    window: Tensor

    def __init__(self, config: GLM4VoiceConfig) -> None:
        super().__init__()
        self.n_fft, self.hop = config.n_fft, config.hop_length
        filters = mel_filters(1 + config.n_fft // 2, config.num_mel_bins, 0.0, 8000.0, config.sampling_rate)
        matrix = torch.from_numpy(filters).float()  # (n_fft / 2 + 1, M)
        self.register_buffer("filters", matrix, persistent=False)
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)

    def forward(self, wav: Tensor) -> Tensor:  # (S,), S a multiple of the hop
        """Features (M, S / hop) of one clip; the floor of 80 dB below the maximum is the clip's own."""
        spec = torch.stft(wav, self.n_fft, self.hop, window=self.window, return_complex=True)
        power = spec[:, :-1].abs().pow(2)
        mel = (self.filters.T @ power).clamp_min(1e-10).log10()
        return (torch.maximum(mel, mel.max() - 8.0) + 4.0) / 4.0


class GLM4VoiceTokenizer:
    """Audio to GLM-4-Voice ids, for clips of any length.

    Up to 30 s a clip is one pass, as in the reference. Beyond that, where the reference silently stops, it
    runs in passes of 28 s (whole attention blocks of 4 s), each after the first starting 4 s before the
    previous one ended and contributing only what is new. So ids come at 12.5 per second throughout, the first
    28 s equal those of the first 28 s alone, and audio that follows never changes a finished pass.
    """

    def __init__(self, model: GLM4VoiceEncoder, device: str | torch.device = "cpu") -> None:
        self.config = model.config
        self.model = model.to(device).eval().requires_grad_(False)
        self.log_mel = LogMel(model.config).to(device)
        self.device = torch.device(device)
        self._files: tuple[Path, ...] = ()

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        *,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        offline: bool = False,
    ) -> GLM4VoiceTokenizer:
        """Load a directory or repository in float32; CheckpointError shows what does not fit."""
        folder = hub.resolve(path, revision, offline)
        config = GLM4VoiceConfig.from_dir(folder)
        state = _encoder_state(hub.read_state(folder), config.quantize_position)
        # 1.4 GB of initial values would be drawn only to be overwritten.
        with hub.sizes_checked(state, str(folder)), torch.device("meta"):
            model = GLM4VoiceEncoder(config)
        hub.load_strict(model, state, ignore=_IGNORED_TENSORS, where=str(folder))
        tokenizer = cls(model, device)
        configs = (folder / "config.json", folder / "preprocessor_config.json")
        tokenizer._files = (*configs, *hub.weight_files(folder))
        return tokenizer

    @property
    def codebook_size(self) -> int:
        """Number of ids."""
        return self.config.quantize_vocab_size

    @property
    def spec(self) -> CodecSpec:
        """Rates and sizes; there is no decoder."""
        c = self.config
        return CodecSpec("glm4voice", c.sampling_rate, c.samples_per_id, 1, c.quantize_vocab_size)

    def fingerprint(self) -> str:
        """SHA-256 over sizes and weights as loaded, whatever the file layout."""
        return state_digest(asdict(self.config), self.model.state_dict())

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """Write a directory that `from_pretrained` reads: the settings as they were, weights in float32."""
        folder = Path(path)
        with disk.room(folder):
            folder.mkdir(parents=True)
            for file in self._files:
                if file.suffix == ".json" and "index" not in file.name:
                    shutil.copyfile(file, folder / file.name)
            save_file(self.model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})

    def parameters(self) -> dict[str, int]:
        """Numbers of weights by part."""
        return {"glm_tokenizer": sum(weight.numel() for weight in self.model.parameters())}

    def tokens(self, audio: AudioLike, *, rate: int | None = None) -> np.ndarray:
        """Ids (N,) int64 of one clip, N = ceil(S / 1280) for S samples at 16 kHz.

        Channels are averaged and the true rate is converted; `rate` is that of a bare array. AudioError if
        the audio cannot be used.
        """
        return self.tokens_batch([audio], rate=rate)[0]

    def tokens_batch(
        self, audios: Sequence[AudioLike], *, rate: int | None = None, batch_size: int = 8
    ) -> list[np.ndarray]:
        """Ids of several clips, equal to those of each clip alone.

        Features are computed per clip, padding is masked, and passes of similar length share a batch. A
        different batch may sum in another order, about 1e-6 relative in the states before quantisation.
        """
        passes = [
            (clip, skip, part)
            for clip, audio in enumerate(audios)
            for skip, part in self._passes(load(audio, self.config.sampling_rate, rate=rate))
        ]
        order = sorted(range(len(passes)), key=lambda i: len(passes[i][2]))
        ids: dict[int, np.ndarray] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            ids.update(zip(chosen, self._encode([passes[i][2] for i in chosen]), strict=True))
        out: list[list[np.ndarray]] = [[] for _ in audios]
        for i, (clip, skip, _) in enumerate(passes):
            out[clip].append(ids[i][skip:])
        return [np.concatenate(parts) for parts in out]

    def _passes(self, wav: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Parts of a clip that fit one pass, each with the number of leading ids that are context only."""
        c = self.config
        if len(wav) <= c.limit:
            return [(0, wav)]
        context = c.block // c.samples_per_id
        starts = range(0, len(wav) - c.block, c.window - c.block)
        return [(context if start else 0, wav[start : start + c.window]) for start in starts]

    @torch.inference_mode()
    def _encode(self, wavs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Ids of clips that each fit one pass, as one batch."""
        unit = self.config.samples_per_id
        padded = (F.pad(torch.from_numpy(wav).to(self.device), (0, -len(wav) % unit)) for wav in wavs)
        mels = [self.log_mel(wav).T for wav in padded]  # (2T, M) each
        mel = nn.utils.rnn.pad_sequence(mels, batch_first=True).transpose(1, 2)  # (B, M, 2T)
        frame = 2 * self.config.hop_length
        n_frames = torch.tensor([-(-len(wav) // frame) for wav in wavs], device=self.device)
        ids = self.model.quantize(self.model.pooled(mel, n_frames)).cpu().numpy()
        return [row[: -(-len(wav) // unit)].astype(np.int64) for row, wav in zip(ids, wavs, strict=True)]


def _encoder_state(state: dict[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    """Without the `model.encoder.` prefix of some copies and without the layers after the quantiser."""
    state = {name.removeprefix("model.encoder."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if _layer(name) < n_layer}


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" and parts[1].isdigit() else -1
