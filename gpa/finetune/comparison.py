"""Before and after: the same items, the same judge, the base model and the fine-tuned one.

The items: sentences to speak, held-out recordings of the voice, and speech of the base model in its shipped
voices, which stands for everything that it could do before. The suites and the judges are those of
`gpa.evals`; where the extra is not installed the base model judges, and the table says so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpa import audio, disk
from gpa.data import token_folder
from gpa.errors import GPAError, MissingExtraError, UsageError
from gpa.evals import report, suites
from gpa.evals.items import REFERENCE_SECONDS
from gpa.evals.judges.all_judges import Judges, open_judges
from gpa.evals.judges.base import SAMPLE_RATE, FunctionJudge
from gpa.evals.measurement import Bench, Case
from gpa.evals.measurement import measure as bench_measure
from gpa.finetune import collect
from gpa.prompt.tasks import TASKS
from gpa.text.normaliser import normalise_text

if TYPE_CHECKING:
    from gpa.models.gpa.pipeline_gpa import GPA

log = logging.getLogger(__name__)

OTHERS, VOICE, MIXED = "dev", "dev-voice", "dev-mixed"  # splits of the compared items
JUDGES = ("auto", "extra", "own")
OTHER_JUDGES = ("words_2", "quality_2", "phonemes")  # that the table has no column for


def choose_judges(which: str, model: GPA, without: Sequence[str] = OTHER_JUDGES) -> Judges:
    """The judges of the extra `eval`, or the model's own recogniser ("auto": if the extra is absent).

    Where there is no speaker judge the codec's speaker encoder takes its seat.
    """
    if which not in JUDGES:
        raise UsageError(f"judge {which!r}: choose one of {', '.join(JUDGES)}")
    voices = FunctionJudge("the codec's own speaker encoder", model.codec.speaker_vector)
    if which != "own":
        try:
            judges = open_judges(without=without)
            return judges if judges.voice else replace(judges, voice=voices)
        except MissingExtraError as error:
            if which == "extra":
                raise
            log.warning("%s; the base model judges instead", error)
    words = FunctionJudge("the base model itself", own_recogniser(model))
    return Judges(words, normalise_text, voice=voices)


def names(judges: Judges) -> str:
    """Who judges, in the order of the table's columns."""
    seats = (judges.words, judges.voice, judges.voice_2, judges.quality)
    return ", ".join(seat.about.name for seat in seats if seat is not None)


def own_recogniser(model: GPA) -> Callable[[np.ndarray], str]:
    def hear(wav: np.ndarray) -> str:
        try:
            return model.asr((wav, SAMPLE_RATE)).text
        except GPAError:  # too short, or nothing heard
            return ""

    return hear


def write_items(model: GPA, manifest: Path, name: str, texts: Sequence[str], count: int, out: Path) -> None:
    """A data folder for the suites: held-out clips of the voice, `count` of the base model's own speech,
    sentences.
    """
    speech = out / "speech"
    speech.mkdir(parents=True, exist_ok=True)
    rows = [*_recordings(manifest, name, speech, count), *_spoken(model, texts[:count], speech)]
    mixed = [{**row, "id": f"{row['id']}-mixed", "split": MIXED} for row in rows]
    (out / "text").mkdir(exist_ok=True)
    lines = "".join(f"sentence-{n}\t{text}\n" for n, text in enumerate(texts))
    disk.write_text(out / "text" / "sentences.tsv", lines)
    disk.write_text(speech / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in [*rows, *mixed]))


def _recordings(manifest: Path, name: str, folder: Path, count: int) -> Iterator[dict[str, Any]]:
    held = [row for row in collect.read(manifest) if row["split"] == "dev"]
    for row in held[:count]:
        try:
            wav = collect.wav_of(row, SAMPLE_RATE)
        except GPAError as error:
            log.warning("%s is not compared on: %s", row["path"], error)
            continue
        yield _item(folder, f"voice-{row['id']}".replace("/", "-"), wav, name, row["text"], VOICE)


