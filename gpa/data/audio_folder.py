"""A folder of recordings: which files are sound, where a name of a label file leads, texts beside the sound.

Knows names only: no sound is opened, and label files (label_files.py, kaldi.py) are read elsewhere.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from gpa.errors import DataError

logger = logging.getLogger(__name__)

# What libsndfile reads, then what phones, browsers and archives hold: gpa.audio says which of those it reads.
AUDIO_SUFFIXES = frozenset(
    ".wav .wave .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .w64 .rf64 .caf .voc .sph .nist".split()
)
OTHER_SUFFIXES = frozenset(
    ".m4a .m4b .mp4 .mov .aac .wma .webm .mka .mkv .amr .3gp .ape .wv .mpc .ac3 .ra .dss .mp2 .spx".split()
)
TEXT_SUFFIXES = (".txt", ".lab", ".normalized.txt", ".original.txt")  # the last two are LibriTTS's
# The first folder below the source may be the split, as Hugging Face's audio folders have it.
SPLITS = ("train", "dev", "val", "valid", "validation", "eval", "test")
_SOUND_FOLDERS = ("", "wavs", "wav", "clips", "audio", "audios", "data")  # where label files look
_TEXT_FOLDERS = {
    "txt",
    "text",
    "texts",
    "transcript",
    "transcripts",
    "transcription",
    "transcriptions",
    "lab",
}
_TIMED = re.compile(r"\s*[\d.]+[ \t]+[\d.]+([ \t]+\S.*)?")  # a line of an alignment: begin, end, label
_BREAKS = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
MOST_TEXT, MOST_TABLE = 1 << 20, 1 << 30  # bytes of a text beside a recording, of a label file


def one_line(text: str) -> str:
    """A text with a blank for every line break, and none around it."""
    return " ".join(part for part in map(str.strip, _BREAKS.split(text)) if part)


def read_bytes(path: Path, most: int) -> bytes:
    """A file whole; DataError if it cannot be opened or has more than `most` bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): check its permissions") from error
    if len(data) > most:
        raise DataError(
            f"{path}: has more than {most >> 20} MiB, too much for what it is taken for: split it"
        )
    return data


def split_of(name: str) -> str:
    """The split that a file or folder is named after (train.tsv, list_val.txt), "" for none."""
    words = re.split(r"[\W_]+", name.casefold())
    return next((word for word in words if word in SPLITS), "")


def is_audio(name: str) -> bool:
    """Whether a file is called like sound of any format."""
    return PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES | OTHER_SUFFIXES


