"""All numbers of a SpeechOp model in one typed tree, from the paper's 419 M parameters down to a toy.

Defaults are the paper's. A field marked [I] is inferred: the paper does not state
it, so it is a setting rather than code.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from gpa import hub
from gpa.config import Layers, Rate, Share, Size, Within, build, build_stored, require
from gpa.errors import CheckpointError
from gpa.models.speechop.sizes_speechop import SIZES

FILE = "speechop.json"
VERSION = 1
TTS = "tts"  # speaks a text; the other tasks edit speech
TASKS = (TTS, "enhance", "iso_fg", "iso_bg", "spk_sep", "match")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    require(value in allowed, f"{name}: {value!r}; choose one of {', '.join(allowed)}")


@dataclass(frozen=True)
class Latent:
    """The codec's continuous latents: `channels` per frame, one frame each `hop` samples."""

    channels: Size = 64
    sample_rate: Rate = 48000  # Hz
    hop: Rate = 1200  # samples

    @property
    def frame_rate(self) -> float:
        """Latent frames per second."""
        return self.sample_rate / self.hop


@dataclass(frozen=True)
class Stack:
    """A stack of transformer blocks.

    `adaln` [I]: which norms the condition modulates, "ffn" or "both"; `gate` [I]: whether it also scales the
    residual branch. FFN alone with a gate closes the DiT's reported parameter count (20 d^2 a layer), without
    a gate the audio encoder's (15 d^2).
    """

    layers: Layers = 20
    width: Size = 1024
    heads: Size = 8
    ffn: Size = 3072
    dropout: Share = 0.1
    adaln: str = "ffn"
    gate: bool = True

    def __post_init__(self) -> None:
        whole = self.width % self.heads == 0 and self.width // self.heads % 2 == 0
        require(whole, f"width {self.width} is not {self.heads} heads of an even size")
        _one_of("adaln", self.adaln, ("ffn", "both"))


@dataclass(frozen=True)
class AudioStack(Stack):
    """The audio encoder's blocks; a class of its own: a recipe that sets one size keeps the others."""

    layers: Layers = 8
    width: Size = 768
    ffn: Size = 2304
    gate: bool = False


@dataclass(frozen=True)
class ASRFeatureSettings:
    """What the audio encoder is given of a source beside its latents (asr_features_speechop.py).

    `kind`: "none" (the paper's: latents alone) or "whisper", states of a frozen Whisper encoder. `weights`: a
    shipped folder, a path or a repository; `channels`: of all its states of one latent frame; `longest`: the
    seconds that are heard at once, those of a window.
    """

    kind: str = "none"
    weights: str = ""
    channels: Annotated[int, Within(0, 1 << 24)] = 0
    longest: Annotated[float, Within(0.1, 3600)] = 8.0

    def __post_init__(self) -> None:
        _one_of("asr_features.kind", self.kind, ("none", "whisper"))
        given = bool(self.weights) and self.channels > 0
        require(
            given == (self.kind != "none"), "asr_features: weights and channels go with a kind, none without"
        )


@dataclass(frozen=True)
class TextEncoder:
    """Where text states come from.

    `kind`: "byt5" (frozen, its weights given apart; `width` is ByT5's) or "bytes" (trained with the model, a
    `Stack` of these sizes). `positions` [I]: relative positions that cross-attention adds, "none", "keys"
    (text only, as SESD), or "both" (frames too), which should help small models to learn the alignment.
    """

    kind: str = "byt5"
    width: Size = 1536
    layers: Layers = 4
    heads: Size = 8
    ffn: Size = 4096
    dropout: Share = 0.1
    positions: str = "none"

    def __post_init__(self) -> None:
        _one_of("text.kind", self.kind, ("bytes", "byt5"))
        _one_of("text.positions", self.positions, ("none", "keys", "both"))

    @property
    def stack(self) -> Stack:
        """The byte encoder's blocks, which have no condition."""
        return Stack(self.layers, self.width, self.heads, self.ffn, self.dropout, gate=False)


