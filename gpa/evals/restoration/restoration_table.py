"""The measurement as Markdown: the table, the orderings, and what a reader must know about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpa.evals import report
from gpa.evals.restoration import orderings, systems

if TYPE_CHECKING:
    from gpa.evals.report import Item, Summary
    from gpa.evals.restoration.orderings import Claim, Found
    from gpa.evals.restoration.systems import Row, Scene

_MEANS = {"similarity": ("similarity", 2), "mos": ("DNSMOS", 2), "pesq": ("PESQ", 2), "stoi": ("STOI", 3)}
_SEATS = {"similarity": "voice", "mos": "quality"}  # which judge a mean needs, where its name differs
COLUMNS = ("row", "clips (failed, empty)", "WER % [95 %]", "PER %", *(title for title, _ in _MEANS.values()))
COLUMNS += ("MCD, dB [95 %]", "RTF (CPU)", "evaluations")


def markdown(
    scene: Scene,
    found: Found,
    skipped: Mapping[str, str],
    claims: Sequence[Claim],
    swept: Sequence[str],
    sealed: Mapping[str, Any],
) -> str:
    """All of it; `sealed` is the report."""
    shown = [row for row in systems.table_rows(scene) if row.name not in (systems.HEARD, systems.SAME)]
    lines = [rate_table(scene, shown, found, skipped), "", *_notes(scene, found, sealed), ""]
    lines += [
        "Orderings that the paper expects, and the like of filtered ones, left below right:",
        "",
        orderings.table(claims),
    ]
    if swept:
        first = {name: [item for item in own if item.id in swept] for name, own in found.items()}
        points = [*_anchors(scene), *systems.sweep_rows(scene)]
        lines += ["", f"The sweep, over the first {len(swept)} clips:", ""]
        lines.append(rate_table(scene, points, first, {}))
    return "\n".join(lines)


def _anchors(scene: Scene) -> list[Row]:
    names = (systems.ALONE, systems.BASE, systems.AVERAGE, systems.GOLD)
    return [row for row in systems.table_rows(scene) if row.name in names]


def rate_table(scene: Scene, shown: Sequence[Row], found: Found, skipped: Mapping[str, str]) -> str:
    """One line a row."""
    absent = {**scene.bench.required_judges.absent, **scene.absent}
    lines = [_line(COLUMNS), "|" + "---|" * len(COLUMNS)]
    for row in shown:
        if row.title in skipped:
            lines.append(
                _line([row.title, f"not measured: {skipped[row.title]}", *["-"] * (len(COLUMNS) - 2)])
            )
        elif row.name in found:
            summary = report.summarise(row.name, found[row.name], scene.bench.seed)
            lines.append(_line([row.title, *_cells(summary, absent)]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(s: Summary, absent: Mapping[str, str]) -> list[str]:
    per = f"{100 * s.per.value:.1f}" if s.per else "not measured" if "phonemes" in absent else "-"
    cells = [f"{s.items} ({s.failed}, {s.empty})", s.wer.percent(), per]
    for name, (_, digits) in _MEANS.items():
        unmeasured = "not measured" if _SEATS.get(name, name) in absent else "-"
        cells.append(f"{s.values[name].value:.{digits}f}{_of(s, name)}" if name in s.values else unmeasured)
    cells.append(s.values["mcd"].plain() + _of(s, "mcd") if "mcd" in s.values else "-")
    cells.append(f"{s.rtf:.2f} ({s.cpu_rtf:.2f})" if s.rtf >= 0.005 else "-")
    cells.append(f"{s.values['evaluations'].value:.0f}" if "evaluations" in s.values else "-")
    return cells


def _of(s: Summary, name: str) -> str:
    """How many clips a mean is over, where not over all."""
    return "" if s.counted[name] == s.items else f" ({s.counted[name]} clips)"


def _notes(scene: Scene, found: Found, sealed: Mapping[str, Any]) -> list[str]:
    """Who judged, what was done to the clips, what was not measured."""
    seed, fixed = scene.bench.seed, sealed["settings"]
    heard = report.summarise(systems.HEARD, found[systems.HEARD], seed)
    judges = "; ".join(_judge(about) for about in fixed["judges"].values())
    lines = [
        f"Transcript of ITC: our recogniser on the noisy clips, WER {heard.wer.percent()} %, "
        f"{heard.failed} failed.",
        *_clip_by_clip(scene, found),
        scene.degrade.words(),
        f"Judges: {judges}. Text on both sides: {fixed['normaliser']}.",
    ]
    absent = {**scene.bench.required_judges.absent, **scene.absent}
    lines += [f"Not measured: {name} ({reason})." for name, reason in absent.items()]
    lines.append(
        f"{fixed['steps']} steps of the sampler, split {fixed['split']}, seed {fixed['seed']}, "
        f"{sealed['machine']['processor']}, load {sealed['machine']['load'][0]}; "
        f"results {sealed['results_sha256'][:16]}, report {sealed['sha256'][:16]}."
    )
    return lines


def _clip_by_clip(scene: Scene, found: Found) -> list[str]:
    """In how many clips a row has more wrong words than the noisy recording, and in how many fewer."""
    rows = [
        row
        for row in systems.table_rows(scene)
        if row.name in (systems.USUAL, systems.FILTERED[systems.ALONE])
    ]
    said = []
    for row in rows:
        more, fewer, both = beside(found.get(systems.NOISY, ()), found.get(row.name, ()))
        if both:
            said.append(f"{row.title}: more in {more}, fewer in {fewer} of {both} clips")
    return [f"Wrong words against noisy, clip by clip. {'; '.join(said)}."] if said else []


def beside(before: Sequence[Item], after: Sequence[Item]) -> tuple[int, int, int]:
    """Clips with more wrong words than before, with fewer, and all of which both are known."""
    known = {item.id: item.words.errors for item in before if item.words}
    gaps = [item.words.errors - known[item.id] for item in after if item.words and item.id in known]
    return sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps), len(gaps)


def _judge(about: Mapping[str, Any]) -> str:
    other = "" if about["as_pinned"] else " (not the pinned weights)"
    return f"{about['measures']} by {about['name']}, {about['version']}{other}".rstrip(", ")