@dataclass(frozen=True)
class AudioFolder:
    """Every file below `root`, as paths relative to it; links are followed, hidden files left out."""

    root: Path
    files: tuple[str, ...]

    @classmethod
    def read(cls, root: Path) -> AudioFolder:
        """List the files; DataError for a folder that cannot be listed."""
        found: list[str] = []
        seen: set[str] = set()

        def fail(error: OSError) -> None:
            raise DataError(f"{error.filename}: cannot be listed ({error.strerror}): check its permissions")

        for here, folders, names in os.walk(root, onerror=fail, followlinks=True):
            real = os.path.realpath(here)
            folders[:] = sorted(
                f for f in folders if f != "__MACOSX" and not f.startswith(".") and real not in seen
            )
            inside = Path(here).relative_to(root)
            if real not in seen:
                found += [(inside / n).as_posix() for n in names if not n.startswith(".")]
            seen.add(real)
        return cls(root, tuple(sorted(name for name in found if os.path.isfile(root / name))))

    @cached_property
    def audio(self) -> dict[str, str]:
        """Sound by its path in lower case. Beside a file that libsndfile reads, its original is left out."""
        sound = [name for name in self.files if is_audio(name)]
        read = {
            PurePosixPath(n).with_suffix("")
            for n in sound
            if PurePosixPath(n).suffix.lower() in AUDIO_SUFFIXES
        }
        kept = [
            name
            for name in sound
            if PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES
            or PurePosixPath(name).with_suffix("") not in read
        ]
        exact = {name: name for name in kept}
        return {**{name.casefold(): name for name in reversed(kept)}, **exact}

    @cached_property
    def real(self) -> Path:
        """The root without links."""
        return self.root.resolve()

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Sound by its path without a suffix."""
        found: dict[str, list[str]] = {}
        for name in sorted(set(self.audio.values())):
            found.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(name)
        return found

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """Sound by its name without folders and suffix, of which there may be several."""
        found: dict[str, list[str]] = {}
        for stem, sounds in self.by_stem.items():
            found.setdefault(PurePosixPath(stem).name, []).append(sounds[0])
        return found

    def find(self, name: str, inside: str = "") -> str:
        """The sound that a label file in folder `inside` calls `name`, relative to the root; "" for none.

        A name may lack its suffix, have another case of it, lie in wavs/ or clips/, begin with folders that
        lead to this one on another machine or from the working folder, or be the only one below the root.
        """
        name = name.replace("\\", "/").strip()
        if not name:
            return ""
        places = []
        for place in self._places(name, inside):
            places.append(place)
            if found := self.audio.get(place) or self.audio.get(place.casefold()):
                return found
        for place in places:  # without a suffix, or with that of another format
            bare = str(PurePosixPath(place).with_suffix("")) if is_audio(place) else place
            if others := self.by_stem.get(bare):
                return others[0]
        stem = PurePosixPath(name).stem if is_audio(name) else name
        if "/" not in name and len(deep := self.by_name.get(stem, [])) == 1:
            return deep[0]
        elsewhere = (self.root / inside / name, self.root.parent / name, Path(name)) if is_audio(name) else ()
        return next((str(path.absolute()) for path in elsewhere if os.path.isfile(path)), "")

    def _places(self, name: str, inside: str) -> Iterator[str]:
        for above in dict.fromkeys((inside, "")):
            yield from (os.path.normpath(os.path.join(above, folder, name)) for folder in _SOUND_FOLDERS)
        parts, here = PurePosixPath(name).parts, self.real
        for folder, rest in ((here / inside, inside), (here, "")):
            if folder.name in parts[:-1]:
                after = len(parts) - parts[::-1].index(folder.name)
                yield os.path.normpath(os.path.join(rest, *parts[after:]))
        if os.path.isabs(name):
            yield os.path.relpath(os.path.realpath(name), here)

    # Texts beside the sound ---------------------------------------------------------------------------------

    @cached_property
    def texts(self) -> dict[str, str]:
        """{sound: the file with its text}: of one stem, or of one path in a tree of texts such as txt/."""
        lower = {name.casefold(): name for name in reversed(self.files)}
        found: dict[str, str] = {}
        alone: list[str] = []
        for stem, sounds in self.by_stem.items():
            places = (stem + suffix for suffix in TEXT_SUFFIXES)
            text = next((lower[p.casefold()] for p in places if p.casefold() in lower), "")
            found |= dict.fromkeys(sounds, text) if text else {}
            alone += [] if text else sounds
        mirrored: dict[str, list[str]] = {}
        for name in self.files:
            first, _, rest = name.partition("/")
            if first.casefold() in _TEXT_FOLDERS and rest.casefold().endswith(TEXT_SUFFIXES[:2]):
                mirrored.setdefault(str(PurePosixPath(rest).with_suffix("")), []).append(name)
        for sound in alone:
            _, _, rest = sound.partition("/")
            texts = mirrored.get(str(PurePosixPath(rest).with_suffix("")), []) if rest else []
            found |= {sound: texts[0]} if len(texts) == 1 else {}
        return found

    def read_text(self, name: str) -> str:
        """A text file on one line; what is not UTF-8 in it is U+FFFD, which the doctor rejects.

        DataError for an alignment, whose lines are times.
        """
        data = read_bytes(self.root / name, MOST_TEXT)
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        text = data.decode("utf-16" if wide else "utf-8-sig", "replace")
        lines = [line for line in text.splitlines() if line.strip()]
        if lines and all(_TIMED.fullmatch(line) for line in lines):
            raise DataError(
                f"{self.root / name}: holds times and labels, no text: write the sentence alone in it"
            )
        return one_line(text)

    def row(self, name: str) -> dict[str, Any]:
        """A row of one file: the folder it is in is the speaker, the first folder may be the split."""
        inside = PurePosixPath(name)
        above = [
            folder
            for folder in inside.parent.parts
            if folder.casefold() not in (*SPLITS, *_SOUND_FOLDERS, "/")
        ]
        if len(above) > 1 and inside.name.startswith(
            tuple(above[-2] + mark + above[-1] + mark for mark in "-_")
        ):
            above.pop()  # LibriSpeech: SPEAKER/CHAPTER/SPEAKER-CHAPTER-0001.flac
        first = inside.parts[0] if len(inside.parts) > 1 else ""
        return {
            "id": inside.stem if inside.is_absolute() else inside.with_suffix("").as_posix(),
            "path": name,
            "split": first if first in SPLITS else "train",
            "speaker": above[-1] if above and not inside.is_absolute() else self.real.name,
        }

    def beside(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(place, row) of every sound with the text beside it."""
        for name in sorted(set(self.audio.values())):
            text = self.read_text(self.texts[name]) if name in self.texts else ""
            yield str(self.root / name), {**self.row(name), "text": text}