@dataclass(frozen=True)
class Schedule:
    """Shifted cosine schedule; the ranges to which t and the log-SNR are clamped are [I]."""

    shift: float = 0.5
    lambda_max: float = 12.0
    t_edge: float = 1e-4

    def __post_init__(self) -> None:
        require(self.shift > 0 < self.lambda_max, "schedule: shift and lambda_max are positive")
        require(0 < self.t_edge < 0.5, "schedule.t_edge lies between 0 and 0.5")


@dataclass(frozen=True)
class Loss:
    """Weighting of the denoising loss; bias -2.5 is the paper's, the other fields are [I].

    `space`: whose squared error is weighted, v, eps or x; `weight`: by sigmoid(bias - lambda), or none.
    `times_minus_dlambda_dt` makes the integral over lambda uniform although t is drawn uniformly;
    `normalise_peak` divides by the largest weight of a v-error.
    """

    space: str = "eps"
    weight: str = "sigmoid"
    bias: float = -2.5
    times_minus_dlambda_dt: bool = False
    normalise_peak: bool = False

    def __post_init__(self) -> None:
        _one_of("loss.space", self.space, ("v", "eps", "x"))
        _one_of("loss.weight", self.weight, ("sigmoid", "none"))


@dataclass(frozen=True)
class Dropout:
    """How often a training example loses a condition, which trains the null branches."""

    source: Share = 0.1
    text: Share = 0.1


@dataclass(frozen=True)
class Inpaint:
    """How often a training example keeps a clean segment, and its length as a fraction of the frames.

    The fraction is Beta-distributed with this mode and concentration. A TTS example's segment is a prefix
    with probability `prefix`, else a span; a speech-to-speech example's is always a prefix.
    """

    tts: Share = 0.75
    s2s: Share = 0.1
    prefix: Share = 0.5
    mode: Share = 0.01
    concentration: float = 5.0

    def __post_init__(self) -> None:
        require(self.concentration > 2, "inpaint.concentration is above 2, or the Beta law has no mode")


@dataclass(frozen=True)
class Sampler:
    """Defaults of sampling: function of sampling.py, steps, log-SNRs of first and last node (these are [I]).

    `final`: whether x is predicted once more at the last node, one evaluation beyond `steps`.
    """

    name: str = "sde_dpmpp_2m"
    steps: Annotated[int, Within(1, 10_000)] = 256
    lambda_range: tuple[float, ...] = (-12.0, 12.0)
    final: bool = True

    def __post_init__(self) -> None:
        _one_of("sampler.name", self.name, ("sde_dpmpp_2m", "ode_dpmpp_2m", "ddim"))
        rising = len(self.lambda_range) == 2 and self.lambda_range[0] < self.lambda_range[1]
        require(rising, "sampler.lambda_range is two rising numbers")


@dataclass(frozen=True)
class Compose:
    """Strengths of guidance (1 is off) and composition (0 is off).

    `gamma` and `gate` are the paper's; [I]: `gamma_asr` for transcripts of a recogniser of ours,
    `base_guidance` during composition, `avg_weight` of the TC-Avg baseline.
    """

    gamma: float = 1.5
    gamma_asr: float = 0.75
    gate: float = -1.0  # log-SNR above which text guidance acts
    base_guidance: float = 1.0
    avg_weight: float = 0.5
    guidance_s2s: float = 1.5
    guidance_tts: float = 3.0
    guidance_edit: float = 2.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            require(not math.isnan(value), f"compose.{name} is not a number")


@dataclass(frozen=True)
class Null:
    """What absent conditions are [I]: the source's features zero or a learned vector.

    `keep_prompt`: whether the null of a TTS term keeps its speech prompt and drops the text alone.
    """

    source: str = "zero"
    keep_prompt: bool = False

    def __post_init__(self) -> None:
        _one_of("null.source", self.source, ("zero", "learned"))


_WEIGHTS = {"enhance": 3.0, "spk_sep": 3.0, "iso_fg": 0.5, "iso_bg": 0.5, "match": 1.0}


