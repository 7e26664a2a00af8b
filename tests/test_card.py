"""Model card and data card: everything on them is from files, and what no file says is said to be missing."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from evaluated import write_evaluation
from gpa.errors import UsageError
from gpa.evals import report, report_file
from gpa.lab.card import card_page
from gpa.lab.card.__main__ import main
from gpa.lab.card.corpora import is_synthetic
from gpa.lab.card.measured import summary_of
from gpa.lab.card.notes import read_notes
from gpa.lab.card.tables import cell, fence
from gpa.lab.card.weights import read_checkpoint

NOTES = """\
---
license: apache-2.0
language: en
---
A model for tests. **Nothing** else.

## Intended use

Tests | nothing else.

## Known failures

It was never trained.

## Acknowledgements

Nobody.
"""


def row(name: str, split: str = "train", **more: Any) -> dict[str, Any]:
    usual = {
        "path": f"{name}.wav", "corpus": "small", "speaker": "a", "gender": "F", "text": f"Text of {name}.",
        "duration": 1800.0, "orig_sr": 16000, "licence": "CC0-1.0", "split": split,
    }  # fmt: skip
    return {"id": name, **usual, **more}


ROWS = [
    row("a"),
    row("b", speaker="b", gender="M", text="", text_machine="heard", licence="CC-BY-4.0", corpus="other"),
    row("c", "train-synthetic", speaker="robot", corpus="made", licence="Apache-2.0"),
    row("d", "dev", text="text of A"),
    row("e", "dev-unseen", speaker="z"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint, two runs, data, notes and an evaluation; read only but for the checkpoint's cards."""
    root = tmp_path_factory.mktemp("made")
    write_checkpoint(root / "checkpoint")
    write_run(root / "runs/first", {"kind": "codec", "data": {"cache": "runs/cache", "train": ["train"]}})
    recipe = {"kind": "gpa", "init": "runs/first/export", "codec": "runs/lost/export"}
    write_run(
        root / "runs/second", {**recipe, "train": {"steps": 8, "seed": 7, "precision": "bf16", "threads": 1}}
    )
    (root / "runs/first/environment.json").unlink()
    for folder in ("data/speech", "data/text"):
        (root / folder).mkdir(parents=True)
    (root / "data/speech/manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ROWS))
    (root / "notes.md").write_text(NOTES)
    write_evaluation(root / "evaluation", report_file.folder_hash(root / "checkpoint") or "")
    return root


def write_checkpoint(folder: Path) -> None:
    """Write a checkpoint of two parts, 36 and 5 values."""
    (folder / "codec").mkdir(parents=True)
    (folder / "voices").mkdir()
    weights = {"a": np.zeros((4, 8), np.float16), "b": np.zeros(4, np.float16)}
    save_file(weights, folder / "model.safetensors")
    save_file({"c": np.zeros(5, np.float32)}, folder / "codec/model.safetensors")
    about = {
        "name": "tiny",
        "format": "instruct",
        "max_audio_seconds": 20,
        "about": {"licence": "Apache-2.0"},
    }
    files = {
        "gpa.json": {**about, "sampling": {"tts": {"temperature": 0.4}}, "fingerprints": {"codec": "f" * 64}},
        "config.json": {"model_type": "qwen3", "num_hidden_layers": 6, "hidden_size": 256},
        "codec/config.json": {"model_type": "bicodec", "sample_rate": 16000, "latent_hop_length": 640,
                              "quantizer": {"codebook_size": 2048}},
        "voices/anna.json": {"name": "anna"},
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def write_run(folder: Path, recipe: dict[str, Any]) -> None:
    """Write a run of eight steps and 3600 seconds."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"train": {"steps": 10, "seed": 3}} | recipe))
    start = {"step": 0, "world": 1, "device": "cpu", "commit": "abc123", "versions": {"torch": "2.13"},
             "data": {"cache": "9" * 64}, "platform": "Linux", "python": "3.11"}  # fmt: skip
    (folder / "environment.json").write_text(json.dumps([start]))
    lines = [{"step": 4, "loss": 2.0, "seconds": 1800.0}, {"step": 8, "loss": 1.0, "seconds": 3600.0},
             {"step": 8, "eval/loss": 1.23456}]  # fmt: skip
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "lo'
    )


def cards(made: Path, out: Path, *more: str) -> tuple[str, str]:
    """Write cards with these options, `@` standing for the folder of everything; returns both."""
    main([str(made / "checkpoint"), "-o", str(out), *(word.replace("@", str(made)) for word in more)])
    return (out / "README.md").read_text(encoding="utf-8"), (out / "DATA.md").read_text(encoding="utf-8")


ALL = ("--runs", "@/runs/first", "@/runs/second", "--manifest", "@/data/speech/manifest.jsonl",
       "--report", "@/evaluation", "--notes", "@/notes.md", "--watts", "50")  # fmt: skip


# The model card ---------------------------------------------------------------------------------------------


def test_front_matter_is_that_of_the_notes_and_of_the_files(made: Path, tmp_path: Path) -> None:
    card, _ = cards(made, tmp_path, *ALL)
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["language"]) == ("apache-2.0", "en")
    assert front["datasets"] == ["made", "other", "small"]
    results = {one["task"]["type"]: one["metrics"][0] for one in front["model-index"][0]["results"]}
    assert set(results) == {"text-to-speech", "automatic-speech-recognition", "audio-to-audio"}
    assert results["text-to-speech"]["value"] == 77.8 and "95 % [" in results["text-to-speech"]["name"]
    assert "flite" not in json.dumps(front["model-index"])  # what others do is no result of ours


def test_sections_stand_in_their_order_and_notes_word_for_word(made: Path, tmp_path: Path) -> None:
    card, _ = cards(made, tmp_path, *ALL)
    sections = ["Intended use", "Data and licences", "How it was made", "Measured", "Known failures"]
    sections += ["Acknowledgements", "Recipes as they were run"]
    assert re.findall(r"^## (.+)$", card, re.MULTILINE) == sections
    for text in (
        "A model for tests. **Nothing** else.",
        "Tests | nothing else.",
        "It was never trained.",
        "Nobody.",
    ):
        assert f"\n{text}\n" in card


def test_parts_are_counted_and_hashed(made: Path, tmp_path: Path) -> None:
    card, _ = cards(made, tmp_path, *ALL)
    found = read_checkpoint(made / "checkpoint")
    assert [(part.name, part.parameters, part.dtypes) for part in found.parts] == [
        (".", 36, ("F16",)), ("codec", 5, ("F32",)),
    ]  # fmt: skip
    assert found.parts[1].sizes == {"Hz": 16000, "semantic ids": 2048, "semantic ids a second": 25}
    assert "| top | qwen3 | 36 | F16, 0.0 MB | 6 layers, 256 width |" in card
    assert found.digest in card and found.parts[0].hashes["model.safetensors"] in card
    assert "| voices | anna |" in card and "| sampling, tts | temperature 0.4 |" in card


def test_runs_say_what_they_recorded_and_no_more(made: Path, tmp_path: Path) -> None:
    card, _ = cards(made, tmp_path, *ALL)
    first, second = (line for line in card.splitlines() if line.startswith(("| `first` |", "| `second` |")))
    assert "| 8 of 10 | 3 | not recorded | all | not recorded | 1.00 | about 50 Wh |" in first
    assert "`runs/first/export`, `runs/lost/export` (its run is not listed)" in second
    assert "| 8 | 7 | bf16 | 1 | cpu | 1.00 | about 50 Wh |" in second
    assert f"gpa train {made}/runs/second/recipe.yaml" in card and "loss 1.235" in card and "abc123" in card
    assert "Together 2.00 hours" in card and "no measurement" in card
    assert (made / "runs/second/recipe.yaml").read_text().strip() in card


def test_numbers_have_intervals_and_the_floor_beside_them(made: Path, tmp_path: Path) -> None:
    card, _ = cards(made, tmp_path, *ALL)
    found = report_file.read(made / "evaluation")
    codec = next(line for line in card.splitlines() if line.startswith("| codec | 3 (0, 0)"))
    assert "| 66.7 [66.7, 66.7] | 33.3 [33.3, 33.3] |" in codec
    assert "| tts | 3 (1, 0) | 77.8 [66.7," in card  # the failed item counts
    assert found["sha256"] in card and "`gpa eval 'a model' --baselines`" in card and "2026-01-02" in card
    assert "tts / tts-flite" in card and "Not measured: quality (speechmos is not installed)" in card
    assert "NOT the data described here" in card  # its hash is another


def test_summaries_survive_their_json(made: Path) -> None:
    for raw in report_file.read(made / "evaluation")["suites"].values():
        assert report.plain(summary_of(raw)) == raw


def test_without_inputs_everything_is_said_to_be_missing(made: Path, tmp_path: Path) -> None:
    card, data = cards(made, tmp_path)
    assert card.startswith("# tiny\n")  # no front matter of nothing
    for said in (
        "Not written: no notes",
        "Not stated: no manifest",
        "not recorded, no runs",
        "Not measured: no report",
    ):
        assert said in card
    assert "Not stated: no manifest" in data and "Not recorded: no runs" in data


def test_energy_is_not_invented(made: Path, tmp_path: Path) -> None:
    card, _ = cards(made, tmp_path, "--runs", "@/runs/first")
    assert "| not measured |" in card and "energy: not measured." in card and "Wh" not in card


# The data card ----------------------------------------------------------------------------------------------


def test_data_card_counts(made: Path, tmp_path: Path) -> None:
    card, data = cards(made, tmp_path, *ALL)
    total = "Trained on: 3 clips, 1.50 hours, of which synthetic 0.50 hours (33.3 %)."
    assert total in card and total in data
    assert "| made | train-synthetic | Apache-2.0 | 1 | 0.50 | 1 | yes |" in data
    assert "| CC-BY-4.0 | 1 | 0.50 | 1 | 33.3 % |" in data and "| M | 1 | 0.50 | 1 | 33.3 % |" in data
    assert "| dev | 1 | 0.50 | 1 of 1 | 1 | 0 |" in data  # a text that was trained on is found
    assert "| dev-unseen | 1 | 0.50 | 0 of 1 | 0 | 0 |" in data
    assert "| other | 1800.0 | 1800.0 | 1800.0 | 16000 | 0 | 1 | 0 |" in data
    assert "cache `runs/cache`" in data and "train: train" in data and "9" * 64 in data


def test_what_a_manifest_does_not_state_is_said(made: Path, tmp_path: Path) -> None:
    bare = [{"id": "x", "split": "train"}, row("y", licence=None)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in bare))
    _, data = cards(made, tmp_path, "--manifest", str(tmp_path / "manifest.jsonl"))
    assert "duration of 1 clips, licence of 2 clips, speaker of 1 clips, corpus of 1 clips" in data
    assert "No split is held out." in data and "not stated" in data


def test_several_manifests_are_one(made: Path, tmp_path: Path) -> None:
    """Rows, names and hashes of all."""
    more = tmp_path / "spoken.jsonl"
    more.write_text(json.dumps(row("flite-1", "train-synthetic", corpus="flite-synthetic")) + "\n")
    first = str(made / "data/speech/manifest.jsonl")
    _, alone = cards(made, tmp_path, "--manifest", first)
    _, both = cards(made, tmp_path, "--manifest", first, str(more))
    assert "flite-synthetic" in both and "flite-synthetic" not in alone
    assert "manifest.jsonl, spoken.jsonl" in both and hashlib.sha256(more.read_bytes()).hexdigest() in both


def test_synthetic_is_what_says_so() -> None:
    assert is_synthetic(row("a", "train-synthetic")) and is_synthetic(row("a", licence="CC0 (Synthetic)"))
    assert is_synthetic(row("a", corpus="voice-synthetic")) and not is_synthetic(row("a", text="synthetic"))


# Bytes and errors -------------------------------------------------------------------------------------------


def test_equal_input_gives_equal_bytes(made: Path, tmp_path: Path) -> None:
    assert cards(made, tmp_path, *ALL) == cards(made, tmp_path, *ALL)
    main(
        [str(made / "checkpoint"), *(word.replace("@", str(made)) for word in ALL)]
    )  # into the checkpoint itself
    assert (made / "checkpoint/README.md").read_text() == (tmp_path / "README.md").read_text()
    assert (
        cards(made, tmp_path, *ALL)[0] == (made / "checkpoint/README.md").read_text()
    )  # no part of the hash


@pytest.mark.parametrize("option, name", [
    ("--runs", "recipe.yaml"), ("--manifest", "absent"), ("--report", "absent"), ("--notes", "absent"),
])  # fmt: skip
def test_missing_files_are_named(made: Path, tmp_path: Path, option: str, name: str) -> None:
    with pytest.raises(UsageError, match=f"absent.*{name}" if name != "absent" else "absent"):
        cards(made, tmp_path, option, "@/absent")
    with pytest.raises(UsageError, match=r"gpa\.json"):
        main([str(made / "runs")])
    assert not list(tmp_path.iterdir())


def test_a_report_of_other_weights_is_refused(made: Path, tmp_path: Path) -> None:
    other = write_evaluation(tmp_path / "evaluation", "0" * 64)
    with pytest.raises(UsageError, match="measured the weights 0000000000000000"):
        cards(made, tmp_path, "--report", str(other))
    with pytest.raises(UsageError, match="--watts -1"):
        cards(made, tmp_path, "--watts", "-1")


@pytest.mark.parametrize("change, said", [
    (("## Known failures", "## Known"), "unknown section 'known'"),
    (("It was never trained.", ""), "'## Known failures' is missing or empty"),
    (("## Acknowledgements", "## Intended use"), "twice"),
    (("license: apache-2.0", "- license"), "front matter"),
])  # fmt: skip
def test_notes_have_fixed_sections(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    (tmp_path / "notes.md").write_text(NOTES.replace(*change))
    with pytest.raises(UsageError, match=said):
        read_notes(tmp_path / "notes.md")


def test_damaged_rows_are_named(made: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text('{"id": "a", "split": "train"}\n{"id": "b"}\n')
    with pytest.raises(UsageError, match=r"manifest\.jsonl:2"):
        cards(made, tmp_path, "--manifest", str(tmp_path / "manifest.jsonl"))


def test_markdown_is_not_broken_by_content() -> None:
    assert cell("a | b\nc") == "a \\| b c" and cell("") == "-"
    assert fence("```\ncode\n```").startswith("````\n")


def test_shipped_notes_are_complete(repo: Path) -> None:
    found = read_notes(repo / "recipes/settings/gpa-mini.md")
    assert found.front["license"] == "apache-2.0" and found.summary and "commands" in found.sections


def test_paths_of_a_machine_are_not_on_a_card() -> None:
    text = "encoder: /home/me/models/whisper, see https://a.org/b/c, gpa/assets/x, `/data/d`"
    assert card_page._portable(text) == "encoder: .../whisper, see https://a.org/b/c, gpa/assets/x, `.../d`"
    assert "/home/me/models/whisper" in card_page._portable(text, ("/home/me/models",))
