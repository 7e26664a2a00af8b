"""A whole evaluation: every suite's cases, what is already there, what is missing, and one report of all.

Suites, judges and the folder are given; nothing here knows how anything is made or judged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpa.disk import write_text
from gpa.errors import UsageError
from gpa.evals import by_corpus, items, plots, report, report_file, significance, suites, wer
from gpa.evals.judges.base import versions
from gpa.evals.measurement import Bench, Case, cpu_seconds, measure, wav_path

if TYPE_CHECKING:
    from gpa.evals.report import Item
    from gpa.evals.results_cache import ResultsCache

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What an evaluation found: items by suite, and why other suites did not run.

    `cost` is what the items of this run took, judges included: {suite: {items, seconds, cpu_seconds}}.
    """

    found: dict[str, list[Item]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    cost: dict[str, dict[str, float]] = field(default_factory=dict)
    kept: int = 0  # items that were there before

    def summaries(self, seed: int) -> list[report.Summary]:
        """One per suite that ran."""
        return [report.summarise(suite, rows, seed) for suite, rows in self.found.items()]


def sizes(names: Sequence[str], n: int | None, quick: bool) -> dict[str, int]:
    """{suite: items} in the given order; UsageError for an unknown suite. `n` is for all, 0 is everything."""
    if strange := [name for name in names if name not in suites.SUITES]:
        raise UsageError(f"no suite {strange[0]!r}: choose mini, or of {', '.join(suites.SUITES)}")
    usual = suites.QUICK if quick else suites.FULL
    return {name: usual[name] if n is None else n for name in names}


def settings(bench: Bench, hashes: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides an item's result: where it is equal, so are items. `hashes` are of the models."""
    clips = [row for row in bench.manifest if row["split"] == bench.split]
    return {
        **hashes,
        "data_sha256": items.data_hash(bench.data),
        "clips_sha256": items.clips_hash(bench.data, clips),
        "code_sha256": report_file.code_hash(),
        "noise_sha256": _noise_hash(bench),
        "split": bench.split,
        "noisy": {**bench.degrade.about(), "names": bench.degrade.names} if bench.degrade else {},
        "seed": bench.seed,
        "voices": [str(voice) for voice in bench.voices],
        "speakers": dict(bench.speakers),
        "seen_sha256": report_file.digest(sorted(bench.seen)),
        "normaliser": wer.NORMALISER,
        "judges": bench.required_judges.about(),
    }


def _noise_hash(bench: Bench) -> str:
    """Of the sounds without speech, "" where there are none."""
    folder = bench.noise or bench.data / "noise"
    return items.clips_hash(folder, items.noises(folder, 0, 0)) if folder.is_dir() else ""


def run(
    bench: Bench, wanted: Mapping[str, int], store: ResultsCache, say: Callable[[str], None] = log.info
) -> Outcome:
    """Measure every wanted suite, items that the store holds excepted; each new one is kept at once.

    UsageError before the first item where data, model or voices do not suffice for all of them.
    """
    outcome = Outcome()
    outcome.skipped = {name: reason for name in wanted if (reason := suites.lacking(name, bench))}
    for name, reason in outcome.skipped.items():
        say(f"{name}: not measured: {reason}")
    plan = {name: _cases(name, n, bench) for name, n in wanted.items() if name not in outcome.skipped}
    for number, (name, cases) in enumerate(plan.items(), 1):
        begin, worked = time.perf_counter(), cpu_seconds()
        outcome.found[name], known = _suite(f"{number}/{len(plan)} {name}", name, cases, bench, store)
        outcome.kept += known
        if new := len(outcome.found[name]) - known:
            spent = {"seconds": time.perf_counter() - begin, "cpu_seconds": cpu_seconds() - worked}
            outcome.cost[name] = {"items": new} | {key: round(value, 2) for key, value in spent.items()}
            say(f"{number}/{len(plan)} {name}: {new} items in {spent['seconds']:.0f} s")
    return outcome


def _cases(name: str, n: int, bench: Bench) -> list[Case]:
    suites.check(name, bench)
    return suites.SUITES[name].cases(bench, n)


def _suite(
    title: str, name: str, cases: Sequence[Case], bench: Bench, store: ResultsCache
) -> tuple[list[Item], int]:
    """The items of a suite in the order of its cases, and how many of them were there before."""
    suite = suites.SUITES[name]
    done = {key: item for key, item in store.done(name).items() if _is_whole(name, item, bench)}
    known = sum(case.id in done for case in cases)
    for case in suites.progress([case for case in cases if case.id not in done], title):
        done[case.id] = measure(name, suite, bench, case)
        store.add(name, done[case.id])
    return [done[case.id] for case in cases], known


def _is_whole(name: str, item: Item, bench: Bench) -> bool:
    """Whether an item need not be made again; one without its sound is, if sound is to be kept."""
    text_only = suites.SUITES[name].reads or item.heard is None or bench.wavs is None
    return text_only or wav_path(bench.wavs, name, item.id).exists()  # type: ignore[arg-type]


def content(
    bench: Bench, outcome: Outcome, fixed: Mapping[str, Any], more: Mapping[str, Any]
) -> dict[str, Any]:
    """The report as a tree: `fixed` are the settings, `more` what only this run can say (command, timing)."""
    summaries = outcome.summaries(bench.seed)
    used = {name: suites.SUITES[name] for name in outcome.found}
    return {
        "results_sha256": report_file.results_digest(fixed, outcome.found),
        "settings": dict(fixed),
        **more,
        "machine": report_file.machine(),
        "versions": versions(),
        "programs": {name: suite.version() for name, suite in used.items() if suite.version()},
        "about": {name: suite.about for name, suite in used.items()},
        "suites": {summary.suite: report.plain(summary) for summary in summaries},
        "by_corpus": by_corpus.plain(by_corpus.lines(outcome.found, bench.seed)),
        "not_measured": dict(bench.required_judges.absent),
        "skipped": outcome.skipped,
        "peers": {
            f"{a} / {b}": significance.plain(found) for (a, b), found in peers(outcome, bench.seed).items()
        },
        "cost": outcome.cost,
        "items": {name: [report_file.compact(item) for item in rows] for name, rows in outcome.found.items()},
    }


def peers(outcome: Outcome, seed: int) -> dict[tuple[str, str], list[significance.Difference]]:
    """Differences of every two suites about the same cases, ours first."""
    rows = {name: [report_file.compact(item) for item in found] for name, found in outcome.found.items()}
    pairs = [(a, b) for a, b in suites.PEERS if a in rows and b in rows]
    return {(a, b): significance.items(f"{a} / {b}", rows[a], rows[b], seed) for a, b in pairs}


def write(
    folder: Path, bench: Bench, outcome: Outcome, fixed: Mapping[str, Any], more: Mapping[str, Any]
) -> dict[str, Any]:
    """report.json, table.md and the pictures; returns the report."""
    sealed = report_file.write(folder / report_file.FILE, content(bench, outcome, fixed, more))
    write_text(folder / "table.md", markdown(bench, outcome, sealed) + "\n")
    plots.draw(folder, outcome.summaries(bench.seed), outcome.found, list(suites.BASELINES))
    return sealed


def markdown(bench: Bench, outcome: Outcome, sealed: Mapping[str, Any]) -> str:
    """The table with what a reader must know about it, and ours beside each peer."""
    absent = bench.required_judges.absent
    lines = [report.markdown(outcome.summaries(bench.seed), absent, outcome.skipped), ""]
    parts = by_corpus.lines(outcome.found, bench.seed)
    if len({line.corpus for line in parts} - {by_corpus.ALL}) > 1:
        lines += ["By corpus, with intervals over items and over speakers:", "", by_corpus.table(parts), ""]
    judges = "; ".join(_judge(about) for about in sealed["settings"]["judges"].values())
    lines.append(f"Judges: {judges}. Text on both sides: {sealed['settings']['normaliser']}.")
    lines += [f"Not measured: {seat} ({reason})." for seat, reason in bench.required_judges.absent.items()]
    if bench.degrade:
        lines += [bench.degrade.words(), f"Noises: {', '.join(bench.degrade.names)}."]
    lines.append(
        f"Split {bench.split}, seed {bench.seed}, {sealed['machine']['processor']}, "
        f"{sealed['machine']['usable_cores']} cores, load {sealed['machine']['load'][0]}; "
        f"results {sealed['results_sha256'][:16]}, report {sealed['sha256'][:16]}."
    )
    timing = sealed.get("timing", {})
    if "peak_memory_mb" in timing:
        lines.append(
            f"Model loaded in {timing['load_seconds']:.1f} s; {timing['peak_memory_mb']:.0f} MB at most "
            "after its first sentence and transcript, judges not loaded yet."
        )
    compared = [d for found in peers(outcome, bench.seed).values() for d in found if d.headline]
    if compared:
        lines += [
            "",
            "Ours (A) beside its peers (B), paired over the same items:",
            "",
            significance.table(compared),
        ]
    return "\n".join(lines)


def _judge(about: Mapping[str, Any]) -> str:
    other = "" if about["as_pinned"] else " (not the pinned weights)"
    return f"{about['measures']} by {about['name']}, {about['version']}{other}".rstrip(", ")
