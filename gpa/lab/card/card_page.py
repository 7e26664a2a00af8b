"""README.md and DATA.md of a checkpoint, of what was read from files: equal inputs, equal bytes.

What was not given is said to be missing. Nothing here knows any model by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gpa.lab.card import corpora, measured, runs
from gpa.lab.card.corpora import Manifest
from gpa.lab.card.notes import Notes
from gpa.lab.card.runs import Run
from gpa.lab.card.tables import front_matter, table
from gpa.lab.card.weights import Checkpoint, Part

MARK = "<!-- Written by `python -m gpa.lab.card`; change its inputs, not this file. -->"
ABSOLUTE = re.compile(r"(?<![\w:/.])/(?:[\w.-]+/)+([\w.-]+)")  # a path from the root, no part of a URL
NO_DATA = "Not stated: no manifest was given."


@dataclass(frozen=True)
class Sources:
    """All that cards are made of; what is None or empty was not given."""

    checkpoint: Checkpoint
    runs: Sequence[Run] = ()
    manifest: Manifest | None = None
    report: measured.Report | None = None
    notes: Notes = field(default_factory=Notes)
    watts: float | None = None


def model_card(given: Sources) -> str:
    """README.md."""
    model = given.checkpoint
    head = [
        f"# {model.name}",
        "",
        MARK,
        "",
        *_paragraph(given.notes.summary),
        _parts(model),
        "",
        _settings(model),
    ]
    sections = {
        "Intended use": given.notes.section("intended use"),
        "Data and licences": _data(given),
        "How it was made": _made(given),
        "Measured": _measured(given),
        "Known failures": given.notes.section("known failures"),
        "Acknowledgements": given.notes.section("acknowledgements"),
    }
    if given.runs:
        sections["Recipes as they were run"] = runs.recipes(given.runs)
    return front_matter(_front(given)) + _join(head, sections)


def data_card(given: Sources) -> str:
    """DATA.md."""
    head = [f"# Data of {given.checkpoint.name}", "", MARK]
    manifest = given.manifest
    if manifest is None:
        sections = {"Manifest": NO_DATA}
    else:
        where = f"`{manifest.file}`, {len(manifest.rows)} rows, SHA-256 `{manifest.sha256}`."
        sections = {
            "Manifest": "\n\n".join([where, corpora.synthetic_share(manifest), corpora.unstated(manifest)]),
            "Corpora and splits": corpora.overview(manifest),
            "Licences of what was trained on": corpora.by(manifest, "licence"),
            "Speakers of what was trained on": corpora.by(manifest, "gender"),
            "Clips": corpora.clips(manifest),
            "What is held out": corpora.held_out(manifest),
        }
    sections["What every run read"] = (
        runs.inputs(given.runs) if given.runs else "Not recorded: no runs were given."
    )
    sections["Acknowledgements"] = given.notes.section("acknowledgements")
    return _join(head, sections)


def _join(head: Sequence[str], sections: dict[str, str]) -> str:
    body = [f"## {title}\n\n{text.rstrip()}" for title, text in sections.items()]
    return "\n\n".join(["\n".join(head), *body]) + "\n"


def _paragraph(text: str) -> list[str]:
    return [text, ""] if text else []


def _front(given: Sources) -> dict[str, Any]:
    """Front matter: that of the notes, then what files can say."""
    found = dict(given.notes.front)
    if given.manifest is not None:
        found.setdefault(
            "datasets", sorted({str(r["corpus"]) for r in given.manifest.training if r.get("corpus")})
        )
    if given.report is not None and (index := measured.model_index(given.checkpoint.name, given.report)):
        found["model-index"] = index
    return found


# The model --------------------------------------------------------------------------------------------------


def _parts(model: Checkpoint) -> str:
    head = ("part", "kind", "parameters", "stored", "sizes", "SHA-256")
    rows = [
        ["top" if part.name == "." else f"`{part.name}`", part.kind, _count(part), _stored(part),
         _sizes(part), ", ".join(f"`{digest}`" for digest in part.hashes.values())]
        for part in model.parts
    ]  # fmt: skip
    return table(head, rows)


def _count(part: Part) -> str:
    return "not counted" if part.parameters is None else f"{part.parameters:,}"


def _stored(part: Part) -> str:
    return ", ".join([*part.dtypes, f"{part.size / 1e6:.1f} MB"])


def _sizes(part: Part) -> str:
    return ", ".join(
        f"{value:g} {name}" if value < 1e5 else f"{value:,} {name}" for name, value in part.sizes.items()
    )


def _settings(model: Checkpoint) -> str:
    """What gpa.json says to a reader: limits, sampling, fingerprints, licence."""
    settings = model.settings
    known = {
        "sound, seconds at most": settings.get("max_audio_seconds"),
        "text, letters at most": settings.get("max_text_chars"),
        "format": settings.get("format"),
        "voices": ", ".join(model.voices) or "none",
        "licence of the weights": (settings.get("about") or {}).get("licence") or "not stated",
        "SHA-256 of weights, settings and voices": f"`{model.digest}`",
    }
    for task, options in sorted((settings.get("sampling") or {}).items()):
        known[f"sampling, {task}"] = ", ".join(f"{name} {value}" for name, value in options.items())
    known |= {f"fingerprint, {n}": f"`{value}`" for n, value in (settings.get("fingerprints") or {}).items()}
    lines = [table(("setting", "value"), ((k, v) for k, v in known.items() if v is not None))]
    return "\n".join(["Parameters are the values stored, buffers included.", "", *lines])


# Data, training, evaluation ---------------------------------------------------------------------------------


def _data(given: Sources) -> str:
    manifest = given.manifest
    if manifest is None:
        return NO_DATA
    where = f"Manifest `{manifest.file}`, SHA-256 `{manifest.sha256}`; more in [DATA.md](DATA.md)."
    return "\n\n".join([corpora.overview(manifest), corpora.synthetic_share(manifest), where])


def _made(given: Sources) -> str:
    if given.runs:
        how = (
            "Runs in their order. Each command repeats its run from the recipe that the run kept, which "
            "stands below in full."
        )
        parts = [runs.overview(given.runs, given.watts), how, runs.details(given.runs)]
    else:
        parts = ["Steps, seeds, time, machine and energy: not recorded, no runs were given."]
    if commands := given.notes.sections.get("commands"):
        parts.append(commands)
    return "\n\n".join(parts)


def _measured(given: Sources) -> str:
    if given.report is None:
        return "Not measured: no report was given."
    return measured.section(given.report, given.manifest.data_sha256 if given.manifest else None)


def written(given: Sources) -> dict[str, str]:
    """{file name: content} of both cards."""
    cards = {"README.md": model_card(given), "DATA.md": data_card(given)}
    named = tuple(run.path for run in given.runs)
    return {name: _portable(text, named) for name, text in cards.items()}


def _portable(text: str, named: tuple[str, ...] = ()) -> str:
    """Absolute paths shortened to their last part, but for those in the folders that the author `named`."""
    return ABSOLUTE.sub(lambda m: m[0] if m[0].startswith(named) else f".../{m[1]}", text)
