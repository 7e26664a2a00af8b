"""A folder of recordings of one voice -> a manifest: texts filled in, long clips cut, some clips held out.

Judges no clip: that is the doctor's part in `gpa prepare`, which reads the manifest next.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from gpa import audio, disk
from gpa.data.manifest import undecodable
from gpa.data.sources import open_source
from gpa.errors import AudioError, DataError
from gpa.models.gpa.segmentation_gpa import split_audio

if TYPE_CHECKING:
    from gpa.data.manifest import ManifestRow

logger = logging.getLogger(__name__)

Hear = Callable[[np.ndarray], str]

RATE = 16_000
PART_SECONDS = 12.0  # recordings without a text are cut into parts of at most this
WHY = "why"  # of a row that cannot be read, until it is written
LEAST_CLIPS, MOST_HELD, HELD_SHARE = 4, 8, 0.15
FEW_CLIPS = 6  # of fewer, one is held out and not two
HELD_SECONDS = (1.5, 20.0)  # of a clip that may be held out


def collect(folder: Path, name: str, hear: Hear, heard_by: str, out: Path) -> None:
    """Write the manifest `out` of a folder (or manifest) with recordings of the voice `name`.

    `hear` transcribes what has no text; such rows have `text_source` `heard_by`. A seventh of the clips, one
    to eight, is held out. DataError where fewer than four clips have words.
    """
    found = [*open_source(folder).check()]
    if any(row.audio.fetch for row in found):
        raise DataError(f"{folder}: give a folder of audio files or a manifest, not a dataset")
    if len(speakers := sorted({row.speaker for row in found})) > 1:
        logger.warning(
            "%s: %d speakers, all taken for one voice: %s", folder, len(speakers), ", ".join(speakers[:5])
        )
    rows: list[dict[str, Any]] = []
    for given in tqdm(found, desc="recordings", unit="file", dynamic_ncols=True):
        rows += [{**part, "speaker": name} for part in _parts(given, hear, heard_by)]
    held = _held_out(rows, folder)
    for row in rows:
        row.pop(WHY, None)
        row["split"] = "dev" if row["id"] in held else "train"
    disk.write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read(manifest: Path) -> list[dict[str, Any]]:
    """The rows that `collect` wrote."""
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def wav_of(row: dict[str, Any], rate: int) -> np.ndarray:
    """Samples (S,) of such a row's span; AudioError as `gpa.audio.load`."""
    _refuse_bad_name(undecodable(row["path"]))
    end = None if row["end_time"] < 0 else row["end_time"]
    return audio.load(row["path"], rate, begin=row["begin_time"], end=end)


def _refuse_bad_name(name: str) -> None:
    if name:
        raise AudioError(f"{name} is no Unicode: rename it")


def training_sounds(manifest: Path, rate: int) -> Iterator[tuple[np.ndarray, int]]:
    """(samples, rate) of the training rows that can be read."""
    for row in read(manifest):
        if row["split"] == "train":
            try:
                yield wav_of(row, rate), rate
            except AudioError:  # the doctor has said so
                continue


def _parts(row: ManifestRow, hear: Hear, heard_by: str) -> Iterator[dict[str, Any]]:
    """The row with its text, or the parts of a recording without one, each with what was heard."""
    made = {"id": row.id, "path": os.path.abspath(row.audio.name), "licence": row.licence}
    span = {"begin_time": row.audio.begin, "end_time": -1 if row.audio.end is None else row.audio.end}
    try:
        _refuse_bad_name(row.bad_name)
        wav = row.audio.wav(RATE)
    except AudioError as error:  # the doctor says why, with a code
        yield {**made, **span, "text": row.text, WHY: str(error)}
        return
    if row.text.strip():
        yield {**made, **span, "text": row.text, "text_source": "given", "duration": len(wav) / RATE}
        return
    at = row.audio.begin
    for n, part in enumerate(split_audio(wav, RATE, PART_SECONDS)):
        seconds = len(part) / RATE
        times = {"begin_time": round(at, 3), "end_time": round(at + seconds, 3)}
        yield {**made, "id": f"{row.id}-{n}", **times, "text": hear(part), "text_source": heard_by}
        at += seconds


def _held_out(rows: list[dict[str, Any]], folder: Path) -> set[str]:
    """Ids of the clips to be tested on, by hash of their names."""
    spoken = [row for row in rows if row["text"].strip() and WHY not in row]
    if len(spoken) < LEAST_CLIPS:
        unread = [row[WHY] for row in rows if WHY in row]
        why = f". {len(unread)} files cannot be read, the first because {unread[0]}" if unread else ""
        raise DataError(
            f"{folder}: {len(spoken)} clips with words in {len(rows)}; at least {LEAST_CLIPS} are needed, "
            f"and a minute or more of speech does better{why}"
        )
    fits = [row for row in spoken if HELD_SECONDS[0] <= _seconds(row) <= HELD_SECONDS[1]] or spoken
    count = min(MOST_HELD, max(1 + (len(spoken) >= FEW_CLIPS), round(HELD_SHARE * len(spoken))))
    return set(sorted((row["id"] for row in fits), key=_hash)[:count])


def _seconds(row: dict[str, Any]) -> float:
    return float(row.get("duration", row["end_time"] - row["begin_time"]))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
