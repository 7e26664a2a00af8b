"""What a model said in the course of a run: RUN/samples/step-N, and a page that plays all steps side by side.

Knows sounds and their captions; no model, no family.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from torch import nn

from gpa import audio, disk
from gpa.errors import UsageError

FOLDER, FACTS, PAGE = "samples", "samples.json", "index.html"
FFT, HOP = 512, 128
_STYLE = (
    "body{font:14px sans-serif;margin:1em}td,th{padding:.4em;vertical-align:top;text-align:left}"
    "td{min-width:240px;max-width:320px}img{width:100%;height:90px}audio{width:100%}"
)


@dataclass(frozen=True)
class SampleArgs:
    """`samples` held-out clips are heard at every evaluation; 0: none."""

    samples: int = 2

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise UsageError(f"validate.samples={self.samples}: at least 0")


@dataclass(frozen=True)
class Sample:
    """One sound: wav (S,) float32 at `rate` Hz, what it is (a name that stays), its caption and scores."""

    name: str
    wav: np.ndarray
    rate: int
    caption: str
    scores: dict[str, float] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def sound(self) -> Path:
        return self.folder / f"{self.name}.wav"

    @property
    def spectrogram(self) -> Path:
        return self.folder / f"{self.name}.png"


@runtime_checkable
class Audible(Protocol):
    """A family that can be heard."""

    def sound_samples(self, module: nn.Module) -> Sequence[Sample]:
        """The same few at every evaluation; none where the recipe asks for none."""
        ...


def write(run: Path, step: int, samples: Sequence[Sample]) -> list[Sample]:
    """Sound, spectrogram and facts of each into RUN/samples/step-N, whole or not at all; the page anew."""
    from matplotlib.image import imsave

    out = run / FOLDER / f"step-{step}"
    facts = {each.name: {"caption": each.caption, "scores": each.scores} for each in samples}
    with disk.written_whole(out, overwrite=True) as folder:
        for each in (_into(each, folder) for each in samples):
            audio.save(each.sound, each.wav, each.rate)
            imsave(each.spectrogram, spectrogram(each.wav), cmap="magma", origin="lower")
        disk.write_text(folder / FACTS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    disk.write_text(run / FOLDER / PAGE, page(run / FOLDER))
    return [_into(each, out) for each in samples]


def _into(sample: Sample, folder: Path) -> Sample:
    return Sample(sample.name, sample.wav, sample.rate, sample.caption, sample.scores, folder)


def spectrogram(wav: np.ndarray) -> np.ndarray:
    """Magnitudes in dB of wav (S,), from -80 below the loudest to 0: (FFT / 2 + 1, frames)."""
    padded = np.pad(wav.astype(np.float64), (FFT // 2, FFT))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP] * np.hanning(FFT)
    magnitude = np.abs(np.fft.rfft(frames)).T
    return 20 * np.log10(np.maximum(magnitude / max(magnitude.max(), 1e-9), 1e-4))


def page(folder: Path) -> str:
    """One row per sample, one column per step, nothing from elsewhere."""
    steps = {
        int(found[1]): json.loads((path / FACTS).read_text(encoding="utf-8"))
        for path in folder.glob("step-*")
        if (found := re.fullmatch(r"step-(\d+)", path.name))
    }
    order = sorted(steps)
    head = "".join(f"<th>step {step}</th>" for step in order)
    names = list(dict.fromkeys(name for step in order for name in steps[step]))
    rows = (
        f"<tr><th>{escape(name)}</th>"
        + "".join(_cell(f"step-{step}/{name}", steps[step].get(name)) for step in order)
        + "</tr>"
        for name in names
    )
    title = escape(folder.resolve().parent.name)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1><table><tr><th></th>{head}</tr>\n"
        + "\n".join(rows)
        + "\n</table></html>\n"
    )


def _cell(path: str, facts: dict | None) -> str:
    if facts is None:
        return "<td></td>"
    scores = " ".join(f"{name} {value:.3g}" for name, value in facts["scores"].items())
    source = escape(path, quote=True)
    return (
        f'<td><audio controls preload="none" src="{source}.wav"></audio><img src="{source}.png" alt="">'
        f"<p>{escape(facts['caption'])}</p><small>{escape(scores)}</small></td>"
    )
