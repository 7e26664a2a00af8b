"""Which label files of a folder are read; every other one is named in a warning, or refused.

Knows names and the first lines of files; what a label file says is in label_files.py.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from gpa.data.audio_folder import AudioFolder, is_audio, split_of
from gpa.errors import DataError

logger = logging.getLogger(__name__)

TABLES = {".csv", ".tsv", ".psv", ".jsonl", ".list"}  # label files whatever they say
SUFFIXES = TABLES | {"", ".lst", ".txt", ".json", ".trans", ".cleaned", ".data"}  # if they name recordings
# What may hold texts and is not read, with what to do.
UNREAD = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV (UTF-8)"),
    **dict.fromkeys((".textgrid", ".srt", ".vtt", ".stm", ".ctm", ".eaf", ".json", ".xml"), "write each text "
                    "to a .txt beside its recording, or all to a metadata.csv"),
}  # fmt: skip
PACKED = {".gz", ".bz2", ".xz", ".zst"}
CHIEF = {"metadata", "manifest"}  # a label file of this name goes before all others of its folder
# Common Voice's lists beside the splits: rejected clips, clips nobody has judged, tables about clips.
ASIDE = {"invalidated", "other", "reported", "clip_durations", "unvalidated_sentences", "validated_sentences"}
HEAD = 1 << 20  # bytes of a file that are looked at
LINES = 200


def choose_labels(files: AudioFolder) -> list[Path]:
    """The label files to be read, those of the root or else of the folders below; none: texts lie beside.

    DataError where two claim to be the one, or where the only texts are in files that are not read.
    """
    texts, stems = set(files.texts.values()), files.by_stem
    likely, sidecars, strange, rest = [], [], [], []
    for name in files.files:
        path = PurePosixPath(name)
        if is_audio(name) or name in texts:
            continue
        suffix, stem = path.suffix.lower(), str(path.with_suffix(""))
        if suffix in PACKED and PurePosixPath(stem).suffix.lower() in SUFFIXES - {""}:
            strange.append(name)
            continue
        if stem in stems:
            sidecars += [name] if suffix in UNREAD or suffix in SUFFIXES else []
        elif suffix in SUFFIXES and (path.stem.casefold() in CHIEF and suffix or _names_sound(files, name)):
            likely.append(name)
        elif suffix in TABLES or (suffix in UNREAD and suffix not in SUFFIXES):
            strange.append(name)
        elif suffix == ".txt":
            sidecars.append(name)
        else:
            rest.append(name)
    if not likely and not texts and not strange:  # Festival's txt.done.data, and whatever else there is
        strange = [name for name in rest[:LINES] if _names_sound(files, name, second=True)]
    if not likely and not texts:  # a table that names none of the recordings: reading it says why
        likely = [name for name in strange if PurePosixPath(name).suffix.lower() in TABLES]
        strange = [name for name in strange if name not in likely]
    here = [name for name in likely if "/" not in name]
    groups: dict[str, list[str]] = {}
    for name in here or likely:
        groups.setdefault(str(PurePosixPath(name).parent), []).append(name)
    used = [name for group in groups.values() for name in _of_group(files, group)]
    told = bool(used or texts)
    _tell(files, [name for name in likely if name not in used], told)
    _tell(files, strange, told)
    _tell_sidecars(files, sidecars, told)
    return [files.root / name for name in used]


def must_be_read(path: Path) -> bool:
    """Whether a label file is called as one: metadata, manifest, or after a split."""
    return path.stem.casefold() in CHIEF or bool(split_of(path.stem))


def _of_group(files: AudioFolder, names: Sequence[str]) -> list[str]:
    """Label files of one folder: metadata, else those of splits, else all."""
    stems = {name: PurePosixPath(name).stem.casefold() for name in names}
    if chief := [name for name in names if stems[name] in CHIEF]:
        if len(chief) > 1:
            raise DataError(
                f"{files.root / chief[0]} and {files.root / chief[1]} both claim to be the label file: "
                "give the one to be read instead of the folder, or put the other away"
            )
        return chief
    kept = [name for name in names if stems[name] not in ASIDE and not name.endswith(".cleaned")]
    return [name for name in kept if split_of(stems[name])] or kept


def _names_sound(files: AudioFolder, name: str, *, second: bool = False) -> bool:
    """Whether at least half of the first lines name a recording, perhaps by their `second` word."""
    with (files.root / name).open("rb") as file:
        data = file.read(HEAD)
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = data.decode("utf-16" if wide else "utf-8-sig", "replace")
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()][:LINES]
    inside, found = str(PurePosixPath(name).parent), 0
    for line in lines:
        words = [word.strip() for word in re.split(r"[\t|;,\"]", line)]
        first = re.split(r"[\t|;, ]", line.strip(), maxsplit=1)[0].strip('"')
        words = line.split()[:2] if second else [*filter(is_audio, words), first]
        found += any(is_audio(word) or bool(files.find(word.strip("\"'()[]"), inside)) for word in words)
    return bool(lines) and found >= len(lines) / 2


def _tell(files: AudioFolder, names: Sequence[str], told: bool) -> None:
    """A warning of label files that are not used, or DataError where nothing else has texts."""
    if not names:
        return
    if told or not files.audio:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        logger.warning("%s: label files that are not used: %s; give one itself to read it", files.root, shown)
        return
    suffix = PurePosixPath(names[0]).suffix.lower()
    todo = "unpack it" if suffix in PACKED else UNREAD.get(suffix, UNREAD[".xml"])
    raise DataError(f"{files.root / names[0]}: is not read, and no other file has the texts: {todo}")


def _tell_sidecars(files: AudioFolder, names: Sequence[str], told: bool) -> None:
    """The same of files beside the recordings, and of texts without one."""
    alone = [name for name in names if str(PurePosixPath(name).with_suffix("")) not in files.by_stem]
    beside = [name for name in names if name not in alone]
    if not told and len(alone) > 1 and len(alone) >= len(files.by_stem) / 2:
        raise DataError(
            f"{files.root}: none of {len(alone)} text files is called like a recording, {alone[0]} first: "
            "give both the same name, but for the suffix"
        )
    if alone:
        logger.warning(
            "%s: %d text files without audio are not used, %s first", files.root, len(alone), alone[0]
        )
    if beside and not told:
        suffix = PurePosixPath(beside[0]).suffix.lower()
        todo = UNREAD.get(suffix, UNREAD[".srt"])
        raise DataError(f"{files.root / beside[0]}: texts in {suffix} files are not read: {todo}")
    if beside:
        logger.warning(
            "%s: %d files beside the audio are not used, %s first", files.root, len(beside), beside[0]
        )