def _spoken(model: GPA, texts: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    voices = sorted(model.voices)
    for n, text in enumerate(texts if voices else ()):
        try:
            made = model.tts(text, voice=voices[n % len(voices)], seed=n)
        except GPAError:
            continue
        wav = audio.load((made.wav, made.sample_rate), SAMPLE_RATE)
        yield _item(folder, f"base-{n}", wav, voices[n % len(voices)], text, OTHERS)


def _item(folder: Path, name: str, wav: np.ndarray, speaker: str, text: str, split: str) -> dict[str, Any]:
    audio.save(folder / f"{name}.wav", wav, SAMPLE_RATE)
    seconds = len(wav) / SAMPLE_RATE
    row = {"id": name, "path": f"{name}.wav", "speaker": speaker, "text": text, "split": split}
    return {**row, "duration": seconds, "corpus": "finetune"}


@dataclass(frozen=True)
class Line:
    """One line of the table: shares of 1, None where there is nothing to measure."""

    task: str
    whose: str
    wer: float
    stopped: float | None
    similarity: float | None
    items: int
    similarity_2: float | None = None  # by the second speaker judge
    mos: float | None = None  # DNSMOS


@dataclass(frozen=True)
class Scale:
    """What is measured on: the items' folder, the new voice's name, items a line, and who judges."""

    data: Path
    name: str
    items: int
    judges: Judges


def measure(model: GPA, scale: Scale, wavs: Path, *, everything: bool) -> list[Line]:
    """Lines about the new voice and, with `everything`, about all else; what was made goes to `wavs`.

    The language model and the other voices need no second look where only a voice was added.
    """
    name, others = scale.name, [voice for voice in sorted(model.voices) if voice != scale.name]
    new = [("tts", name, VOICE, [name]), ("vc-codec", name, OTHERS, [name])]
    old: list[tuple[str, str, str, list[str]]] = [
        ("tts", "others", OTHERS, others),
        ("asr", "others", OTHERS, []),
        ("asr", name, VOICE, []),
        ("vc-lm", "all", MIXED, []),
    ]
    made = []
    for suite, whose, split, voices in [*new, *old] if everything else new:
        bench = Bench(scale.data, model, judges=scale.judges, voices=voices, n=scale.items, split=split)
        bench.wavs = wavs / whose
        if voices if suite == "tts" else _enough(bench.manifest, suite, split):
            made.append(_line(suite, whose, bench))
    return made


def _enough(rows: Sequence[Mapping[str, Any]], suite: str, split: str) -> bool:
    """Whether a split has clips for a suite: a conversion needs two speakers, each with a reference."""
    rows = [row for row in rows if row["split"] == split]
    long = {row["speaker"] for row in rows if row["duration"] >= REFERENCE_SECONDS}
    return len(long) >= 2 if suite == "vc-lm" else bool(rows)


def _line(suite: str, whose: str, bench: Bench) -> Line:
    found = _converted(bench, whose) if suite == "vc-codec" else suites.run(suite, bench)
    summary = report.summarise(suite, found)
    stopped = summary.shares.get("stopped")
    return Line(
        suite.removesuffix("-lm").removesuffix("-codec"),
        whose,
        summary.wer.value,
        stopped.value if stopped else None,
        _mean(found, "similarity"),
        len(found),
        _mean(found, "similarity_2"),
        _mean(found, "mos"),
    )


def _converted(bench: Bench, name: str) -> list[report.Item]:
    """Speech of the split's other speakers said in the voice, by the codec."""
    rows = [row for row in bench.manifest if row["split"] == bench.split][: bench.n]
    cases = [Case(f"{row['id']}-to-{name}", row["text"], row, name, name) for row in rows]
    suite = suites.SUITES["vc-codec"]
    return [bench_measure("vc-codec", suite, bench, case) for case in suites.progress(cases, "vc-codec")]


def _mean(found: Sequence[report.Item], key: str) -> float | None:
    values = [item.values[key] for item in found if key in item.values]
    return float(np.mean(values)) if values else None


def same_sound(base: GPA, made: GPA, text: str) -> bool:
    """Whether a sentence in every voice of the base is the same to the bit."""
    return all(
        np.array_equal(base.tts(text, voice=voice).wav, made.tts(text, voice=voice).wav)
        for voice in sorted(base.voices)
        if voice in made.voices
    )


def pairs(before: Sequence[Line], after: Sequence[Line]) -> list[tuple[Line, Line]]:
    """Lines of both models about the same thing."""
    then = {(line.task, line.whose): line for line in after}
    return [(line, then[line.task, line.whose]) for line in before if (line.task, line.whose) in then]


def table(before: Sequence[Line], after: Sequence[Line], judges: str) -> str:
    """Markdown, a line per task and voice; differences in points."""
    rows = [
        f"Judges: {judges}. WER is of the judge's transcript (of the model's own for asr).",
        "",
        "| task | voice | items | WER % before | after | stopped % before | after "
        "| similarity before | after | second judge before | after | DNSMOS before | after |",
        "|---" * 13 + "|",
    ]
    for a, b in pairs(before, after):
        cells = [a.task, a.whose, str(a.items), _percent(a.wer), _percent(b.wer)]
        cells += [_percent(a.stopped), _percent(b.stopped)]
        for key in ("similarity", "similarity_2", "mos"):
            cells += [_plain(getattr(line, key)) for line in (a, b)]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def regressions(before: Sequence[Line], after: Sequence[Line], limit: float) -> list[str]:
    """What became worse by more than `limit` points of WER or of stopping, the new voice aside."""
    worse = []
    for a, b in pairs(before, after):
        if a.whose in ("others", "all") and 100 * (b.wer - a.wer) > limit:
            worse.append(f"{a.task} ({a.whose}): WER {_percent(a.wer)} -> {_percent(b.wer)} %")
        if (
            a.whose == "others"
            and a.stopped
            and b.stopped is not None
            and 100 * (a.stopped - b.stopped) > limit
        ):
            worse.append(f"{a.task} ({a.whose}): stopped {_percent(a.stopped)} -> {_percent(b.stopped)} %")
    return worse


def save(lines: Sequence[Line], path: Path) -> None:
    """As JSON, whole or not at all."""
    token_folder.write_json(path, {"lines": [asdict(line) for line in lines]})


def load(path: Path) -> list[Line]:
    """The inverse of `save`."""
    return [Line(**line) for line in json.loads(path.read_text(encoding="utf-8"))["lines"]]


def picture(
    before: Sequence[Line], after: Sequence[Line], metrics: Sequence[dict[str, float]], path: Path
) -> None:
    """Losses over the steps, and word error rates before and after."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for task in (*TASKS, "envelope", "pitch"):
        for key, style in ((task, "-"), (f"eval/{task}", "o--")):
            points = [(row["step"], row[key]) for row in metrics if key in row]
            if points:
                left.plot(*zip(*points, strict=True), style, markersize=3, linewidth=1, label=key)
    left.set(title="losses", xlabel="step")
    both = pairs(before, after)
    place = np.arange(len(both))
    right.bar(place - 0.2, [100 * a.wer for a, _ in both], 0.4, label="before")
    right.bar(place + 0.2, [100 * b.wer for _, b in both], 0.4, label="after")
    right.set_xticks(place, [f"{a.task}\n{a.whose}" for a, _ in both])
    right.set(title="word error rate, %")
    for axis in (left, right):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.tight_layout()
    with disk.file_whole(path) as made:
        figure.savefig(made, dpi=90)
    plt.close(figure)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
