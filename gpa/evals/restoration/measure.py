"""A whole measurement: which clips, every row of every clip, what is already there, and one report.

The model, the judges and the folder are given. Clip after clip, so a run that was stopped has whole clips.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from gpa import audio, hub
from gpa.disk import write_text
from gpa.errors import PromptError, UsageError
from gpa.evals import items, report, report_file, wer
from gpa.evals.judges.base import versions
from gpa.evals.measurement import SAMPLE_RATE, Case, Made, cpu_seconds, measure, timed, wav_path
from gpa.evals.report import Item
from gpa.evals.restoration import orderings, restoration_plots, restoration_table, systems
from gpa.models.speechop.words_speechop import spoken

if TYPE_CHECKING:
    from gpa.evals.restoration.systems import Row, Scene
    from gpa.evals.results_cache import ResultsCache

SECONDS = (2.0, 8.0)
PACKAGES = ("pesq", "pystoi", "noisereduce")
_SOURCES = ("models/speechop/*.py", "data/augment.py", "data/effects.py")
_OWN = ("distance.py", "systems.py", "noisy_clips.py")  # those of this folder that can move a number


@dataclass
class Outcome:
    """Items by row; rows that were not measured and why; what the items of this run took."""

    found: dict[str, list[Item]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    kept: int = 0  # items that were there before
    swept: list[str] = field(default_factory=list)  # clips of the sweep


def choose(manifest: Sequence[items.Row], splits: Sequence[str], n: int, seed: int) -> list[Case]:
    """n held-out clips of 2 to 8 s whose transcript the model can read, speakers in turn; all where n is 0.

    The first 5 of 20 are those of 5, and there may be fewer than n. UsageError for a training split, or none.
    """
    pool = [row for split in splits for row in items.dev_clips(manifest, 0, seed, split)]
    pool = [row for row in pool if SECONDS[0] <= float(row["duration"]) <= SECONDS[1] and _readable(row)]
    if not pool:
        raise UsageError(f"{' and '.join(splits)}: no clip of 2 to 8 s with a transcript in English")
    speakers = items.pick({str(row["speaker"]) for row in pool}, 0, seed, str)
    own = {name: [row for row in pool if str(row["speaker"]) == name] for name in speakers}
    turns = range(max(map(len, own.values())))
    chosen = [own[name][turn] for turn in turns for name in speakers if turn < len(own[name])]
    return [_case(row) for row in chosen[: n or None]]


def _readable(row: items.Row) -> bool:
    try:
        return bool(spoken(row["text"], seconds=float(row["duration"])))
    except PromptError:
        return False


def _case(row: items.Row) -> Case:
    labels = {"speaker": str(row["speaker"]), "corpus": str(row.get("corpus", ""))}
    return Case(row["id"], row["text"], row, None, str(row["speaker"]), (row["id"],), labels)


def settings(scene: Scene, hashes: Mapping[str, Any], splits: Sequence[str]) -> dict[str, Any]:
    """All that decides an item's result: where it is equal, so are items. `hashes` are of the models."""
    bench, root = scene.bench, Path(__file__).resolve().parents[2]
    clips = [row for row in bench.manifest if row["split"] in splits]
    sources = [path for pattern in _SOURCES for path in root.glob(pattern)]
    sources += [Path(__file__).with_name(name) for name in _OWN]
    return {
        **hashes,
        "data_sha256": items.data_hash(bench.data),
        "clips_sha256": items.clips_hash(bench.data, clips),
        "code_sha256": report_file.code_hash(),
        "speechop_sha256": hub.fingerprint_files(*sources),
        "split": "+".join(splits),
        "seed": bench.seed,
        "steps": scene.steps,
        "noisy": scene.degrade.about(),
        "normaliser": wer.NORMALISER,
        "judges": bench.required_judges.about(),
        "ratings": sorted(scene.ratings),
    }


