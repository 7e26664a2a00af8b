"""What learning a voice will take, said before anything is done: from file headers and a probe of a step.

Nothing is decoded, transcribed or written. The probe is one training step of a decoder of the model's size
with random weights; what else is done takes so many probes for a second of sound or for a sentence, measured
once with gpa-mini on two cores (docs/finetuning.md). The run says at its end what it took.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gpa import audio
from gpa.data import token_folder
from gpa.data.sources import open_source
from gpa.errors import AudioError, DataError
from gpa.train.families import speaker_adaptation
from gpa.train.families.base import to_device
from gpa.train.parallel import autocast
from gpa.train.planning import GIB

if TYPE_CHECKING:
    from gpa.train.families.lm import LMFamily

PASSES = 8  # of a language model over the voice, if no number of steps is given
FEWEST, MOST = 40, 1000  # steps of it
VOICE_STEPS = 100  # of a voice; the held-out loss says which of them was best
BYTES = 700 * 2**20  # of a process that has loaded its libraries
# Probes that a second of sound, or one thing of a kind, takes.
COSTS = {
    "transcribed": 0.5,  # a second that has no text
    "prepared": 0.06,  # a second
    "completed": 0.06,  # a second, whose timbre and pitch are measured
    "judged": 4.5,  # an item of the table, spoken or converted, once
    "rehearsed": 3.0,  # a sentence or conversion of the base model
    "begun": 30.0,  # a run: libraries, models and judges are loaded
}
EVALUATED = 1.25  # probes that a step takes with its share of what is judged meanwhile
REHEARSED = 180  # sentences and conversions
HELD_SHARE = 0.15


@dataclass(frozen=True)
class Found:
    """What a folder holds by its headers: clips, their seconds, and how many of these have no text."""

    clips: int
    seconds: float
    untold: float

    @classmethod
    def of(cls, folder: Path) -> Found:
        """Of recordings or a manifest; what cannot be read counts as nothing, the run will say why."""
        clips, seconds, untold = 0, 0.0, 0.0
        for row in open_source(folder).check():
            if row.audio.fetch:
                raise DataError(f"{folder}: give a folder of audio files or a manifest, not a dataset")
            if row.bad_name:
                continue
            try:
                whole = row.seconds or audio.seconds(row.audio.name)
            except AudioError:
                continue
            length = (whole if row.audio.end is None else row.audio.end) - row.audio.begin
            clips, seconds = clips + 1, seconds + length
            untold += 0.0 if row.text.strip() else length
        return cls(clips, seconds, untold)


@dataclass(frozen=True)
class Size:
    """What is to be done: steps of the voice and of the language model, items, and how much is rehearsed."""

    voice_steps: int
    lm_steps: int = 0
    batch_ids: int = 0
    lines: int = 2  # of the table
    items: int = 0
    rehearsed: int = 0


@dataclass(frozen=True)
class Plan:
    """Seconds by stage, and bytes."""

    found: Found
    size: Size
    seconds: Mapping[str, float]
    memory: float

    @property
    def minutes(self) -> float:
        """Of everything."""
        return sum(self.seconds.values()) / 60

    def lines(self) -> Iterator[str]:
        """For people."""
        found, size = self.found, self.size
        yield f"voice      {found.seconds / 60:.1f} min in {found.clips} clips, a seventh held out"
        yield (
            f"text       {found.untold / 60:.1f} min have none: to be transcribed"
            if found.untold
            else ("text       given")
        )
        yield f"steps      {size.voice_steps} of the voice" + (
            f", {size.lm_steps} of the language model" if size.lm_steps else ""
        )
        yield f"memory     about {self.memory / GIB:.1f} GiB"
        parts = ", ".join(f"{name} {took / 60:.1f}" for name, took in self.seconds.items() if took)
        yield f"time       about {self.minutes:.1f} min on this machine as busy as it is: {parts}"


def steps_for(ids: float, batch_ids: int, replay_share: float) -> int:
    """Steps that show the voice's `ids` PASSES times, each for recognition and for speech."""
    wanted = 2 * PASSES * ids / (batch_ids * (1 - replay_share))
    return int(min(MOST, max(FEWEST, wanted)))


def plan(found: Found, size: Size, codec: Path, lm: Path) -> Plan:
    """From what was found, and the folders of codec and language model: a probe of each that is trained."""
    probe = speaker_adaptation.step_seconds(codec)
    per = {name: cost * probe for name, cost in COSTS.items()}
    learning = EVALUATED * size.voice_steps * probe + per["completed"] * found.seconds
    words = size.rehearsed * per["rehearsed"]
    words += size.lm_steps * _lm_step(lm, size.batch_ids) if size.lm_steps else 0.0
    seconds = {
        "loading": per["begun"],
        "preparing": per["prepared"] * found.seconds + per["transcribed"] * found.untold,
        "voice": learning,
        "language model": words,
        "table": 2 * size.lines * size.items * per["judged"],
    }
    weights = sum(path.stat().st_size for path in (*codec.rglob("*.safetensors"), *lm.glob("*.safetensors")))
    trained = 8.0 if size.lm_steps else 4.0  # float32 of float16 files, twice where a second model is loaded
    return Plan(found, size, seconds, BYTES + trained * weights)


def _lm_step(folder: Path, ids: int) -> float:
    """Seconds of a step on `ids` ids: 6 operations a weight and id, at the speed of a matrix product here."""
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2
    a = torch.randn(512, 512)
    torch.mm(a, a)
    began = time.perf_counter()
    for _ in range(8):
        torch.mm(a, a)
    return 6 * weights * ids / (8 * 2 * 512**3 / (time.perf_counter() - began)) * 1.5  # attention, norms


def precision(family: LMFamily, device: torch.device) -> str:
    """The faster of float32 and bfloat16 products, by the second of two steps in each without an update."""
    module = family.build().to(device)
    took = {}
    for name in ("fp32", "bf16"):
        for _ in range(2):
            began = time.perf_counter()
            with autocast(name, device):
                loss = next(family.losses(module, to_device(family.batch(0), device), 0))
            loss.value.backward()
            module.zero_grad()
            took[name] = time.perf_counter() - began
    return "bf16" if took["bf16"] < 0.8 * took["fp32"] else "fp32"


@dataclass
class Clock:
    """Seconds of every stage, kept in a file, so that a run that was killed does not forget them."""

    path: Path
    took: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.is_file():
            self.took = json.loads(self.path.read_text(encoding="utf-8"))
        self.began = time.monotonic()

    def stage(self, name: str) -> None:
        """What was done since the last call was of this stage."""
        now = time.monotonic()
        self.took[name] = round(self.took.get(name, 0.0) + now - self.began, 1)
        self.began = now
        token_folder.write_json(self.path, self.took)

    @property
    def minutes(self) -> float:
        """Of all stages."""
        return sum(self.took.values()) / 60
