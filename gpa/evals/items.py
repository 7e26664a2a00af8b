"""What is tested: a deterministic choice of held-out clips, unseen sentences and conversion pairs.

The choice is by hash of seed and name, so it depends on no random generator's version, and the first 20 items
of a run over 50 are the items of a run over 20. Nothing from a training split is ever chosen to be spoken or
recognised. Layout of the data folder: speech/manifest.jsonl and text/ (README of the data).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gpa.errors import UsageError

T = TypeVar("T")
Row = dict[str, Any]  # one line of the manifest

MIN_WORDS, MAX_WORDS = 4, 16
SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif")
REFERENCE_SECONDS = 3.0  # least length of a target clip


class Sentence(NamedTuple):
    """A text to be spoken and where it is from."""

    id: str
    text: str


class Pair(NamedTuple):
    """A conversion: `source` is to be said in the voice of `target`; both are rows of other speakers."""

    source: Row
    target: Row

    @property
    def id(self) -> str:
        """Name of the pair in reports."""
        return f"{self.source['id']}>{self.target['id']}"


def data_root(given: str | os.PathLike[str] | None = None) -> Path:
    """The data folder: the argument, else GPA_DATA; UsageError where it holds no speech/manifest.jsonl."""
    root = given or os.environ.get("GPA_DATA")
    if not root:
        raise UsageError("no data folder: pass --data DIR or set GPA_DATA")
    if not (Path(root) / "speech" / "manifest.jsonl").is_file():
        raise UsageError(f"{root}: holds no speech/manifest.jsonl; recipes/data says how to get the corpora")
    return Path(root)


def read_manifest(root: Path) -> list[Row]:
    """All rows of speech/manifest.jsonl."""
    lines = (root / "speech" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def data_hash(root: Path) -> str:
    """SHA-256 of the manifest, if there is one, and of the sentence lists: equal hashes, equal items."""
    digest = hashlib.sha256()
    for path in (root / "speech" / "manifest.jsonl", *sentence_files(root)):
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def clips_hash(root: Path, rows: Iterable[Row]) -> str:
    """SHA-256 over the sound files of rows, in the order of their ids."""
    digest = hashlib.sha256()
    for row in sorted(rows, key=_id):
        digest.update((root / "speech" / row["path"]).read_bytes())
    return digest.hexdigest()


def pick(pool: Iterable[T], n: int, seed: int, name: Callable[[T], str]) -> list[T]:
    """The first n of the pool in an order that only `seed` and the names decide; all where n is 0."""
    ordered = sorted(pool, key=lambda item: hashlib.sha256(f"{seed}:{name(item)}".encode()).digest())
    return ordered[:n] if n else ordered


def noises(folder: Path, n: int, seed: int) -> list[Row]:
    """n sounds without speech of a folder and those below it; UsageError where there are none."""
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SOUNDS and path.is_file()]
    if not found:
        raise UsageError(f"{folder}: holds no sound without speech; pass --noise DIR ({', '.join(SOUNDS)})")
    rows = [{"id": path.relative_to(folder).as_posix(), "path": str(path.absolute())} for path in found]
    return pick(rows, n, seed, _id)


def is_training(row: Row) -> bool:
    """Whether a row may have been trained on."""
    return str(row["split"]).startswith("train")


def dev_clips(rows: Sequence[Row], n: int, seed: int, split: str = "dev") -> list[Row]:
    """n held-out clips with a transcript; UsageError for a training split or one without clips."""
    if split.startswith("train"):
        raise UsageError(f"split {split!r} was trained on; choose a dev split")
    found = [row for row in rows if row["split"] == split and row.get("text") and not is_training(row)]
    if not found:
        raise UsageError(f"split {split!r} has no clips; there are {sorted({r['split'] for r in rows})}")
    return pick(found, n, seed, _id)


def pairs(rows: Sequence[Row], n: int, seed: int, split: str = "dev") -> list[Pair]:
    """n conversions: held-out sources, each to a clip (3 s or more) of another, drawn speaker."""
    chosen = []
    clips = dev_clips(rows, 0, seed, split)
    targets = _references(clips)
    for source in clips[: n or None]:
        fits = [row for row in targets if row["speaker"] != source["speaker"]]
        if not fits:
            raise UsageError(f"split {split!r} has no second speaker with a clip of {REFERENCE_SECONDS} s")
        draw = f"{seed}:{source['id']}:"
        # Speakers first, as one of them may own half of the clips.
        speaker = min({row["speaker"] for row in fits}, key=lambda s: _hash(draw + s))
        target = min((r for r in fits if r["speaker"] == speaker), key=lambda r: _hash(draw + r["id"]))
        chosen.append(Pair(source, target))
    return chosen


def voice_clips(rows: Sequence[Row], n: int, seed: int, split: str = "dev") -> list[Row]:
    """n held-out clips (3 s or more) to take a voice from, of all speakers in turn; repeated if too few.

    Of speakers with another clip to judge by, where there are two such. The first 20 of 50 are those of 20.
    UsageError where no clip is long enough.
    """
    clips = _references(dev_clips(rows, 0, seed, split))
    if not clips:
        raise UsageError(f"split {split!r} has no clip of {REFERENCE_SECONDS} s to take a voice from")
    speakers = pick({row["speaker"] for row in clips}, 0, seed, str)
    own = {speaker: [row for row in clips if row["speaker"] == speaker] for speaker in speakers}
    chosen = []
    for i in range(n):
        mine = own[speakers[i % len(speakers)]]
        chosen.append(mine[i // len(speakers) % len(mine)])
    return chosen


def _references(clips: Sequence[Row]) -> list[Row]:
    """Clips of 3 s or more, of speakers with several clips if there are two such: others tell the voice."""
    counts = Counter(row["speaker"] for row in clips)
    several = {speaker for speaker, count in counts.items() if count > 1}
    long = [row for row in clips if row["duration"] >= REFERENCE_SECONDS]
    known = [row for row in long if row["speaker"] in several]
    return known if len({row["speaker"] for row in known}) > 1 else long


def speaker_of_voice(rows: Iterable[Row], voice: str) -> str:
    """The manifest's speaker that a shipped voice is: of its name, or `..._name`; "" if none or several."""
    speakers = {str(row["speaker"]) for row in rows}
    found = {voice} & speakers or {name for name in speakers if name.endswith(f"_{voice}")}
    return found.pop() if len(found) == 1 else ""


