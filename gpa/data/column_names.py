"""What corpora call our keys, and which column of a dataset or a table is which."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from gpa.errors import DataError

logger = logging.getLogger(__name__)

NAMES = {  # what other corpora call our keys
    "audio": (
        *("audio", "path", "file_name", "filename", "file", "audio_file", "audio_path", "audio_filepath"),
        *("wav", "wav_file", "wav_path", "wav_filename"),
        *("flac", "mp3", "opus", "ogg"),  # of tar shards that `datasets` reads, as txt and __key__
    ),
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text", "txt"),
    "speaker": ("speaker", "speaker_id", "speaker_name", "client_id"),
    "licence": ("licence", "license"),
    "split": ("split",),
    "id": ("id", "__key__"),
}


def choose(columns: Iterable[str], name: str, given: Mapping[str, str]) -> dict[str, str]:
    """Which column holds what, {our key: column}; `given` goes before the usual names.

    DataError for a key or column that is not there, or without audio; both name the columns there are.
    """
    columns = list(columns)
    there = f"its columns are {', '.join(columns)}"
    if strange := [key for key in given if key not in NAMES]:
        raise DataError(f"{name}: {strange[0]!r} is no key of a row: {', '.join(NAMES)}; {there}")
    if absent := [column for column in given.values() if column not in columns]:
        raise DataError(f"{name}: no column {absent[0]!r}; {there}")
    used = {key: next((c for c in names if c in columns), "") for key, names in NAMES.items()}
    used = {key: column for key, column in {**used, **given}.items() if column}
    if "audio" not in used:
        raise DataError(f"{name}: no column of audio; {there}. Name it:  --columns audio=NAME")
    if "text" not in used:
        logger.warning("%s: no column of text, so rows serve vc only: --columns text=NAME names one", name)
    if spare := sorted(set(columns) - set(used.values())):
        logger.warning("%s: columns that are not used: %s", name, ", ".join(spare))
    return used
