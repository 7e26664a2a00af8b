"""`gpa bench stream`: speech as a listener gets it, alone and beside others; whole programs; recognition.

Everyone has a process of its own in every round, in turn. docs/bench.md says what each number means.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

from gpa.bench import machine, material, speakers
from gpa.bench.decode import count_weights
from gpa.bench.figures import Chart, Ratio, quantiles, shown, table
from gpa.bench.speakers import Asked, Reading, Turn
from gpa.errors import GPAError, UsageError

PARTS = ("streams", "loop", "recognition", "programs")
LOOP = "transformers generate, then decode"
ASR_TITLE, WHISPER_TITLE, TTS_TITLE = "gpa asr", "Whisper tiny.en, int8", "gpa tts"
CLIPS = 6  # that are recognised where none are given


@dataclass(frozen=True)
class Settings:
    """What to measure: `streams` at a time, `sentences` in a round; `only` some of `PARTS`."""

    model: str = "gpa-mini"
    streams: tuple[int, ...] = (1, 8, 16)
    sentences: int = 32
    rounds: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)
    clips: tuple[str, ...] = ()
    kokoro: Path | None = None
    only: tuple[str, ...] = ()
    threads: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    offline: bool = False


@dataclass
class Found:
    """Everything by name, in the order of rounds; why others have nothing."""

    streams: dict[str, list[Turn]] = field(default_factory=dict)
    recognised: dict[str, list[Reading]] = field(default_factory=dict)
    programs: dict[str, list[tuple[machine.Spent, float]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def measure(settings: Settings, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure in rounds; the result, ready for JSON. UsageError for settings that do not fit.

    Whoever fails, or makes no sound, has no figures but its reason in `failed`.
    """
    if strange := sorted(set(settings.only) - set(PARTS)):
        raise UsageError(f"no such part: {strange[0]}; there are {', '.join(PARTS)}")
    parts = [part for part in PARTS if not settings.only or part in settings.only]
    asked = _asked(settings)
    found = Found()
    with tempfile.TemporaryDirectory() as scratch:
        turns = _turns(settings, parts, asked, Path(scratch), found)
        for number in range(1, settings.rounds + 1):
            for name, (kept, take) in turns.items():
                if name in found.failed:
                    continue
                try:
                    kept.setdefault(name, []).append(made := take())
                except (GPAError, RuntimeError, OSError, MemoryError) as error:
                    kept.pop(name, None)
                    found.failed[name] = f"{type(error).__name__}: {error}"
                    say(f"round {number}: {name}: failed: {error}")
                else:
                    say(f"round {number}: {name}: {_said(made)}")
    return _tree(settings, asked, found)


def _asked(settings: Settings) -> Asked:
    from gpa.models.gpa import checkpoint_gpa

    folder = checkpoint_gpa.find(settings.model, offline=settings.offline)
    return Asked(
        checkpoint_gpa.known_as(settings.model),
        tuple(islice(cycle(material.SENTENCES), max(settings.sentences, *settings.streams))),
        settings.options,
        machine.threads(count_weights(folder).total, settings.threads),
        settings.device,
        settings.dtype,
        settings.offline,
    )


Take = tuple[dict[str, Any], Callable[[], Any]]  # where results are kept, and how one is made


def _turns(
    settings: Settings, parts: Sequence[str], asked: Asked, scratch: Path, found: Found
) -> dict[str, Take]:
    """Everyone by name, in the order of their turns."""
    turns: dict[str, Take] = {}
    if "streams" in parts:
        for count in sorted(set(settings.streams)):
            streams = partial(machine.alone, speakers.take_streams, asked, count)
            turns[f"gpa, {count} at a time"] = found.streams, streams
    if "loop" in parts:
        turns[LOOP] = found.streams, partial(machine.alone, speakers.take_loop, asked)
    if "recognition" in parts:
        files = list(settings.clips) or machine.alone(speakers.write_recordings, asked, scratch, CLIPS)
        listeners = {ASR_TITLE: speakers.GPA_ASR, WHISPER_TITLE: speakers.WHISPER}
        if why := speakers.whisper_missing():
            found.skipped[WHISPER_TITLE] = why
            del listeners[WHISPER_TITLE]
        for title, name in listeners.items():
            turns[title] = found.recognised, partial(machine.alone, speakers.take_reading, name, asked, files)
    if "programs" in parts:
        for program in speakers.programs(asked, settings.kokoro).values():
            if program.missing:
                found.skipped[program.title] = program.missing
            else:
                take = partial(speakers.take_program, program, asked.texts[0], scratch / "out.wav")
                turns[program.title] = found.programs, take
    return turns


def _said(made: Any) -> str:
    if isinstance(made, Turn):
        first = quantiles([each.first for each in made.spoken]) or {}
        return f"first audio {1000 * first['p50']:.0f} ms, RTF {made.rtf:.3f}"
    if isinstance(made, Reading):
        return f"RTF {made.rtf:.3f}"
    spent, seconds = made
    return f"{spent.seconds:.2f} s, {spent.cpu_seconds:.2f} s of CPU, for {seconds:.1f} s of sound"


# The result -------------------------------------------------------------------------------------------------


def _tree(settings: Settings, asked: Asked, found: Found) -> dict[str, Any]:
    return {
        "bench": "stream",
        **{name: value for name, value in asdict(settings).items() if name not in ("only", "offline")},
        "kokoro": settings.kokoro and str(settings.kokoro),
        "texts": len(asked.texts),
        "threads": asked.threads,
        "machine": machine.about(),
        **machine.versions("torch", "transformers"),
        "streams": [_stream_row(name, turns, found) for name, turns in found.streams.items()],
        "recognition": [_reading_row(name, turns, found) for name, turns in found.recognised.items()],
        "programs": [_program_row(name, turns, found) for name, turns in found.programs.items()],
        "skipped": found.skipped,
        "failed": found.failed,
    }


