"""The model card of a checkpoint: one page, of what a run knows itself or `gpa eval` has measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpa.prompt.tasks import TASKS
from gpa.train import metrics

if TYPE_CHECKING:
    from gpa.models.gpa import GPA
    from gpa.train.corpus_statistics import CorpusStatistics

HEAD = """---
license: other
license_name: see-data
library_name: gpa-audio
tags:
- text-to-speech
- automatic-speech-recognition
- voice-conversion
- audio-tokens
---
"""
TRAINING = "training"  # the log of the run beside the card, .jsonl and .png
MEASURED = "## What gpa eval measured"
USE = """## Use

```
gpa tts "{text}" --model DIR{voice} -o hello.wav
gpa asr hello.wav --model DIR
gpa verify DIR
```

`DIR` is this folder. `gpa.GPA.from_pretrained(DIR)` is the same in Python; `AutoModelForCausalLM` and
`AutoTokenizer` of transformers load the network and its tokenizer without our code. `gpa eval DIR` measures.
"""


def write(model: GPA, folder: Path, statistics: CorpusStatistics, run: Path, recipe: str) -> None:
    """Write README.md: what the model is, its data and licences, its losses, how it is used and was made.

    `run` is the run's folder, whose metrics are read; `recipe` is the resolved recipe as YAML.
    """
    parts = [HEAD, *_what(model), *_data(statistics), *_losses(run / "metrics.jsonl")]
    voice = f" --voice {min(model.voices)}" if model.voices else " --voice REF.wav"
    parts += [
        USE.format(text="Good morning.", voice=voice),
        "## How it was made\n\n`gpa train` with this recipe:\n",
    ]
    parts.append(f"```yaml\n{recipe}```\n")
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


def complete(model: GPA, folder: Path, report: Mapping[str, Any] | None) -> None:
    """Write README.md where a checkpoint has none, and into it the numbers of a report of `gpa eval`."""
    path = folder / "README.md"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        voice = f" --voice {min(model.voices)}" if model.voices else " --voice REF.wav"
        text = "\n".join([HEAD, *_what(model), "", USE.format(text="Good morning.", voice=voice)])
        if "licence" not in model.info()["about"]:
            text += "\nThe files do not state a licence: ask who made the model before you use it.\n"
    picture = f"{TRAINING}.png"
    if (folder / picture).is_file() and picture not in text:
        text += f"\n## The run\n\n![losses by step]({picture}) of [{TRAINING}.jsonl]({TRAINING}.jsonl)\n"
    if report is not None:
        before, _, rest = text.partition(MEASURED)
        after = "## " + rest.partition("\n## ")[2] if "\n## " in rest else ""
        text = f"{before.rstrip()}\n\n{MEASURED}\n" + "\n".join(_measured(report)) + f"\n{after}"
    path.write_text(text, encoding="utf-8")


def _measured(report: Mapping[str, Any]) -> Iterator[str]:
    yield "\n| suite | items (failed) | WER % [95 %] | similarity | DNSMOS |"
    yield "| --- | ---: | --- | --- | --- |"
    for name, found in report["suites"].items():
        wer = "-" if found["invented"] else _rate(found["wer"], 100, 1)
        means = (_rate(found["values"].get(key), 1, 2) for key in ("similarity", "mos"))
        yield f"| {name} | {found['items']} ({found['failed']}) | {wer} | " + " | ".join(means) + " |"
    settings = report["settings"]
    judges = "; ".join(f"{one['measures']} by {one['name']}" for one in settings["judges"].values())
    yield (
        f"\n`gpa eval`, split {settings['split']}, seed {settings['seed']}. Judges: {judges}. Data "
        f"{settings['data_sha256'][:16]}, results {report['results_sha256'][:16]}.\n"
    )


def _rate(found: Mapping[str, float] | None, scale: float, digits: int) -> str:
    if found is None:
        return "-"
    value, low, high = (f"{scale * found[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _what(model: GPA) -> Iterator[str]:
    found = model.info()
    parts, lm, codec = found["parameters"], found["language_model"], found["codec"]
    yield f"# {found['name']}\n"
    yield (
        "A language model over audio and text ids that speaks, transcribes and converts voices, made with "
        f"`gpa`. {parts['language_model']:,} parameters in {lm['layers']} layers of {lm['hidden_size']}; its "
        f"codec has {sum(model.codec.parameters().values()):,} and makes {codec['semantic_rate']:g} ids/s. "
        f"One pass takes {found['max_audio_seconds']:g} s of sound or {found['max_text_chars']} characters; "
        "longer input is cut.\n"
    )
    yield f"Voices: {', '.join(found['voices']) or 'none; `--voice REF.wav` takes one from a recording'}.\n"
    yield from (f"- {key}: {value}" for key, value in found["about"].items())


def _data(statistics: CorpusStatistics) -> Iterator[str]:
    yield "\n## Data\n\n| split | minutes |\n| --- | ---: |"
    yield from (f"| {name} | {seconds / 60:.1f} |" for name, seconds in sorted(statistics.splits.items()))
    speakers = len(statistics.speakers)
    yield f"\n{statistics.rows} clips; {speakers} speakers in training. Licences of the clips:\n"
    yield from (f"- {name}: {count}" for name, count in sorted(statistics.licences.items()))
    yield "\nWhoever uses the model keeps to these and to the licence of the codec.\n"


def _losses(path: Path) -> Iterator[str]:
    rows = metrics.read(path) if path.is_file() else []
    if not rows:
        return
    steps = int(rows[-1]["step"])
    yield f"## What training says of itself\n\nAfter {steps} steps, the newest value of each:\n"
    newest: dict[str, float] = {}
    for row in rows:
        newest |= row
    yield "| metric | value |\n| --- | ---: |"
    yield from (f"| {name} | {value:.4g} |" for name, value in sorted(newest.items()) if _told(name))
    yield "\nLosses are per id; word error rates (`wer`) are of few held-out rows. `gpa eval` tells more.\n"


def _told(name: str) -> bool:
    return name in TASKS or name.startswith("eval/")


def facts(before: Mapping[str, str], statistics: CorpusStatistics, *, further: bool) -> dict[str, str]:
    """`about` of gpa.json: licences and data of the rows.

    `before` is what the model says of itself that was trained `further`, or whose codec this is.
    """
    licences = ", ".join(sorted(statistics.licences))
    data = f"{sum(statistics.splits.values()) / 60:.1f} minutes of {len(statistics.speakers)} speakers"
    if further:
        return {**before, "trained further": f"on {data} (licences: {licences})"}
    codec = {"codec": f"taken over, under: {before['licence']}"} if "licence" in before else {}
    return {"licence": f"follows from the data: {licences}", "data": data, **codec}