def run(
    scene: Scene,
    cases: Sequence[Case],
    sweep: int,
    store: ResultsCache,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Measure every row over all clips, and the sweep over the first `sweep` of them."""
    outcome = Outcome(swept=[case.id for case in cases[:sweep]])
    plan = [(row, cases[: row.most or None]) for row in systems.table_rows(scene)]
    plan += [(row, cases[:sweep]) for row in systems.sweep_rows(scene) if sweep]
    outcome.skipped = {row.title: reason for row, _ in plan if (reason := row.missing())}
    plan = [(row, own) for row, own in plan if row.title not in outcome.skipped]
    for title, reason in outcome.skipped.items():
        say(f"{title}: not measured: {reason}")
    done = {row.name: _whole(scene, row, store.done(row.name)) for row, _ in plan}
    scene.heard = done[systems.HEARD]
    wanted = [(row, case) for case in cases for row, own in plan if case in own]
    missing = [(row, case) for row, case in wanted if case.id not in done[row.name]]
    if missing:
        _warm(scene, missing[0][1])
    begin, worked = time.perf_counter(), cpu_seconds()
    with tqdm(missing, unit="item", dynamic_ncols=True, disable=None) as bar:
        for row, case in bar:
            bar.set_description(f"{case.id} {row.title}")
            done[row.name][case.id] = item = _item(scene, row, case)
            store.add(row.name, item)
    outcome.kept = len(wanted) - len(missing)
    outcome.cost = {
        "items": len(missing),
        "seconds": round(time.perf_counter() - begin, 1),
        "cpu_seconds": round(cpu_seconds() - worked, 1),
    }
    outcome.found = {row.name: [done[row.name][case.id] for case in own] for row, own in plan}
    return outcome


def _warm(scene: Scene, case: Case) -> None:
    """Network and recogniser once, so that the first item's time is that of any other."""
    wav = scene.bench.clip(case.source or {})
    for row in (systems.warming(), *(row for row in systems.table_rows(scene) if row.reads)):
        timed(Item(case.id, case.text), row.suite(scene).make, scene.bench, case, wav)


def _whole(scene: Scene, row: Row, found: dict[str, Item]) -> dict[str, Item]:
    """Items that need not be made again; one without its sound is, if sounds are to be kept."""
    wavs = scene.bench.wavs
    if wavs is None or row.reads:
        return found
    return {n: i for n, i in found.items() if i.heard is None or wav_path(wavs, row.name, n).exists()}


def _item(scene: Scene, row: Row, case: Case) -> Item:
    """One clip made, judged and rated against its recording."""
    item = measure(row.name, row.suite(scene), scene.bench, case)
    if row.name not in (systems.CLEAN, systems.CODEC):
        item.labels |= scene.degrade.labels(case.id)
    if row.name in (
        systems.ITC,
        systems.FILTERED[systems.ITC],
    ):  # whoever uses it waits for the recogniser as well
        item.seconds += scene.heard[case.id].seconds
        item.cpu_seconds += scene.heard[case.id].cpu_seconds
    if scene.made is not None and item.heard is not None and not row.reads and row.name != systems.CLEAN:
        item.values |= _rated(scene, case, scene.made)
    return item


def _rated(scene: Scene, case: Case, made: Made) -> dict[str, float]:
    """What the ratings say of a sound beside the recording, over the length both have."""
    clean, wav = scene.bench.clip(case.source or {}), made.wav
    if wav is None:
        return {}
    wav = wav if made.rate == SAMPLE_RATE else audio.load((wav, made.rate), SAMPLE_RATE)
    length = min(len(clean), len(wav))
    found = {name: rate(clean[:length], wav[:length]) for name, rate in scene.ratings.items()}
    return {name: round(value, 4) for name, value in found.items() if value is not None}


# The report ------------------------------------------------------------------------------------------------


def content(
    scene: Scene, outcome: Outcome, fixed: Mapping[str, Any], more: Mapping[str, Any]
) -> dict[str, Any]:
    """The report as a tree: `fixed` are the settings, `more` what only this run can say (command, time)."""
    seed, found = scene.bench.seed, outcome.found
    listed = [*systems.table_rows(scene), *systems.sweep_rows(scene)]
    return {
        "results_sha256": report_file.results_digest(fixed, found),
        "bench": "speechop",
        "settings": dict(fixed),
        **more,
        "machine": report_file.machine(),
        "versions": {**versions(), **versions(PACKAGES)},
        "about": {row.name: row.title for row in listed if row.name in found},
        "suites": {name: report.plain(report.summarise(name, own, seed)) for name, own in found.items()},
        "orderings": [claim.plain() for claim in claims(scene, outcome)],
        "not_measured": {**scene.bench.required_judges.absent, **scene.absent},
        "skipped": outcome.skipped,
        "swept": outcome.swept,
        "cost": outcome.cost,
        "items": {name: [report_file.compact(item) for item in own] for name, own in found.items()},
    }


def claims(scene: Scene, outcome: Outcome) -> list[orderings.Claim]:
    """The paper's orderings over what was found."""
    share = scene.op.config.compose.avg_weight
    return orderings.claims(outcome.found, scene.bench.seed, share if outcome.swept else None)


def write(
    folder: Path, scene: Scene, outcome: Outcome, fixed: Mapping[str, Any], more: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """report.json, table.md and the pictures; returns the report and the table."""
    sealed = report_file.write(folder / report_file.FILE, content(scene, outcome, fixed, more))
    found = claims(scene, outcome)
    text = restoration_table.markdown(scene, outcome.found, outcome.skipped, found, outcome.swept, sealed)
    write_text(folder / "table.md", text + "\n")
    if outcome.swept:
        usual = (scene.steps, scene.op.config.compose.avg_weight)
        restoration_plots.draw(folder, outcome.found, outcome.swept, usual, scene.bench.seed)
    return sealed, text
