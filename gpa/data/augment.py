"""Degraded speech made on the fly: a chain of degradations drawn from (seed, number), and pairs for each
task.

A chain is a tuple of steps, each a name and plain numbers: it says what was done, goes into metadata as JSON,
and does the same again. Noise and rooms come from folders given by path, or are simulated. The functions are
in `gpa.data.effects`. The page: docs/data.md.

    S samples at 16 kHz, float32
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpa import audio
from gpa.data import effects
from gpa.data.effects import RATE
from gpa.errors import DataError, UsageError

HELD_OUT = 10  # every tenth noise and room is kept for held-out degraders
ORDER = ("eq", "reverb", "noise", "compress", "clip", "band", "quantise", "drop")
ACOUSTICS = ("eq", "reverb", "noise", "band")  # what a place and a device do: heard in all of a recording
Speech = Callable[[np.random.Generator, int], np.ndarray]


def _chances() -> dict[str, float]:
    rare = dict.fromkeys(("clip", "quantise", "drop"), 0.1)
    return {"eq": 0.5, "reverb": 0.5, "noise": 0.95, "compress": 0.5, "band": 0.5, **rare}


@dataclass(frozen=True)
class DegradeArgs:
    """What a chain may hold: section `degrade` of a recipe. Order and chances are inferred [I].

    `noise`: a folder with manifest.json, "" for coloured noise alone; `rooms`: a folder of impulse responses,
    "" for simulated ones alone. Ranges are drawn from uniformly.
    """

    noise: str = ""
    rooms: str = ""
    order: tuple[str, ...] = ORDER
    chances: dict[str, float] = field(default_factory=_chances)
    snr_db: tuple[float, ...] = (-10.0, 30.0)
    overlap_db: tuple[float, ...] = (-5.0, 5.0)  # wanted speaker against the other
    t60: tuple[float, ...] = (0.1, 0.9)  # seconds
    simulated: float = 0.5  # share of noise and rooms that is simulated although folders are given

    def __post_init__(self) -> None:
        if strange := sorted({*self.order, *self.chances} - set(ORDER)):
            raise UsageError(f"degrade: unknown degradations {strange}; known: {sorted(ORDER)}")
        for name in ("snr_db", "overlap_db", "t60"):
            low_high = getattr(self, name)
            if len(low_high) != 2 or not low_high[0] <= low_high[1]:
                raise UsageError(f"degrade.{name}: {low_high} is not a range of two rising numbers")
        if not all(0 <= c <= 1 for c in (self.simulated, *self.chances.values())):
            raise UsageError("degrade: chances lie between 0 and 1")


class Step(NamedTuple):
    """One degradation with all its numbers; `seed` is that of what it draws per sample."""

    name: str
    settings: Mapping[str, Any]


Steps = tuple[Step, ...]


@dataclass(frozen=True)
class Pair:
    """An example of a speech-to-speech task: source and target (S,), aligned, and what was done.

    `prompt` is the sample of the wanted voice or acoustics, where the task has one.
    """

    task: str
    source: np.ndarray
    target: np.ndarray
    prompt: np.ndarray | None = None
    steps: Steps = ()


def load_noise(folder: str | Path) -> list[np.ndarray]:
    """The clips that manifest.json of a folder lists, int16 at 16 kHz; DataError if there are none."""
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file; a noise folder lists its clips there: [{{'path': ...}}, ...]")
    names = [row["path"] for row in json.loads(path.read_text(encoding="utf-8"))]
    if not names:
        raise DataError(f"{path}: lists no clips")
    return [_int16(audio.load(path.parent / name)) for name in names]


def load_rooms(folder: str | Path) -> list[np.ndarray]:
    """The impulse responses (WAV) of a folder, in order of their names, float32 at 16 kHz."""
    files = sorted(path for path in Path(folder).glob("*") if path.is_file())
    paths = [path for path in files if path.suffix.lower() == ".wav" and not path.name.startswith(".")]
    if not paths:
        raise DataError(f"{folder}: holds no impulse responses (*.wav)")
    return [audio.load(path) for path in paths]


def _int16(wav: np.ndarray) -> np.ndarray:
    return (wav.clip(-1, 1) * 32767).astype(np.int16)


class Degrader:
    """Draws chains and pairs, each a pure function of (seed, number), and applies them.

    `held_out` takes the noises and rooms that others never hear. `speech(rng, S)` gives a stretch of
    anybody's speech, of which babble is made; without it there is none.
    """

    def __init__(
        self, args: DegradeArgs, seed: int, *, speech: Speech | None = None, held_out: bool = False
    ) -> None:
        self.args, self.seed, self.speech = args, seed, speech
        self.noises = _part(load_noise(args.noise), held_out) if args.noise else []
        self.rooms = _part(load_rooms(args.rooms), held_out) if args.rooms else []

    def chain(self, number: int, only: Sequence[str] = ORDER) -> Steps:
        """The chain of a number, in the configured order, without what is not in `only`."""
        rng = np.random.default_rng((self.seed, 11, number))
        drawn = {name: (rng.random(), _DRAW[name](self, rng)) for name in ORDER}  # always as many draws
        chances = self.args.chances
        chosen = (name for name in self.args.order if name in only)
        return tuple(Step(name, drawn[name][1]) for name in chosen if drawn[name][0] < chances.get(name, 0))

    def apply(self, wav: np.ndarray, steps: Steps) -> np.ndarray:
        """The waveform (S,) after all steps; a peak above full scale is brought down to it."""
        for step in steps:
            wav = _APPLY[step.name](self, wav, step.settings)
        return _within(wav)

    def background(self, wav: np.ndarray, settings: Mapping[str, Any]) -> np.ndarray:
        """The sound (S,) that a noise step adds to `wav`; zeros if that is silent."""
        samples, rng = len(wav), np.random.default_rng(settings["seed"])
        if settings["kind"] == "recorded":
            noise = effects.stretch(self.noises[settings["clip"]], samples, settings["at"])
        elif settings["kind"] == "babble" and self.speech is not None:
            voices = [self.speech(rng, samples) for _ in range(settings["voices"])]
            noise = np.stack([effects.with_power(voice, 1.0) for voice in voices]).sum(0)
        else:
            noise = effects.coloured_noise(rng, samples, settings["slope_db"])
        return effects.at_ratio(wav, noise, settings["snr_db"])

    # Examples of the tasks ----------------------------------------------------------------------------------

    def enhance(self, speech: np.ndarray, number: int) -> Pair:
        """Degraded speech and the speech."""
        steps = self.chain(number)
        return Pair("enhance", self.apply(speech, steps), _copy(speech), steps=steps)

    def isolate(self, speech: np.ndarray, number: int, *, background: bool) -> Pair:
        """Speech before a background, and one of them; the same number gives the same mixture for both."""
        step = self._noise_step(number)
        added = self.background(speech, step.settings)
        mixture = speech + added
        scale = _scale(mixture)
        target = added if background else speech
        task = "iso_bg" if background else "iso_fg"
        return Pair(task, _scaled(mixture, scale), _scaled(target, scale), steps=(step,))

    def extract(self, speech: np.ndarray, other: np.ndarray, voice: np.ndarray, number: int) -> Pair:
        """Two speakers at once, and the first; `voice` is another sample of the first.

        As often as a chain has noise, a background is added to both.
        """
        rng = np.random.default_rng((self.seed, 12, number))
        ratio = _uniform(rng, self.args.overlap_db)
        mixture = speech + effects.at_ratio(speech, effects.stretch(other, len(speech)), ratio)
        noise = self.chain(number, ("noise",))
        for step in noise:
            mixture = mixture + self.background(speech, step.settings)
        scale = _scale(mixture)
        steps = (Step("overlap", {"ratio_db": ratio}), *noise)
        return Pair("spk_sep", _scaled(mixture, scale), _scaled(speech, scale), _copy(voice), steps)

    def match(self, speech: np.ndarray, example: np.ndarray, number: int) -> Pair:
        """Clean speech, the same in some acoustics, and `example` (clean, anybody's) in those acoustics.

        Its noise is another stretch of the same noise.
        """
        steps = self.chain(number, ACOUSTICS)
        again = tuple(Step(s.name, _later(s.settings) if s.name == "noise" else s.settings) for s in steps)
        return Pair("match", _copy(speech), self.apply(speech, steps), self.apply(example, again), steps)

    def _noise_step(self, number: int) -> Step:
        rng = np.random.default_rng((self.seed, 13, number))
        return Step("noise", _draw_noise(self, rng))


def _part(clips: list[np.ndarray], held_out: bool) -> list[np.ndarray]:
    """Every tenth clip, or the others; of too few all."""
    kept = [clip for i, clip in enumerate(clips) if (i % HELD_OUT == HELD_OUT - 1) == held_out]
    return kept or clips


def _scale(wav: np.ndarray) -> float:
    return 1.0 / max(1.0, float(np.abs(wav).max(initial=0.0)))


def _within(wav: np.ndarray) -> np.ndarray:
    return _scaled(wav, _scale(wav))


def _scaled(wav: np.ndarray, scale: float) -> np.ndarray:
    return np.array(wav * scale, np.float32)


def _copy(wav: np.ndarray) -> np.ndarray:
    return np.array(wav, np.float32)


def _later(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, "at": (settings["at"] + 0.5) % 1.0, "seed": settings["seed"] + 1}


# Drawing ----------------------------------------------------------------------------------------------------


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _uniform(rng: np.random.Generator, low_high: tuple[float, ...]) -> float:
    return float(rng.uniform(low_high[0], low_high[1]))


def _draw_eq(c: Degrader, rng: np.random.Generator) -> dict[str, Any]:
    return {"gains_db": [round(float(g), 2) for g in rng.uniform(-9, 9, 7)]}  # 125 Hz to 8 kHz


def _draw_reverb(c: Degrader, rng: np.random.Generator) -> dict[str, Any]:
    measured = bool(c.rooms) and rng.random() >= c.args.simulated
    room = {"t60": _uniform(rng, c.args.t60), "direct_db": float(rng.uniform(-3, 12))}
    number, seed = int(rng.integers(max(1, len(c.rooms)))), _seed(rng)
    return {"room": number} if measured else {**room, "seed": seed}


def _draw_noise(c: Degrader, rng: np.random.Generator) -> dict[str, Any]:
    recorded = bool(c.noises) and rng.random() >= c.args.simulated
    kind = "recorded" if recorded else "babble" if c.speech and rng.random() < 0.5 else "coloured"
    return {
        "kind": kind,
        "snr_db": _uniform(rng, c.args.snr_db),
        "clip": int(rng.integers(max(1, len(c.noises)))),
        "at": float(rng.random()),
        "voices": int(rng.integers(3, 7)),
        "slope_db": float(rng.uniform(-6, 1)),
        "seed": _seed(rng),
    }


def _draw_compress(c: Degrader, rng: np.random.Generator) -> dict[str, Any]:
    return {"ratio": float(rng.uniform(1.5, 8)), "threshold_db": float(rng.uniform(-15, 5))}


def _draw_clip(c: Degrader, rng: np.random.Generator) -> dict[str, Any]:
    return {"below_peak_db": float(rng.uniform(3, 18))}


def _draw_band(c: Degrader, rng: np.random.Generator) -> dict[str, Any]:
    low, high = float(rng.uniform(50, 400)), float(rng.uniform(2500, 7000))
    rate = int(rng.choice([4000, 6000, 8000, 11025, 12000]))
    return {"rate": rate} if rng.random() < 0.5 else {"low": low, "high": high}


def _draw_quantise(c: Degrader, rng: np.random.Generator) -> dict[str, Any]:
    return {"bits": int(rng.integers(4, 9))}


def _draw_drop(c: Degrader, rng: np.random.Generator) -> dict[str, Any]:
    share, burst = float(rng.uniform(0.02, 0.2)), float(rng.uniform(1, 4))
    return {"share": share, "burst": burst, "seed": _seed(rng)}


# Applying ---------------------------------------------------------------------------------------------------

Settings = Mapping[str, Any]


def _reverb(c: Degrader, wav: np.ndarray, s: Settings) -> np.ndarray:
    if "room" in s:
        return effects.reverberate(wav, c.rooms[s["room"]])
    response = effects.room(np.random.default_rng(s["seed"]), s["t60"], s["direct_db"])
    return effects.reverberate(wav, response)


def _band(c: Degrader, wav: np.ndarray, s: Settings) -> np.ndarray:
    if "rate" in s:
        return effects.through_rate(wav, s["rate"], RATE)
    return effects.band_limit(wav, s["low"], s["high"])


def _drop(c: Degrader, wav: np.ndarray, s: Settings) -> np.ndarray:
    return effects.drop_packets(wav, np.random.default_rng(s["seed"]), s["share"], s["burst"])


_DRAW: dict[str, Callable[[Degrader, np.random.Generator], dict[str, Any]]] = {
    "eq": _draw_eq,
    "reverb": _draw_reverb,
    "noise": _draw_noise,
    "compress": _draw_compress,
    "clip": _draw_clip,
    "band": _draw_band,
    "quantise": _draw_quantise,
    "drop": _draw_drop,
}
_APPLY: dict[str, Callable[[Degrader, np.ndarray, Settings], np.ndarray]] = {
    "eq": lambda c, wav, s: effects.equalise(wav, np.array(s["gains_db"])),
    "reverb": _reverb,
    "noise": lambda c, wav, s: wav + c.background(wav, s),
    "compress": lambda c, wav, s: effects.compress(wav, s["ratio"], s["threshold_db"]),
    "clip": lambda c, wav, s: effects.clip(wav, s["below_peak_db"]),
    "band": _band,
    "quantise": lambda c, wav, s: effects.quantise(wav, s["bits"]),
    "drop": _drop,
}