def _over(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, float] | None:
    """How many times as long the other takes, with the range over the rounds; None if one is not there."""
    return asdict(Ratio.of(theirs, mine)) if mine and theirs else None


def _stream_row(name: str, turns: Sequence[Turn], found: Found) -> dict[str, Any]:
    spoken = [each for turn in turns for each in turn.spoken]
    peer = [turn.rtf for turn in found.streams.get(LOOP, ())]
    return {
        "name": name,
        "texts": len(spoken),
        "failed": sum(turn.failed for turn in turns),
        "first": quantiles([each.first for each in spoken]),
        "total": quantiles([each.total for each in spoken]),
        "underrun": {
            "texts": sum(each.underrun > 0 for each in spoken),
            "most": max(each.underrun for each in spoken),
            "seconds": sum(each.underrun for each in spoken),
        },
        "audio_seconds": sum(each.audio for each in spoken),
        "rtf": median(turn.rtf for turn in turns),
        "transformers_over": _over([turn.rtf for turn in turns], peer),
        "peak": max(turn.peak for turn in turns),
        "rounds": [asdict(turn) | {"rtf": turn.rtf} for turn in turns],
    }


def _reading_row(name: str, turns: Sequence[Reading], found: Found) -> dict[str, Any]:
    ours = [turn.rtf for turn in found.recognised.get(ASR_TITLE, ())]
    return {
        "name": name,
        "clips": len(turns[0].seconds),
        "audio_seconds": turns[0].audio,
        "rtf": median(turn.rtf for turn in turns),
        "over_gpa": _over(ours, [turn.rtf for turn in turns]),
        "peak": max(turn.peak for turn in turns),
        "rounds": [asdict(turn) | {"rtf": turn.rtf} for turn in turns],
    }


def _program_row(name: str, turns: Sequence[tuple[machine.Spent, float]], found: Found) -> dict[str, Any]:
    ours = [spent.cpu_seconds for spent, _ in found.programs.get(TTS_TITLE, ())]
    used = [spent.cpu_seconds for spent, _ in turns]
    return {
        "name": name,
        "seconds": median(spent.seconds for spent, _ in turns),
        "cpu_seconds": median(used),
        "audio_seconds": median(seconds for _, seconds in turns),
        "cpu_over_gpa": _over(ours, used),
        "peak": max(spent.peak for spent, _ in turns),
        "rounds": [asdict(spent) | {"audio_seconds": seconds} for spent, seconds in turns],
    }


def lines(tree: Mapping[str, Any]) -> Iterator[str]:
    """The result for people."""
    yield (
        f"{tree['model']}: {tree['texts']} sentences a round, {tree['rounds']} rounds, {tree['device']}, "
        f"{tree['dtype']}, threads: {tree['threads']}; ms, p50 / p95 / p99"
    )
    if tree["streams"]:
        yield ""
        heads = (
            "speech",
            "first audio",
            "all of it",
            "waited",
            "RTF",
            "times transformers",
            "failed",
            "peak",
        )
        yield from table(heads, [_stream_cells(row) for row in tree["streams"]])
    if tree["recognition"]:
        yield ""
        rows = [
            (row["name"], f"{row['rtf']:.3f}", shown(row["over_gpa"]), _mib(row))
            for row in tree["recognition"]
        ]
        yield from table(("recognition", "RTF", "times gpa's time", "peak"), rows)
    if tree["programs"]:
        yield ""
        programs = [
            (
                row["name"],
                f"{row['seconds']:.2f}",
                f"{row['cpu_seconds']:.2f}",
                f"{row['audio_seconds']:.1f}",
                shown(row["cpu_over_gpa"]),
                _mib(row),
            )
            for row in tree["programs"]
        ]
        yield from table(
            ("program, start to end", "s", "CPU s", "s of sound", "times gpa's CPU", "peak"), programs
        )
    for name, reason in {**tree["skipped"], **tree["failed"]}.items():
        yield f"{name}: left out: {reason}"


def _stream_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        *(" / ".join(f"{1000 * value:.0f}" for value in row[name].values()) for name in ("first", "total")),
        f"{row['underrun']['seconds']:.2f} s, {row['underrun']['texts']} of {row['texts']}",
        f"{row['rtf']:.3f}",
        shown(row["transformers_over"]),
        str(row["failed"]),
        _mib(row),
    )


def _mib(row: Mapping[str, Any]) -> str:
    return f"{row['peak'] / 2**20:.0f} MiB"


def charts(tree: Mapping[str, Any]) -> list[Chart]:
    """First audio with a line to p95; real-time factors; CPU seconds of programs."""
    first = [
        (row["name"], *(1000 * row["first"][p] for p in ("p50", "p50", "p95"))) for row in tree["streams"]
    ]
    return [
        chart
        for chart in (
            Chart("first audio, ms: p50, and p95", first),
            _spread("real-time factor of speech", tree["streams"], "rtf"),
            _spread("real-time factor of recognition", tree["recognition"], "rtf"),
            _spread("CPU seconds of a whole program", tree["programs"], "cpu_seconds"),
        )
        if chart.bars
    ]


def _spread(title: str, rows: Sequence[Mapping[str, Any]], name: str) -> Chart:
    found = [(row, [turn[name] for turn in row["rounds"]]) for row in rows]
    return Chart(title, [(row["name"], row[name], min(each), max(each)) for row, each in found])