def enrolment(rows: Sequence[Row], speaker: str, without: Iterable[str] = (), n: int = 4) -> list[Row]:
    """Up to n clips of a speaker by which the judge knows its voice, none of them in `without`.

    Held-out recordings before trained ones; synthetic speech only where the speaker has nothing else.
    """
    everything = [row for row in rows if row["speaker"] == speaker]
    own = [row for row in everything if row["split"] != "train-synthetic"] or everything
    avoid = set(without)
    others = [row for row in own if row["id"] not in avoid]
    held = [row for row in others if not is_training(row)]
    return pick(held or others, n, 0, _id)


def sentence_files(root: Path) -> list[Path]:
    """The sentence lists of the data folder: `id<tab>sentence` (.tsv), or CMU Arctic's own form (.data)."""
    return [path for suffix in (".tsv", ".data") for path in sorted((root / "text").glob(f"*{suffix}"))]


def unseen_sentences(root: Path, seen: Iterable[str], n: int, seed: int) -> list[Sentence]:
    """n sentences of 4 to 16 words that no `seen` text equals or contains.

    Sentences with digits are left out: the judge's spelling of numbers would be measured, not the speech.
    """
    known = {text_key(text) for text in seen}
    everything = "\n".join(sorted(known))
    fresh: dict[str, Sentence] = {}
    for item in _sentences(root):
        key, words = text_key(item.text), len(item.text.split())
        if MIN_WORDS <= words <= MAX_WORDS and key not in known and not re.search(r"\d", item.text):
            fresh.setdefault(key, item)
    kept: list[Sentence] = []
    for item in pick(fresh.values(), 0, seed, _id):
        if n and len(kept) == n:
            break
        if text_key(item.text) not in everything:  # the slow test, so only until there are enough
            kept.append(item)
    if len(kept) < n:
        raise UsageError(
            f"{root / 'text'} has {len(kept)} unseen sentences of 4 to 16 words, not {n}: lower -n"
        )
    return kept


def text_key(text: str) -> str:
    """Letters and digits of a text in lower case, single spaces: what "the same sentence" means here."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower().replace("'", "")))


def training_texts(rows: Iterable[Row]) -> list[str]:
    """Every text that was trained on, machine transcripts included."""
    return texts_of(filter(is_training, rows))


def texts_of(rows: Iterable[Row]) -> list[str]:
    """Every text of rows, machine transcripts included."""
    texts = ((row.get("text"), row.get("text_whisper_tiny_en")) for row in rows)
    return [text for both in texts for text in both if text]


def _sentences(root: Path) -> Iterable[Sentence]:
    for path in sentence_files(root):
        for line in path.read_text(encoding="utf-8").splitlines():
            if path.suffix == ".tsv":
                name, _, text = line.partition("\t")
                yield Sentence(name, text.strip())
            elif match := re.match(r'\( (\S+) "(.*)" \)', line):
                yield Sentence(match[1], match[2])


def _id(item: Any) -> str:
    return str(item["id"] if isinstance(item, dict) else item.id)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
