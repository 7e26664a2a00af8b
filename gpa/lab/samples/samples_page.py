"""index.md and its sound files within a number of bytes: what was asked, who made it, what was heard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpa.errors import UsageError
from gpa.evals import items, report_file, suites
from gpa.evals.measurement import wav_path
from gpa.evals.suites import SUITES
from gpa.lab.samples import ogg
from gpa.lab.samples.clips import Clips, needs_credit

if TYPE_CHECKING:
    from gpa.evals.report import Item

INDEX = "index.md"
FILE_BYTES = 25_000
MARK = "<!-- Written by `gpa lab samples`; change its inputs, not this file. -->"


@dataclass(frozen=True)
class Sound:
    """A file of the page: its name and where its sound is."""

    name: str
    source: Path


@dataclass(frozen=True)
class Page:
    """All that is shown. `credits` is Markdown that names the makers of recordings."""

    folder: Path
    report: Mapping[str, Any]
    groups: Sequence[Group]
    clips: Clips
    seed: int
    credits: str = ""

    def sounds(self) -> dict[str, Sound]:
        """{file name: sound} of everything that is shown; UsageError where a sound was not kept."""
        found = [sound for group in self.groups for sound in self._of_group(group)]
        return {sound.name: sound for sound in found}

    def _of_group(self, group: Group) -> Iterator[Sound]:
        for row in zip(*group.shown.values(), strict=True):
            yield from (Sound(name_of("recording", clip), path) for clip, path in self._free(group, row[0]))
            for suite, item in zip(group.shown, row, strict=True):
                if self.has_sound(suite, item):
                    path = wav_path(self.folder / "wavs", suite, item.id)
                    if not path.is_file():
                        raise UsageError(f"{path}: no such file; run gpa eval with --save-wavs")
                    yield Sound(name_of(suite, item.id), path)

    def _free(self, group: Group, item: Item) -> Iterator[tuple[str, Path]]:
        for clip in recordings(group, item).values():
            if path := self.clips.path(clip):
                yield clip, path

    def has_sound(self, suite: str, item: Item) -> bool:
        """Whether something was made that can be heard."""
        return item.heard is not None and not SUITES[suite].reads

    def used(self) -> list[str]:
        """Every clip that something was made from or imitates, in the order of their ids."""
        return sorted({
            clip for group in self.groups for item in group.shown[group.suite]
            for clip in recordings(group, item).values()
        })  # fmt: skip


def written(page: Page, limit: int) -> dict[str, bytes]:
    """{file name: content} of the whole page within `limit` bytes."""
    text = markdown(page).encode()
    sounds = page.sounds()
    each = min(FILE_BYTES, (limit - len(text)) // max(len(sounds), 1))
    found = {name: ogg.encode(sound.source, each, str(sound.source)) for name, sound in sounds.items()}
    return {INDEX: text, **found}


# Markdown ---------------------------------------------------------------------------------------------------


def markdown(page: Page) -> str:
    """index.md; UsageError where recordings need a credit and there is none."""
    free = [clip for clip in page.used() if page.clips.path(clip)]
    owed = [clip for clip in free if needs_credit(str(page.clips.row(clip).get("licence")))]
    if owed and not page.credits:
        raise UsageError(
            f"{owed[0]} is shown under a licence that asks for a credit: pass --credit, a file with one"
        )
    parts = ["# Samples", MARK, _about(page)]
    parts += [_group(page, group) for group in page.groups]
    parts.append("## Recordings\n\n" + _sources(page))
    if page.credits:
        parts.append("## Acknowledgements\n\n" + page.credits)
    return "\n\n".join(parts) + "\n"


def _about(page: Page) -> str:
    report = page.report
    k = max(len(group.ids) for group in page.groups)
    settings = report["settings"]
    return (
        f"Items of one evaluation, {k} of each task, chosen by hash of seed {page.seed} and id, not by ear: "
        "none was picked for how it sounds, and one that failed is shown as failed. Sound is mono, 16 kHz, "
        f"in Ogg Opus of at most {FILE_BYTES // 1000} kB, so a fine difference may be the file's.\n\n"
        f"Report `{report['sha256']}`, weights `{settings['model_sha256']}`, split `{settings['split']}`, "
        f"seed {settings['seed']}, taken {report.get('taken', 'at a time not recorded')}. "
        f"Heard by {settings['judges']['words']['name']}; what `asr` suites wrote is their own. "
        "Rates over all items and their intervals stand in the model card and the report, not here."
    )


def _group(page: Page, group: Group) -> str:
    about = [f"- `{suite}`: {page.report['about'][suite]}{_peer(group, suite)}" for suite in group.shown]
    rows = list(zip(*group.shown.values(), strict=True))
    shown = [_item(page, group, row) for row in rows]
    return "\n\n".join([f"## {group.suite}", "\n".join(about), *shown])


def _peer(group: Group, suite: str) -> str:
    return "" if suite == group.suite else " (beside it)"


def _item(page: Page, group: Group, row: Sequence[Item]) -> str:
    """One item: its text and a line for every recording and every suite."""
    first = row[0]
    labels = ", ".join(f"{name} {value}" for name, value in first.labels.items())
    lines = [_recording(page, what, clip, first) for what, clip in recordings(group, first).items()]
    lines += [_made(page, suite, item) for suite, item in zip(group.shown, row, strict=True)]
    head = ("who", "sound", "heard", "wrong words", "wrong phonemes")
    title = f"### {cell(first.id)}" + (f" ({cell(labels)})" if labels else "")
    return f"{title}\n\n> {cell(first.reference)}\n\n{table(head, lines)}"


def _recording(page: Page, what: str, clip: str, item: Item) -> list[str]:
    """A recording: its sound if it is shown, else its id; what the judge heard in it if it says the text."""
    link = _link(name_of("recording", clip)) if page.clips.path(clip) else page.clips.about(clip)
    if what != "recording" or item.floor is None:
        return [what, link, "-", "-", "-"]
    return [what, link, item.floor, _edits(item.floor_words), _edits(item.floor_phones)]


def _made(page: Page, suite: str, item: Item) -> list[str]:
    who = f"`{suite}`"
    if item.heard is None:
        return [who, f"nothing was made: {item.error}", "-", _edits(item.words), _edits(item.phones)]
    link = _link(name_of(suite, item.id)) if page.has_sound(suite, item) else "(text)"
    heard = item.heard if item.heard.strip() else "(nothing)"
    return [who, link, heard, _edits(item.words), _edits(item.phones)]


def _link(name: str) -> str:
    return f'<audio controls preload="none" src="{name}"></audio> [listen]({name})'


def _edits(found: tuple[int, int] | None) -> str:
    return "not measured" if found is None else f"{found[0]} of {found[1]}"


def _sources(page: Page) -> str:
    """Every clip behind a sound, and whether it is shown."""
    used = page.used()
    if not used:
        return "Nothing here was made from a recording."
    shown = sum(page.clips.path(clip) is not None for clip in used)
    said = (
        f"{shown} of {len(used)} are on this page, encoded again: their licence lets anyone pass them on."
        if page.clips.references
        else "They are not on this page, only named: get them from their corpora."
    )
    return f"What was made here was made from, or imitates, these clips. {said}\n\n" + "\n".join(
        f"- {page.clips.about(clip)}" for clip in used
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a line break or a bar in a cell does not end it."""
    lines = ["| " + " | ".join(cell(str(value)) for value in row) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]])