@dataclass(frozen=True)
class Filter:
    """How a recording is filtered by what the network makes of it (filter_speechop.py), beyond the paper.

    `tasks`: where that is the usual result. `floor` is the least gain in dB. The gain is the amplitudes'
    ratio to the `power`: 2 is Wiener's, 1 its root. `frames` of 10 ms, an odd number, are averaged over.
    """

    tasks: tuple[str, ...] = ()
    bands: Annotated[int, Within(2, 4096)] = 60
    floor: Annotated[float, Within(-300, 0)] = -20.0
    power: float = 1.0
    frames: Annotated[int, Within(1, 1001)] = 7

    def __post_init__(self) -> None:
        for task in self.tasks:
            _one_of("filter.tasks", task, ("enhance", "spk_sep", "iso_fg", "iso_bg"))
        require(self.frames % 2 == 1 and self.power > 0, "filter: an odd number of frames, power above 0")


@dataclass(frozen=True)
class Tasks:
    """Task names, whose order gives their embeddings' rows, and how often each speech-to-speech one is drawn.

    That iso_fg and iso_bg share one weight is [I].
    """

    names: tuple[str, ...] = TASKS
    weights: dict[str, float] = field(default_factory=_WEIGHTS.copy)

    def __post_init__(self) -> None:
        require("tts" in self.names, "tasks.names has no tts, which every composition needs")
        require(len(set(self.names)) == len(self.names), f"tasks.names: {self.names} repeats a name")
        known = all(isinstance(w, (int, float)) and 0 <= w < math.inf for w in self.weights.values())
        require(known, f"tasks.weights: {self.weights} are not all numbers from 0 on")
        strange = sorted(set(self.weights) - set(self.names))
        require(not strange, f"tasks.weights: unknown tasks {strange}; known: {sorted(self.names)}")

    def index(self, task: str) -> int:
        """Row of a task's embedding; UsageError lists the known tasks."""
        _one_of("task", task, self.names)
        return self.names.index(task)


@dataclass(frozen=True)
class Speaking:
    """Length of speech made without a reference [I]: `default_rate` units per second.

    `unit`: "phonemes" (the paper's) or "characters", a deviation accepted for small models.
    """

    default_rate: Annotated[float, Within(0.1, 1000)] = 12.0
    unit: str = "phonemes"

    def __post_init__(self) -> None:
        _one_of("tts.unit", self.unit, ("phonemes", "characters"))


@dataclass(frozen=True)
class SpeechOpConfig:
    """Content of speechop.json. `SpeechOpConfig()` is the paper's model; `of_size` has smaller ones."""

    latent: Latent = field(default_factory=Latent)
    dit: Stack = field(default_factory=Stack)
    encoder: AudioStack = field(default_factory=AudioStack)
    asr_features: ASRFeatureSettings = field(default_factory=ASRFeatureSettings)
    text: TextEncoder = field(default_factory=TextEncoder)
    schedule: Schedule = field(default_factory=Schedule)
    loss: Loss = field(default_factory=Loss)
    drop: Dropout = field(default_factory=Dropout)
    inpaint: Inpaint = field(default_factory=Inpaint)
    sampler: Sampler = field(default_factory=Sampler)
    compose: Compose = field(default_factory=Compose)
    null: Null = field(default_factory=Null)
    tasks: Tasks = field(default_factory=Tasks)
    tts: Speaking = field(default_factory=Speaking)
    filter: Filter = field(default_factory=Filter)
    about: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_size(cls, size: str) -> SpeechOpConfig:
        """One of SIZES: toy, mini, small, paper (docs/speechop.md); UsageError for another name."""
        _one_of("size", size, tuple(SIZES))
        return build(cls, SIZES[size])

    @classmethod
    def read(cls, folder: Path) -> SpeechOpConfig:
        """From a checkpoint directory; CheckpointError if the file is absent or does not fit."""
        return cls.from_dict(hub.read_json(folder / FILE), str(folder / FILE))

    @classmethod
    def from_dict(cls, raw: dict[str, Any], where: str = FILE) -> SpeechOpConfig:
        """Typed content; CheckpointError for an unknown, mistyped or impossible setting: none is ignored."""
        raw = dict(raw)
        if (version := raw.pop("version", None)) != VERSION:
            raise CheckpointError(f"{where}: version {version!r}; this release reads version {VERSION}")
        return build_stored(cls, raw, where)

    def to_dict(self) -> dict[str, Any]:
        """Plain content, the inverse of `from_dict`."""
        return {"version": VERSION, **dataclasses.asdict(self)}

    def write(self, folder: Path) -> None:
        """Write speechop.json, the inverse of `read`."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")
