"""`gpa demo`: a sentence in two voices, transcribed, converted from one voice to the other, and transcribed.

Uses the public API only. Writes WAVs and one picture, prints one table.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpa.errors import GenerationError, UsageError

TEXT = "When the rain had stopped, we all went out and looked at the sea."
COLUMNS = ("step", "voice", "text in", "text out", "audio", "took", "RTF")


@dataclass(frozen=True)
class Row:
    """One step of the demo: what it was given, what came out, seconds of audio, seconds of work."""

    step: str
    voice: str
    text_in: str
    text_out: str
    audio: float
    took: float

    def cells(self) -> tuple[str, ...]:
        """The row as text, RTF last: seconds of work for a second of audio."""
        rtf = f"{self.took / self.audio:.2f}"
        return (
            self.step,
            self.voice,
            self.text_in,
            self.text_out,
            f"{self.audio:.1f} s",
            f"{self.took:.1f} s",
            rtf,
        )


def run(
    model: Any,
    out: Path,
    *,
    text: str | None = None,
    voices: Any = None,
    seed: int = 0,
) -> list[Row]:
    """Run all steps with a loaded model, write WAVs and picture.png, print the table, return its rows."""
    text = TEXT if text is None else text
    source, target = voices or _two(model)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    clips: dict[str, Any] = {}
    for number, voice in enumerate((source, target), 1):
        speech, took = _timed(model.tts, text, voice=voice, seed=seed)
        name = Path(str(voice)).stem
        clips[f"{number}-speak-{name}"] = speech
        rows += [Row("speak", name, text, "", _seconds(speech), took), _transcribe(model, speech, name)]
    speech, took = _timed(model.vc, _sound(next(iter(clips.values()))), voice=target, seed=seed)
    pair = f"{Path(str(source)).stem} -> {Path(str(target)).stem}"
    clips[f"3-convert-{pair.replace(' -> ', '-to-')}"] = speech
    rows += [
        Row(f"convert ({speech.mode})", pair, "", "", _seconds(speech), took),
        _transcribe(model, speech, Path(str(target)).stem),
    ]
    print(table(rows), "", sep="\n")
    for name, clip in clips.items():
        clip.save(out / f"{name}.wav")
        print(out / f"{name}.wav")
    picture(clips, out / "picture.png")
    print(out / "picture.png")
    return rows


def _two(model: Any) -> tuple[str, str]:
    names = list(model.voices)
    if len(names) < 2:
        raise UsageError(
            f"the demo needs two voices, this model has {len(names)}: give --voices FROM TO, two recordings"
        )
    return names[0], names[1]


def _timed(call: Any, *args: Any, **options: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    return call(*args, **options), time.perf_counter() - began


def _sound(speech: Any) -> tuple[np.ndarray, int]:
    return speech.wav, speech.sample_rate


def _seconds(speech: Any) -> float:
    return len(speech.wav) / speech.sample_rate


def _transcribe(model: Any, speech: Any, voice: str) -> Row:
    began = time.perf_counter()
    try:
        text = model.asr(_sound(speech)).text
    except GenerationError:
        text = "(nothing)"
    return Row("transcribe", voice, "", text, _seconds(speech), time.perf_counter() - began)


def table(rows: list[Row]) -> str:
    """Rows as aligned plain text."""
    cells = [COLUMNS, *(row.cells() for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def picture(clips: dict[str, Any], path: Path) -> None:
    """Draw every clip as waveform, log-mel and semantic tokens, one column each, into a PNG."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display needed

    from gpa import disk

    figure = Figure(figsize=(4.6 * len(clips), 6.5), layout="constrained")
    axes = figure.subplots(3, len(clips), squeeze=False)
    for column, (name, clip) in zip(axes.T, clips.items(), strict=True):
        seconds = _seconds(clip)
        column[0].plot(np.arange(len(clip.wav)) / clip.sample_rate, clip.wav, linewidth=0.4)
        column[0].set(title=name, ylim=(-1, 1), xlim=(0, seconds))
        extent = (0, seconds, 0, clip.sample_rate / 2000)
        column[1].imshow(log_mel(clip.wav, clip.sample_rate), origin="lower", aspect="auto", extent=extent)
        column[1].set_yticks([])
        tokens = getattr(clip, "tokens", ())
        at = (np.arange(len(tokens)) + 0.5) * seconds / max(1, len(tokens))
        column[2].scatter(at, tokens, s=5)
        column[2].set(xlabel="seconds", xlim=(0, seconds))
    for row, label in zip(axes[:, 0], ("waveform", "mel bands", "semantic tokens"), strict=True):
        row.set_ylabel(label)
    with disk.file_whole(path) as made:
        figure.savefig(made, dpi=110)


def log_mel(wav: np.ndarray, sample_rate: int) -> np.ndarray:  # (S,) -> (M, T)
    """80 mel bands in dB, 100 frames/s, within 80 dB of the loudest: for looking at."""
    from gpa.nn.mel import mel_filters

    size, hop = 1024, sample_rate // 100
    padded = np.pad(wav, (size // 2, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[: len(wav) : hop]  # (T, size)
    power = np.abs(np.fft.rfft(frames * np.hanning(size))) ** 2  # (T, F)
    filters = mel_filters(size // 2 + 1, 80, 0, sample_rate / 2, sample_rate)
    db = 10 * np.log10(np.maximum(power @ filters, 1e-10)).T
    return np.maximum(db, db.max() - 80)
