"""The sizes and switches of a BiCodec, typed: the published YAML (docs/checkpoints.md) or our JSON."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from gpa import hub
from gpa.config import Layers, Rate, Size, Within, build, read_yaml, require
from gpa.errors import CheckpointError, UsageError

Ratio = Annotated[int, Within(1, 64)]
Ratios = Annotated[tuple[Ratio, ...], Within(0, 8)]
Bands = Annotated[int, Within(0, 1024)]
Hop = Annotated[int, Within(1, 1 << 13)]
Lookahead = Annotated[int, Within(0, 1024)]
Hertz = Annotated[int | float, Within(0, 1 << 20)]  # as written: fingerprints tell 10 from 10.0


@dataclass(frozen=True)
class MelConfig:
    """Mel of the global path: magnitude STFT, Slaney scale and norm; `log` is ours, published is linear."""

    sample_rate: Rate = 16_000
    n_fft: Annotated[int, Within(2, 1 << 14)] = 1024
    win_length: Rate = 640
    hop_length: Rate = 320
    mel_fmin: Hertz = 10
    mel_fmax: Hertz | None = None
    num_mels: Annotated[int, Within(1, 1024)] = 128
    log: bool = False

    def __post_init__(self) -> None:
        top = self.mel_fmax or self.sample_rate / 2
        require(self.win_length <= self.n_fft, "mel_params.win_length is above n_fft")
        require(self.mel_fmin < top <= self.sample_rate / 2, "mel_params: mel_fmin, mel_fmax do not rise")


@dataclass(frozen=True)
class BackboneConfig:
    """Sizes of the semantic encoder, of the prenet or of the postnet. With `lookahead` the prenet hears so
    many of the frames ahead that it draws; published ones hear as much of the future as of the past.
    """

    input_channels: Size
    vocos_dim: Size
    vocos_intermediate_dim: Size
    vocos_num_layers: Layers
    out_channels: Size
    sample_ratios: Ratios = (1, 1)
    condition_dim: Size | None = None
    use_tanh_at_final: bool = False
    lookahead: Lookahead | None = None  # ours


@dataclass(frozen=True)
class QuantizerConfig:
    """The semantic quantiser. The loss weights that the published file also holds are fixed in
    `FactorizedVQ`.
    """

    input_dim: Size
    codebook_size: Size
    codebook_dim: Size


@dataclass(frozen=True)
class SpeakerConfig:
    """Sizes of the global path; `channels` is 512 in the published model and not in its config."""

    input_dim: Size
    out_dim: Size
    latent_dim: Size
    token_num: Annotated[int, Within(1, 4096)]
    fsq_levels: Annotated[tuple[Annotated[int, Within(2, 64)], ...], Within(1, 8)]
    channels: Annotated[int, Within(8, 1 << 16)] = 512
    normalise: bool = False  # batch norm before rounding (ours)
    x_vector: bool = True  # the utterance embedding of published training, which nothing else uses
    pre_norm: bool = False  # scale what enters the perceiver's layers; training them then is stable (ours)


@dataclass(frozen=True)
class RefinerConfig:
    """Sizes of the network that refines the spectra of the source-filter decoder."""

    dim: Size
    hidden: Size
    layers: Annotated[int, Within(1, 64)]


@dataclass(frozen=True)
class WaveConfig:
    """Waveform decoder: `rates` and `kernel_sizes` make the published one, `n_fft` the ISTFT decoder,
    `bands` the source-filter decoder. The last two hear `lookahead` frames ahead, or as many as behind."""

    input_channel: Size
    channels: Size
    rates: Ratios = ()
    kernel_sizes: Ratios = ()
    n_fft: Annotated[int, Within(0, 1 << 14)] = 0
    bands: Bands = 0
    hop_length: Hop = 320
    hidden: Annotated[int, Within(0, 1 << 24)] = 0
    layers: Layers = 0
    sharpen: tuple[int | float, int | float] = (0.0, 0.0)  # of the source-filter decoder, see there
    voiced_to: Hertz = 0.0  # the same
    lookahead: Lookahead | None = None
    refiner: RefinerConfig | None = None

    def __post_init__(self) -> None:
        require(len(self.rates) == len(self.kernel_sizes), "decoder: as many kernel_sizes as rates")
        drawn = bool(self.bands) + bool(self.n_fft) + bool(self.rates)
        require(drawn == 1, "decoder: one of bands, n_fft and rates is given")
        halves = self.channels >> len(self.rates)
        require(halves > 0, f"decoder.channels {self.channels} cannot be halved {len(self.rates)} times")
        wide = not self.n_fft or self.n_fft >= self.hop_length
        require(wide, f"decoder.n_fft {self.n_fft} is below hop_length {self.hop_length}")

    @property
    def hop(self) -> int:
        """Samples per frame of what it reads."""
        return math.prod(self.rates) if self.rates else self.hop_length


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
    features: Literal["wav2vec2", "whisper"] = "wav2vec2"
    standardise: bool = False  # features are centred and scaled by statistics stored with the weights (ours)
    sample_rate: Rate = 16_000
    ref_segment_duration: Annotated[int | float, Within(0.1, 60)] = 6.0
    volume_normalize: bool = True
    latent_hop_length: Rate = 320  # samples per semantic id

    def __post_init__(self) -> None:
        ratio, hop = math.prod(self.prenet.sample_ratios), self.decoder.hop
        fits = self.latent_hop_length == ratio * hop
        require(fits, f"latent_hop_length {self.latent_hop_length} is not {ratio} x {hop}, what is drawn")
        pairs = {
            "encoder.out_channels, quantizer.input_dim": (
                self.encoder.out_channels,
                self.quantizer.input_dim,
            ),
            "quantizer.input_dim, prenet.input_channels": (
                self.quantizer.input_dim,
                self.prenet.input_channels,
            ),
            "prenet.out_channels, decoder.input_channel": (
                self.prenet.out_channels,
                self.decoder.input_channel,
            ),
            "speaker_encoder.input_dim, mel_params.num_mels": (
                self.speaker_encoder.input_dim,
                self.mel_params.num_mels,
            ),
        }
        for names, (one, other) in pairs.items():
            require(one == other, f"{names}: {one} and {other} must be equal")

    @classmethod
    def from_dict(cls, raw: dict[str, Any], where: str = "codec config") -> BiCodecConfig:
        """Typed config; raises CheckpointError for a key or value this code does not implement."""
        sizes = {name: value for name, value in raw.items() if name != "audio_tokenizer"}
        try:
            tree = {**_section(raw.get("audio_tokenizer", {})), **sizes}
            kept = {name: _section(value) for name, value in tree.items() if name not in _UNUSED}
            return build(cls, kept, "codec config")
        except UsageError as error:
            raise CheckpointError(f"{where}: {error}") from error

    @classmethod
    def read(cls, folder: Path) -> BiCodecConfig:
        """Of a codec's directory: its config.yaml if it is a published one, else its config.json."""
        if (path := folder / "config.yaml").is_file():
            return cls.from_dict(read_yaml(path, CheckpointError), str(path))
        config = hub.read_json(path := folder / "config.json")
        config.pop("model_type", None)
        return cls.from_dict(config, str(path))

    def to_dict(self) -> dict[str, Any]:
        """Inverse of `from_dict`."""
        return dataclasses.asdict(self)


# Named in the published file, used by nothing.
_UNUSED = ("highpass_cutoff_freq", "segment_duration", "max_val_duration")
_IGNORED = {
    "commitment",
    "codebook_loss_weight",
    "use_l2_normlize",
    "threshold_ema_dead_code",
    "fsq_num_quantizers",
}


def _section(value: Any) -> Any:
    """A section without what published ones hold for training alone."""
    if not isinstance(value, dict):
        return value
    require(value.get("fsq_num_quantizers", 1) == 1, "fsq_num_quantizers other than 1 is not implemented")
    return {name: setting for name, setting in value.items() if name not in _IGNORED}