def cell(text: str) -> str:
    """A text on one line, its bars escaped."""
    return " ".join(text.replace("|", "\\|").split()) or "-"


# Which items are shown: chosen by hash of seed and id, as everywhere in the evaluation
# -----------------------

RECORDINGS = "floor"  # the suite of the recordings themselves: a reference, nothing that was made


@dataclass(frozen=True)
class Group:
    """One task: our suite, and the chosen items of it and of its peers, in one order."""

    suite: str
    shown: dict[str, list[Item]]

    @property
    def ids(self) -> list[str]:
        """Names of the items."""
        return [item.id for item in self.shown[self.suite]]


def groups(
    folder: Path, report: Mapping[str, Any], k: int, seed: int, without: Sequence[str] = ()
) -> list[Group]:
    """Every task of a report, a suite of ours with its peers, with k of its items; `without` are left out.

    UsageError where the folder's items are not those of the report.
    """
    if strange := sorted(set(without) - set(report["items"])):
        raise UsageError(f"--without {strange[0]}: the report has {', '.join(report['items'])}")
    known = _items(folder, report)
    there = [name for name in known if name != RECORDINGS and name not in without]
    mini = [name for name in there if name in suites.MINI]
    peers = {a: [b for first, b in suites.PEERS if first == a and b in there] for a in mini}
    taken = {b for found in peers.values() for b in found}
    ours = [name for name in mini if name not in taken]
    if not ours:
        raise UsageError(f"{folder}: the report has no suite of ours to show; run gpa eval with a model")
    return [_chosen({suite: known[suite] for suite in (name, *peers[name])}, k, seed) for name in ours]


def _chosen(found: Mapping[str, Mapping[str, Item]], k: int, seed: int) -> Group:
    common = set.intersection(*(set(known) for known in found.values()))
    ids = items.pick(sorted(common), k, seed, str)
    if not ids:
        raise UsageError(f"{', '.join(found)} have no item in common")
    return Group(next(iter(found)), {suite: [known[i] for i in ids] for suite, known in found.items()})


def _items(folder: Path, report: Mapping[str, Any]) -> dict[str, dict[str, Item]]:
    """{suite: {id: item}} with their texts, of which the report holds hashes only."""
    found: dict[str, dict[str, Item]] = {}
    for suite, rows in report["items"].items():
        known = _read(folder / f"{suite}.jsonl")
        found[suite] = {row["id"]: known[row["id"]] for row in rows if row["id"] in known}
    listed = {suite: list(known.values()) for suite, known in found.items()}
    if report_file.results_digest(report["settings"], listed) != report["results_sha256"]:
        raise UsageError(f"{folder}: its items are not those of its report: measured again since, or edited")
    return found


def _read(path: Path) -> dict[str, Item]:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the folder that gpa eval wrote, with report.json in it")
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {row["id"]: report_file.item_of(row) for row in rows}
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: not items of this version of gpa eval ({error}); measure again") from error


# Recordings -------------------------------------------------------------------------------------------------


def recordings(group: Group, item: Item) -> dict[str, str]:
    """{what it is to the item: id of the clip}; nothing where a text was spoken in a shipped voice."""
    if "target" in item.labels:
        source, _, target = item.id.partition(">")
        return {"recording": source, "voice to take": target}
    if "corpus" in item.labels:
        return {"recording": item.id}
    if group.suite == "tts-clip":
        return {"voice to take": item.labels["voice"]}
    return {}


def name_of(suite: str, key: str) -> str:
    """A short file name of its own for every suite and id."""
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in key)[:60]
    return f"{suite}-{plain}-{hashlib.sha256(key.encode()).hexdigest()[:6]}.ogg"
