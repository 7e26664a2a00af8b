"""Folders of Kaldi and ESPnet: wav.scp, text, utt2spk and segments, each a line of key and value.

Runs nothing: a command in wav.scp is refused with its line.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from gpa.data.audio_folder import AudioFolder, one_line, split_of
from gpa.data.records import Rows, decode
from gpa.errors import DataError

logger = logging.getLogger(__name__)

WAVS, TEXT, SPEAKERS, SEGMENTS = "wav.scp", "text", "utt2spk", "segments"
SURE = {WAVS, SPEAKERS, "feats.scp"}  # of which each makes a folder one of Kaldi's
ABOVE = 3  # folders above that a path may be relative to: recipes run two above data/train
_BLANKS = re.compile(r"[ \t]+")
Table = dict[str, tuple[int, str]]  # key -> (line, value)


def read_kaldi(here: Path, root: Path, files: AudioFolder) -> Rows:
    """Rows of the folder `here`, with paths relative to `root`; its name tells the split.

    DataError with file and line for commands, archives, keys that are twice there or lead nowhere.
    """
    if not (here / WAVS).is_file():
        raise DataError(f"{here}: is of Kaldi but has no {WAVS}, so no recordings: add it")
    wavs = {key: _sound(here, line, value, root, files) for key, (line, value) in _table(here / WAVS).items()}
    texts, speakers = (_table(here / name) if (here / name).is_file() else {} for name in (TEXT, SPEAKERS))
    source = here / (SEGMENTS if (here / SEGMENTS).is_file() else WAVS)
    lines = _table(source)
    spans = _spans(source, lines, wavs) if source.name == SEGMENTS else {key: (key, {}) for key in wavs}
    if others := sorted(path.name for path in here.glob(f"{TEXT}?*") if path.is_file()):
        logger.warning("%s: label files that are not used: %s", here, ", ".join(others))
    if not texts:
        logger.warning("%s: no file %s, so its %d recordings have no text", here, TEXT, len(spans))
    for name, table in ((TEXT, texts), (SPEAKERS, speakers)):
        if lost := [key for key in table if key not in spans]:
            logger.warning("%s: %d keys without a recording, %s first", here / name, len(lost), lost[0])
        if table and (lost := [key for key in spans if key not in table]):
            raise DataError(
                f"{here / name}: {len(lost)} recordings are not in it, {lost[0]!r} first: add them, or keep "
                "what all files have (Kaldi: utils/fix_data_dir.sh)"
            )
    split = split_of(here.name) or "train"
    rows: Rows = []
    for key, (recording, times) in spans.items():
        speaker = speakers[key][1] if key in speakers else root.resolve().name
        said = {"id": key, "path": wavs[recording], "text": one_line(texts.get(key, (0, ""))[1])}
        rows.append((f"{source}:{lines[key][0]}", {**said, "speaker": speaker, "split": split, **times}))
    return rows


def _table(path: Path) -> Table:
    found: Table = {}
    for n, line in enumerate(decode(path).split("\n"), 1):
        if not line.strip():
            continue
        key, *value = _BLANKS.split(line.strip(" \t\r"), maxsplit=1)
        if key in found:
            raise DataError(f"{path}:{n}: {key!r} is in line {found[key][0]} already: remove one of the two")
        found[key] = n, value[0] if value else ""
    if not found:
        raise DataError(f"{path}: is empty: fetch it again, or remove it")
    return found


def _sound(here: Path, line: int, value: str, root: Path, files: AudioFolder) -> str:
    where = f"{here / WAVS}:{line}"
    if value.endswith("|") or value.startswith("|"):
        raise DataError(
            f"{where}: {value!r:.80} is a command, and gpa runs none: write the sound to a file "
            "(Kaldi: wav-copy scp:wav.scp; ESPnet: scripts/audio/format_wav_scp.sh) and name that"
        )
    if re.search(r"\.ark(:\d+)?(\[.*\])?$", value) or value == "-":
        raise DataError(f"{where}: {value!r:.80} is an archive of Kaldi: write its sound to files (wav-copy)")
    if not value:
        raise DataError(f"{where}: names no audio file")
    places = [here, Path(), *here.resolve().parents[:ABOVE]]
    found = next((place / value for place in places if os.path.isfile(place / value)), None)
    inside = os.path.relpath(here, root)
    return str(found.absolute()) if found else files.find(value, inside) or str((here / value).absolute())


def _spans(path: Path, lines: Table, wavs: dict[str, str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """{utterance: (recording, times)}; an end of -1 is that of the recording."""
    found = {}
    for key, (line, value) in lines.items():
        recording, *times = _BLANKS.split(value)
        try:
            begin, end = map(float, times[:2])
        except ValueError as error:
            raise DataError(
                f"{path}:{line}: utterance, recording, begin and end expected ({error})"
            ) from error
        if recording not in wavs:
            raise DataError(f"{path}:{line}: recording {recording!r} is not in {WAVS}: add it")
        found[key] = recording, {"begin_time": begin, "end_time": end}
    return found
