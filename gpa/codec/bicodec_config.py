"""The sizes and switches of a BiCodec, typed: the published YAML (docs/checkpoints.md) or our JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gpa import hub
from gpa.errors import CheckpointError


@dataclass(frozen=True)
class MelConfig:
    """Mel of the global path: magnitude STFT, Slaney scale and norm; `log` is ours, published is linear."""

    sample_rate: int = 16_000
    n_fft: int = 1024
    win_length: int = 640
    hop_length: int = 320
    mel_fmin: float = 10
    mel_fmax: float | None = None
    num_mels: int = 128
    log: bool = False


@dataclass(frozen=True)
class BackboneConfig:
    """Sizes of the semantic encoder, of the prenet or of the postnet."""

    input_channels: int
    vocos_dim: int
    vocos_intermediate_dim: int
    vocos_num_layers: int
    out_channels: int
    sample_ratios: tuple[int, ...] = (1, 1)
    condition_dim: int | None = None
    use_tanh_at_final: bool = False


@dataclass(frozen=True)
class QuantizerConfig:
    """The semantic quantiser. The loss weights that the published file also holds are fixed in
    `FactorizedVQ`.
    """

    input_dim: int
    codebook_size: int
    codebook_dim: int


@dataclass(frozen=True)
class SpeakerConfig:
    """Sizes of the global path; `channels` is 512 in the published model and not in its config."""

    input_dim: int
    out_dim: int
    latent_dim: int
    token_num: int
    fsq_levels: tuple[int, ...]
    channels: int = 512
    normalise: bool = False  # batch norm before rounding (ours)
    x_vector: bool = True  # the utterance embedding of published training, which nothing else uses
    pre_norm: bool = False  # scale what enters the perceiver's layers; training them then is stable (ours)


@dataclass(frozen=True)
class WaveConfig:
    """Waveform decoder: `rates` and `kernel_sizes` make the published one, `n_fft` the ISTFT decoder,
    `bands` the source-filter decoder."""

    input_channel: int
    channels: int
    rates: tuple[int, ...] = ()
    kernel_sizes: tuple[int, ...] = ()
    n_fft: int = 0
    bands: int = 0
    hop_length: int = 320
    hidden: int = 0
    layers: int = 0
    sharpen: tuple[float, float] = (0.0, 0.0)  # of the source-filter decoder, see there
    voiced_to: float = 0.0  # Hz, the same


@dataclass(frozen=True)
class BiCodecConfig:
    """Everything that shapes a BiCodec. `from_dict` reads the published YAML's content or our JSON's."""

    encoder: BackboneConfig
    quantizer: QuantizerConfig
    speaker_encoder: SpeakerConfig
    prenet: BackboneConfig
    decoder: WaveConfig
    postnet: BackboneConfig | None = (
        None  # reconstructs features in published training; never used for inference
    )
    mel_params: MelConfig = field(default_factory=MelConfig)
    features: str = "wav2vec2"  # or "whisper"
    standardise: bool = False  # features are centred and scaled by statistics stored with the weights (ours)
    sample_rate: int = 16_000
    ref_segment_duration: float = 6.0
    volume_normalize: bool = True
    latent_hop_length: int = 320  # samples per semantic id

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> BiCodecConfig:
        """Typed config; raises CheckpointError for a key or value this code does not implement."""
        raw = dict(raw)
        sizes = dict(raw.pop("audio_tokenizer", {}))
        for key in ("highpass_cutoff_freq", "segment_duration", "max_val_duration"):
            raw.pop(key, None)  # named in the published file, used by nothing
        sizes.update(raw)
        parts: dict[str, Any] = {}
        for f in dataclasses.fields(cls):
            if f.name in sizes:
                value = sizes.pop(f.name)
                parts[f.name] = _PARTS[f.name](value) if f.name in _PARTS and value is not None else value
        if sizes:
            raise CheckpointError(f"codec config: unknown keys {sorted(sizes)}")
        missing = [name for name in _PARTS if name not in parts and name not in ("mel_params", "postnet")]
        if missing:
            raise CheckpointError(f"codec config: missing sections {missing}")
        return cls(**parts)

    @classmethod
    def read(cls, folder: Path) -> BiCodecConfig:
        """Of a codec's directory: its config.yaml if it is a published one, else its config.json."""
        if (folder / "config.yaml").is_file():
            return cls.from_dict(_read_yaml(folder / "config.yaml"))
        config = hub.read_json(folder / "config.json")
        config.pop("model_type", None)
        return cls.from_dict(config)

    def to_dict(self) -> dict[str, Any]:
        """Inverse of `from_dict`."""
        return dataclasses.asdict(self)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: expected a mapping, found {type(tree).__name__}")
    return tree


_IGNORED = {
    "commitment",
    "codebook_loss_weight",
    "use_l2_normlize",
    "threshold_ema_dead_code",
    "fsq_num_quantizers",
}


def _section(cls: type, name: str) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}

    def read(raw: dict[str, Any]) -> Any:
        if raw.get("fsq_num_quantizers", 1) != 1:
            raise CheckpointError(
                f"codec config: {name}.fsq_num_quantizers={raw['fsq_num_quantizers']} is not implemented"
            )
        unknown = set(raw) - known - _IGNORED
        if unknown:
            raise CheckpointError(f"codec config: unknown keys {sorted(unknown)} in {name}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items() if k in known})

    return read


_PARTS = {
    "encoder": _section(BackboneConfig, "encoder"),
    "quantizer": _section(QuantizerConfig, "quantizer"),
    "speaker_encoder": _section(SpeakerConfig, "speaker_encoder"),
    "prenet": _section(BackboneConfig, "prenet"),
    "postnet": _section(BackboneConfig, "postnet"),
    "decoder": _section(WaveConfig, "decoder"),
    "mel_params": _section(MelConfig, "mel_params"),
}
