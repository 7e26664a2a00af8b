"""What the clips of the benchmark go through: one stated chain of a held-out noise and, at times, a room.

Knows waveforms and names of clips; no model and no judge.

    S samples at 16 kHz, float32
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpa.data.augment import HELD_OUT, DegradeArgs, Degrader, Steps
from gpa.errors import DataError

SNR_DB, ROOM = (0.0, 10.0), 0.5  # usual range of the noise; chance of a room
_TAKE = re.compile(r"-[A-Z](?=\.\w+$)")  # esc10_rain_1-17367-A.opus: another take of the same recording is -B


class NoisyClips:
    """Recorded noise at `snr_db`, before it a room in half of the clips; a clip's name decides which.

    Noises are those training never hears, without further takes of recordings that it does hear. Rooms are
    measured ones that training never hears, where the folder has so many that some are kept; else simulated.
    """

    def __init__(self, noise: Path, rooms: Path, seed: int = 0, snr_db: Sequence[float] = SNR_DB) -> None:
        """Load noises and rooms; DataError without recorded noise, UsageError for a range that falls."""
        self.snr_db = (float(snr_db[0]), float(snr_db[1]))
        measured = len(list(rooms.glob("*.wav"))) >= HELD_OUT
        chances = {"reverb": ROOM, "noise": 1.0}
        folder = str(rooms) if measured else ""
        args = DegradeArgs(str(noise), folder, chances=chances, snr_db=self.snr_db, simulated=0.0)
        self.degrader = Degrader(args, seed, held_out=True)
        self.names = _unheard(noise)
        if len(self.names) == len(self.degrader.noises):  # too few noises to keep any are all used
            fresh = _strangers(noise, self.names)
            kept = [n for name, n in zip(self.names, self.degrader.noises, strict=True) if name in fresh]
            self.names, self.degrader.noises = fresh, kept
        self.rooms = "measured, held out" if measured else "simulated (too few measured ones to hold any out)"

    def chain(self, name: str) -> Steps:
        """What is done to the clip of a name."""
        number = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
        return self.degrader.chain(number, ("reverb", "noise"))

    def __call__(self, wav: np.ndarray, name: str) -> np.ndarray:
        """The degraded clip (S,) of a clip (S,) and its name."""
        return self.degrader.apply(wav, self.chain(name))

    def labels(self, name: str) -> dict[str, str]:
        """The same in words."""
        steps = {step.name: step.settings for step in self.chain(name)}
        room, noise = steps.get("reverb"), steps["noise"]
        where = "none" if room is None else str(room.get("room", f"T60 {room.get('t60', 0):.2f} s"))
        return {"snr_db": f"{noise['snr_db']:.1f}", "noise": self.names[noise["clip"]], "room": where}

    def about(self) -> dict[str, Any]:
        """What decides all of it, for the settings of a report."""
        sounds = hashlib.sha256(b"".join(noise.tobytes() for noise in self.degrader.noises)).hexdigest()
        rooms = hashlib.sha256(b"".join(room.tobytes() for room in self.degrader.rooms)).hexdigest()
        counts = {"noises": len(self.names), "noise_sha256": sounds, "rooms_sha256": rooms}
        return {"snr_db": list(self.snr_db), "room_chance": ROOM, "rooms": self.rooms, **counts}

    def words(self) -> str:
        """The chain as a sentence for people."""
        low, high = self.snr_db
        return (
            f"Noisy: one of {len(self.names)} held-out noises at {low:g} to {high:g} dB SNR, "
            f"before it a room in {100 * ROOM:.0f} % of the clips, {self.rooms}."
        )


def _listed(folder: Path) -> list[str]:
    return [row["path"] for row in json.loads((folder / "manifest.json").read_text(encoding="utf-8"))]


def _unheard(folder: Path) -> list[str]:
    """Names of the noises that a held-out degrader has, in its order."""
    names = _listed(folder)
    return names[HELD_OUT - 1 :: HELD_OUT] or names


def _strangers(folder: Path, unheard: list[str]) -> list[str]:
    """Those of which training heard no other take; DataError if there are none."""
    heard = {_TAKE.sub("", name) for name in set(_listed(folder)) - set(unheard)}
    fresh = [name for name in unheard if _TAKE.sub("", name) not in heard]
    if not fresh:
        raise DataError(f"{folder}: every held-out noise is another take of one in training")
    return fresh
