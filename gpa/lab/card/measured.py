"""A report of `gpa eval` -> the part of a card that says what was measured.

The report is read and checked by `record.read`; its tables are made again from its own numbers.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from gpa.errors import UsageError
from gpa.evals import report, significance, suites
from gpa.evals.report import Summary
from gpa.evals.significance import Difference
from gpa.evals.wer import Rate

Report = Mapping[str, Any]
TASKS = {  # the hub's name of what a suite does, by how its name begins
    "tts": "text-to-speech",
    "asr": "automatic-speech-recognition",
    "vc": "audio-to-audio",
    "codec": "audio-to-audio",
}
READING = """\
Error rates are judged by a recogniser, so the recordings themselves have one: it stands beside ours
(`recordings`), and *rise* is what was added to it on the same items. Brackets are 95 % intervals from
resampled items; they know of no other speakers than those of the split and of no second training run. A
failed item counts as all its words wrong."""


def check(found: Report, digest: str, where: str) -> None:
    """UsageError unless the report is of the weights that have this hash."""
    weights = found["settings"].get("model_sha256")
    if weights != digest:
        raise UsageError(
            f"{where}: measured the weights {str(weights)[:16]}, the checkpoint has {digest[:16]}: "
            "measure this checkpoint, or give the report that did"
        )


def summary_of(raw: Mapping[str, Any]) -> Summary:
    """The inverse of `report.plain`."""
    rates = {name: _rate(raw[name]) for name in ("wer", "cer", "floor", "rise", "per", "floor_per")}
    means = {
        n: {key: Rate(**rate) for key, rate in raw[n].items()} for n in ("shares", "values", "originals")
    }
    return Summary(**{**raw, **rates, **means})


def _rate(raw: Mapping[str, float] | None) -> Rate | None:
    return Rate(**raw) if raw else None


def section(found: Report, data_sha256: str | None) -> str:
    """Table, judges, comparison with the baselines, and by which command, when and on what."""
    summaries = [summary_of(raw) for raw in found["suites"].values()]
    lines = [READING, "", report.markdown(summaries, found["not_measured"], found["skipped"]), ""]
    lines += [f"- `{name}`: {about}{_program(found, name)}" for name, about in found["about"].items()]
    lines += ["", f"Judges: {_judges(found)}. Text on both sides: {found['settings']['normaliser']}."]
    lines += [f"Not measured: {seat} ({reason})." for seat, reason in found["not_measured"].items()]
    lines += ["", *_circumstances(found, data_sha256)]
    return "\n".join([*lines, *_peers(found)])


def _program(found: Report, name: str) -> str:
    return f" ({found['programs'][name]})" if name in found.get("programs", {}) else ""


def _judges(found: Report) -> str:
    seats = found["settings"]["judges"].values()
    return "; ".join(
        f"{about['measures']} by {about['name']}, {about['version']}"
        + ("" if about.get("as_pinned", True) else " (not the pinned weights)")
        for about in seats
    )


def _circumstances(found: Report, data_sha256: str | None) -> list[str]:
    settings, machine = found["settings"], found["machine"]
    lines = [
        f"- command: `{shlex.join(found['command'])}`" if found.get("command") else "- command: not recorded",
        f"- taken {found.get('taken', 'at a time not recorded')}, {_cost(found)}, "
        f"on {machine['processor']}, {machine['usable_cores']} cores, Python {machine['python']}",
        f"- split `{settings['split']}`, seed {settings['seed']}, "
        f"voices {', '.join(settings['voices']) or 'none'}",
        f"- SHA-256 of the report `{found['sha256']}`, of its results `{found['results_sha256']}`, "
        f"of the code `{settings['code_sha256']}`",
        f"- SHA-256 of the evaluation's data `{settings['data_sha256']}`{_same(settings, data_sha256)}",
    ]
    return lines


def _cost(found: Report) -> str:
    spent = found.get("timing", {}).get("wall_seconds")
    return f"{spent / 60:.0f} minutes" if spent else "duration not recorded"


def _same(settings: Mapping[str, Any], data_sha256: str | None) -> str:
    if data_sha256 is None:
        return ""
    return (
        ", the data described here"
        if data_sha256 == settings["data_sha256"]
        else ", NOT the data described here"
    )


def _peers(found: Report) -> list[str]:
    rows = [_difference(raw) for pair in found.get("peers", {}).values() for raw in pair]
    shown = [row for row in rows if row.headline]
    if not shown:
        return ["", "Baselines: not measured."]
    return ["", "Ours (A) beside its peers (B), paired over the same items:", "", significance.table(shown)]


def _difference(raw: Mapping[str, Any]) -> Difference:
    return Difference(**{**raw, "difference": Rate(**raw["difference"])})


def model_index(name: str, found: Report) -> list[dict[str, Any]]:
    """The hub's form of the word error rates of our own suites, in percent."""
    split = found["settings"]["split"]
    results = []
    for suite, raw in found["suites"].items():
        task = TASKS.get(suite.split("-")[0])
        if task is None or suite not in suites.MINI:
            continue
        interval = "[{:.1f}, {:.1f}]".format(*(100 * raw["wer"][end] for end in ("low", "high")))
        metric = {
            "type": "wer",
            "name": f"WER % of {suite}, {raw['items']} items, 95 % {interval}",
            "value": round(100 * raw["wer"]["value"], 1),
        }
        dataset = {"type": "local", "name": "data of DATA.md", "split": split}
        results.append({"task": {"type": task}, "dataset": dataset, "metrics": [metric]})
    return [{"name": name, "results": results}] if results else []
