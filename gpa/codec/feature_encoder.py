"""Self-supervised or recognition encoders whose hidden states a semantic codec quantises.

Two kinds behind one call, `features(wav) -> (B, C, T)` at 50 frames/s: wav2vec2 (published BiCodec) and
a Whisper encoder (gpa-mini). Neither knows quantisers or tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpa import hub
from gpa.config import build_stored
from gpa.errors import CheckpointError
from gpa.nn.mel import mel_filters
from gpa.nn.whisper_encoder import WhisperConfig, WhisperEncoder, sinusoids

if TYPE_CHECKING:  # transformers takes seconds to import, which gpa-mini has no use for
    from transformers import Wav2Vec2Config

C = TypeVar("C")
POSITIONS = "embed_positions.weight"  # of Whisper: sinusoids, which an encoder without them begins with
OLD_NAMES = ("frame_rate", "_frame_rate", "rope_theta", "rope_scaling")  # that transformers still reads
MOST_LAYERS = 512
FRAME = 320  # samples of 16 kHz audio per feature frame, both kinds


class Wav2Vec2Features(nn.Module):
    """Mean of three hidden states of wav2vec2-large-xlsr-53 (Spark-TTS, arXiv 2503.01710).

    Only the layers up to the last tap are built. Every tap is taken before the encoder's final layer norm,
    so the states are collected here rather than asked of the library, whose last state is after it.
    """

    taps = (11, 14, 16)

    def __init__(self, config: Wav2Vec2Config) -> None:
        from transformers import Wav2Vec2Model

        super().__init__()
        config.num_hidden_layers = max(self.taps)
        config.layerdrop = 0.0
        self.model = Wav2Vec2Model(config)
        self.channels: int = config.hidden_size

    def forward(self, wav: Tensor) -> Tensor:  # (B, S)
        """Features (B, C, T) of 16 kHz audio; each clip is standardised first."""
        mean = wav.mean(-1, keepdim=True)
        wav = (wav - mean) / torch.sqrt(wav.var(-1, keepdim=True, unbiased=False) + 1e-7)
        x = self.model.feature_extractor(wav).transpose(1, 2)  # (B, T, C')
        x, _ = self.model.feature_projection(x)
        encoder = self.model.encoder
        x = encoder.dropout(x + encoder.pos_conv_embed(x))
        states = [x]
        for layer in encoder.layers:
            out = layer(x)
            x = out[0] if isinstance(out, tuple) else out
            states.append(x)
        mixed = sum(states[i] for i in self.taps) / len(self.taps)
        return mixed.transpose(1, 2)


class WhisperFeatures(nn.Module):
    """Layer-normalised states of a Whisper encoder, joined: an early tap (prosody) and the output (words).

    The clip keeps its own length (no padding to 30 s): positions are cut to the clip. `warp` stretches the
    frequency axis before the mel filters, which gives the same words in another, invented voice.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, config: WhisperConfig, tap: int = 2) -> None:
        super().__init__()
        self.encoder = WhisperEncoder(config)
        self.tap = min(tap, config.encoder_layers)
        self.max_samples = config.max_source_positions * FRAME  # 30 s of Whisper's own
        self.channels = 2 * config.d_model
        filters = mel_filters(201, config.num_mel_bins, 0.0, 8000.0, 16_000)
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)  # (201, M)
        self.register_buffer("window", torch.hann_window(400), persistent=False)

    def log_mel(self, wav: Tensor, warp: float = 1.0) -> Tensor:
        """Whisper's log-mel (B, M, 2T) of wav (B, S), S a multiple of 320."""
        spec = (
            torch.stft(wav, 400, 160, window=self.window, return_complex=True)[..., :-1].abs() ** 2
        )  # (B, 201, 2T)
        if warp != 1.0:
            position = (torch.arange(201, device=wav.device).float() / warp).clamp(max=200)
            low = position.floor().long().clamp(max=199)
            part = (position - low)[:, None]
            spec = spec[:, low] * (1 - part) + spec[:, low + 1] * part
        mel = torch.log10((self.filters.T @ spec).clamp_min(1e-10))
        mel = torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8.0)
        return (mel + 4.0) / 4.0

    def forward(self, wav: Tensor, warp: float = 1.0) -> Tensor:  # (B, S)
        """Features (B, C, T) of 16 kHz audio, T = ceil(S / 320); longer than 30 s runs in 30 s windows."""
        wav = F.pad(wav, (0, -wav.shape[-1] % FRAME))
        parts = [self._window(part, warp) for part in wav.split(self.max_samples, dim=-1)]
        return torch.cat(parts, -1)

    def _window(self, wav: Tensor, warp: float) -> Tensor:
        n = wav.shape[-1]
        wav = F.pad(wav, (0, max(0, 640 - n)))  # reflect padding of the STFT needs more than 200 samples
        states = self.encoder(self.log_mel(wav, warp))
        early, last = states[self.tap], self.encoder.layer_norm(states[-1])
        both = torch.cat([F.layer_norm(early, early.shape[-1:]), last], -1)
        return both.transpose(1, 2)[..., : n // FRAME]


FeatureEncoder = Wav2Vec2Features | WhisperFeatures


def load_whisper_features(path: str | Path) -> WhisperFeatures:
    """Whisper encoder from a plain transformers directory (`WhisperEncoder`), in float32."""
    path, state = Path(path), _read_whisper(Path(path))
    config = _whisper_config(path / "config.json")
    with hub.sizes_checked(state, str(path)):
        features = WhisperFeatures(config)
    hub.load_strict(features.encoder, state, optional=(POSITIONS,), where=str(path))
    return features.eval()


def _whisper_config(file: Path) -> WhisperConfig:
    raw, where = hub.read_json(file), str(file)
    if (found := raw.get("model_type", "whisper")) != "whisper":
        raise CheckpointError(f"{where}: model_type {found!r:.80}, a Whisper encoder is needed")
    names = {field.name for field in dataclasses.fields(WhisperConfig)}  # other keys are of its decoder
    config = build_stored(WhisperConfig, {name: raw[name] for name in names & set(raw)}, where)
    for name, size in dataclasses.asdict(config).items():
        if isinstance(size, int) and size < 1:
            raise CheckpointError(f"{where}: {name} {size}, at least 1 is needed")
    width, heads = config.d_model, config.encoder_attention_heads
    if width % 2 or width < 4 or width % heads:
        raise CheckpointError(
            f"{where}: d_model {width} is no even multiple, from 4 on, of encoder_attention_heads {heads}"
        )
    return config


def _read_whisper(path: Path) -> dict[str, Tensor]:
    return {name.removeprefix("encoder."): tensor for name, tensor in hub.read_state(path).items()}


def load_wav2vec2_features(path: str | Path) -> Wav2Vec2Features:
    """wav2vec2 from a transformers directory, pickle or safetensors, in float32.

    Accepts the `wav2vec2.` prefix and both spellings of weight norm; layers after the last tap and the heads
    of pre-training are left out.
    """
    from transformers import Wav2Vec2Config

    path = Path(path)
    raw = hub.read_json(path / "config.json")
    for key, value in _WAV2VEC2_RULES.items():
        if raw.get(key, value) != value:
            raise CheckpointError(
                f"{path / 'config.json'}: {key} = {raw[key]!r} is not implemented, only {value!r}"
            )
    config = library_config(Wav2Vec2Config, raw, str(path / "config.json"))
    layers = config.num_hidden_layers
    if not max(Wav2Vec2Features.taps) <= layers <= MOST_LAYERS:
        least = max(Wav2Vec2Features.taps)
        raise CheckpointError(f"{path / 'config.json'}: {layers} layers, {least} to {MOST_LAYERS} are needed")
    state = {_wav2vec2_name(name): tensor for name, tensor in hub.read_state(path).items()}
    # A gigabyte of initial values would be drawn only to be overwritten.
    with hub.sizes_checked(state, str(path)), torch.device("meta"):
        features = Wav2Vec2Features(config)
    ignore = [
        *_PRETRAINING,
        *(f"encoder.layers.{i}.*" for i in range(max(features.taps), layers)),
    ]
    hub.load_strict(features.model, state, ignore=ignore, optional=("masked_spec_embed",), where=str(path))
    unused = getattr(
        features.model, "masked_spec_embed", None
    )  # of pre-training alone, and not in every file
    if unused is not None and unused.is_meta:
        features.model.masked_spec_embed = nn.Parameter(torch.zeros(config.hidden_size, dtype=torch.float32))
    return features.eval()


_WAV2VEC2_RULES: dict[str, Any] = {
    "model_type": "wav2vec2",
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "add_adapter": False,
}
_PRETRAINING = ("quantizer.*", "project_hid.*", "project_q.*")


def _wav2vec2_name(name: str) -> str:
    name = name.removeprefix("wav2vec2.")
    old = {
        "conv.weight_g": "conv.parametrizations.weight.original0",
        "conv.weight_v": "conv.parametrizations.weight.original1",
    }
    for was, now in old.items():
        if name.endswith(was):
            return name.removesuffix(was) + now
    return name


LOADERS: dict[str, Callable[[str | Path], FeatureEncoder]] = {
    "wav2vec2": load_wav2vec2_features,
    "whisper": load_whisper_features,
}


def load_features(path: str | Path, kind: str) -> FeatureEncoder:
    """The feature encoder of a codec; `kind` is "wav2vec2" or "whisper"."""
    return StoredFeatures(Path(path), kind).build()


@dataclass(frozen=True)
class StoredFeatures:
    """A feature encoder in a directory, which is built when something is first encoded."""

    path: Path
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in LOADERS:
            raise CheckpointError(
                f"codec config: features = {self.kind!r} is not implemented, only {sorted(LOADERS)}"
            )
        hub.weight_files(self.path)  # they are there

    @property
    def channels(self) -> int:
        """C of its features."""
        raw = hub.read_json(self.path / "config.json")
        name, usual, times = ("hidden_size", 1024, 1) if self.kind == "wav2vec2" else ("d_model", 384, 2)
        if type(width := raw.get(name, usual)) is not int:
            raise CheckpointError(f"{self.path / 'config.json'}: {name} {width!r:.80}, an integer is needed")
        return times * width

    def build(self) -> FeatureEncoder:
        """The network; CheckpointError for tensors that do not fit it."""
        return LOADERS[self.kind](self.path)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors that the network will have, without building it where the file tells them."""
        if self.kind != "whisper":
            return self.build().state_dict()
        raw, state = hub.read_json(self.path / "config.json"), _read_whisper(self.path)
        hub.check_finite(state, str(self.path))
        if POSITIONS not in state:
            state[POSITIONS] = sinusoids(raw["max_source_positions"], raw["d_model"])
        return {f"encoder.{name}": tensor.float() for name, tensor in state.items()}


AnyFeatures = FeatureEncoder | StoredFeatures


def save_features(features: FeatureEncoder, path: str | Path, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors; what `load_features` reads."""
    if isinstance(features, Wav2Vec2Features):
        state, config = features.model.state_dict(), features.model.config.to_diff_dict()
    else:
        state, config = features.encoder.state_dict(), features.encoder.config.to_dict()
    state = half_where_it_fits(state, dtype)
    if isinstance(features, WhisperFeatures) and _rounding(features) == 0:
        del state[POSITIONS]  # a megabyte that can be computed
    hub.write_model(Path(path), state, config)


def restore_positions(features: FeatureEncoder) -> None:
    """Positions of a Whisper encoder that half precision has rounded become sinusoids again."""
    if isinstance(features, WhisperFeatures) and _rounding(features) < 1e-3:
        table = features.encoder.embed_positions.weight
        table.data.copy_(sinusoids(*table.shape))


def _rounding(features: WhisperFeatures) -> float:
    """How far the positions are from Whisper's sinusoids."""
    table = features.encoder.embed_positions.weight.detach().float().cpu()
    return float((table - sinusoids(*table.shape)).abs().max())


def library_config(cls: type[C], raw: Mapping[str, Any], where: str, also: Iterable[str] = ()) -> C:
    """A config of transformers from the fields that its own class declares, and those named in `also`.

    All other keys are left out, so that a file chooses no attention kernel, remote code or quantisation to
    import or download. CheckpointError for values that the class refuses.
    """
    own = (kind for kind in cls.__mro__ if vars(kind).get("model_type"))  # empty in the common base
    names = {name for kind in own for name in vars(kind)["__annotations__"]} | {
        "architectures",
        *OLD_NAMES,
        *also,
    }
    kept = {name: value for name, value in raw.items() if name in names}
    try:
        for name, value in kept.items():
            if isinstance(value, int) and abs(value) >= 1 << 31:
                raise ValueError(f"{name} is out of range")
        return cls(**kept)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{where}: no {cls.__name__} of transformers ({reason})") from error


def library_model(cls: Any, config: Any, folder: Path) -> Any:
    """A model of transformers in float32, with the weights of a folder, of which it opens no file itself.

    CheckpointError for tensors that are missing, unexpected, of another shape or not finite.
    """
    state = hub.read_state(folder)
    hub.check_finite(state, str(folder))
    with hub.sizes_checked(state, str(folder)):  # the library renames tensors of older files, so it loads
        model, report = cls.from_pretrained(
            None,
            config=config,
            state_dict=state,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    whole = [sum(not t.is_floating_point() for t in s.values()) for s in (state, model.state_dict())]
    if whole[0] != whole[1]:
        raise CheckpointError(f"{folder}: {whole[0]} tensors of integers, the model has {whole[1]}")
    if lines := [hub.listing(kind, sorted(map(str, report[kind]))) for kind in kinds if report.get(kind)]:
        raise CheckpointError("\n".join([f"{folder}: weights do not fit the model", *lines]))
    return model


def half_where_it_fits(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The floating tensors of a state in `dtype`, on the CPU; one that would overflow stays as it is."""
    out = {}
    for name, tensor in state.items():
        smaller = tensor.to(dtype) if tensor.is_floating_point() else tensor
        kept = tensor if smaller.is_floating_point() and not smaller.isfinite().all() else smaller
        out[name] = kept.detach().cpu().contiguous()
    return out


def state_digest(config: dict[str, Any], *states: dict[str, Tensor]) -> str:
    """SHA-256 (hex) over a configuration and named tensors."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for state in states:
        for name in sorted(state):
            digest.update(f"{name} {tuple(state[name].shape)} {state[name].dtype}\n".encode())
            digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
