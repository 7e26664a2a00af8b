"""A user's corpus in every form of Hugging Face: the same speech gives the same ids, and a model trains.

Commands run in a subprocess, without network, on clips that the shipped model's golden outputs come with.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from gpa import audio
from gpa.data import streaming as stream
from gpa.data.huggingface import sound
from gpa.data.prepare import Job, prepare
from gpa.data.sharding import Share
from gpa.data.sources import open_source
from gpa.data.token_folder import TokenSet
from gpa.errors import AudioError, DataError

datasets = pytest.importorskip("datasets")

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "gpa" / "assets" / "gpa-mini"
RATE = 16000
TEXTS = (
    "the quick brown fox jumps over the lazy dog.",
    "we went down to the river in the morning.",
    "they said that nobody had been there.",
    "a long road leads over the hills.",
)
SPEAKERS, SPLITS = ("anna", "ben", "anna", "cora"), ("train", "validation", "train", "train")
ORDER = (0, 2, 3, 1)  # split after split, as datasets hold them
FREE = ("--licence", "CC0-1.0", "--shard-rows", "3")

pytestmark = pytest.mark.skipif(not SHIPPED.is_dir(), reason="this checkout lacks gpa/assets/gpa-mini")


def gpa(folder: Path, *words: Any, code: int = 0) -> str:
    """Run the command line in `folder`, without network; returns what it says on stderr."""
    env = {**os.environ, "HF_HOME": str(folder / "hf"), "PYTHONPATH": str(ROOT)}
    env |= {} if "--offline" in words else {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "gpa", *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def wavs() -> list[np.ndarray]:
    """Four clips, int16 (S,): two sentences, and both backwards, which a codec takes as well."""
    read = [soundfile.read(SHIPPED / "golden" / f"audio_{n}.wav", dtype="int16")[0] for n in (0, 1)]
    return [*read, *(wav[::-1].copy() for wav in read)]


def flac(wav: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wav, RATE, format="FLAC")
    return file.getvalue()


def table(wavs: list[np.ndarray], names: dict[str, str], split: str) -> Any:
    """A dataset of one split under an Audio feature, which would decode, and under these column names."""
    chosen = [n for n in ORDER if SPLITS[n] == split]
    columns = {
        "id": [f"clip-{n}" for n in chosen],
        "audio": [{"bytes": flac(wavs[n]), "path": f"{n}.flac"} for n in chosen],
        "text": [TEXTS[n] for n in chosen],
        "speaker": [SPEAKERS[n] for n in chosen],
        "noise": [{"bytes": b"no sound", "path": None} for _ in chosen],  # unused, and must never be decoded
    }
    made = datasets.Dataset.from_dict({names.get(key, key): column for key, column in columns.items()})
    for column in (names.get("audio", "audio"), "noise"):
        made = made.cast_column(column, datasets.Audio())
    return made


RENAMED = {"audio": "clip", "text": "words", "speaker": "reader"}
COLUMNS = ("--columns", *(f"{key}={name}" for key, name in RENAMED.items()))


@pytest.fixture(scope="module")
def corpus(wavs: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one corpus in five forms: files and manifest, saved, Parquet, and Parquet per split."""
    root = tmp_path_factory.mktemp("corpus")
    rows = []
    for n in ORDER:
        soundfile.write(root / f"{n}.wav", wavs[n], RATE)
        row = {"id": f"clip-{n}", "path": f"{n}.wav", "text": TEXTS[n], "speaker": SPEAKERS[n]}
        rows.append(json.dumps({**row, "split": SPLITS[n]}) + "\n")
    (root / "manifest.jsonl").write_text("".join(rows))
    sets = {split: table(wavs, RENAMED, split) for split in ("train", "validation")}
    datasets.DatasetDict(sets).save_to_disk(str(root / "saved"))
    sets["train"].to_parquet(str(root / "train.parquet"))
    (root / "hub" / "data").mkdir(parents=True)
    for split in sets:
        table(wavs, {}, split).to_parquet(str(root / "hub" / "data" / f"{split}-00000-of-00001.parquet"))
    return root


@pytest.fixture(scope="module")
def reference(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the manifest of files becomes."""
    work = tmp_path_factory.mktemp("reference")
    gpa(work, "prepare", corpus / "manifest.jsonl", "-o", "tok", *FREE)
    return rows_of(work / "tok")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    tokens = TokenSet.open(folder)
    assert not (folder / ".work").exists()
    return [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in tokens]


def test_the_clips_differ(reference: list[dict[str, Any]]) -> None:
    assert [row["split"] for row in reference] == ["train", "train", "train", "validation"]
    assert len({tuple(row["semantic"]) for row in reference}) == 4


# Command line -----------------------------------------------------------------------------------------------


def test_a_saved_dataset_with_renamed_columns_becomes_tokens_and_trains(
    corpus: Path, reference: list[dict[str, Any]], tmp_path: Path
) -> None:
    said = gpa(tmp_path, "prepare", corpus / "saved", "-o", "tok", *FREE, *COLUMNS)
    assert "columns that are not used: noise" in said and rows_of(tmp_path / "tok") == reference
    assert "encoded already" in gpa(tmp_path, "prepare", corpus / "saved", "-o", "tok", *FREE, *COLUMNS)
    recipe = {
        "kind": "gpa",
        "init": str(SHIPPED),
        "data": {"tokens": "tok", "batch_ids": 300, "max_ids": 300},
        "model": {},
        "train": {"steps": 2, "save_every": 2, "eval_every": 2, "log_every": 1, "threads": 1},
        "optim": {"lr": 1e-4, "warmup": 1},
        "weights": {"alignment": 0.0},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    gpa(tmp_path, "train", "recipe.yaml", "--run", "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [loss for line in lines for task, loss in line.items() if task in ("tts", "asr")]
    assert [line["step"] for line in lines if "lr" in line] == [1, 2]
    assert losses and all(0 < loss < 12 for loss in losses)
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()


def test_one_parquet_file(corpus: Path, reference: list[dict[str, Any]], tmp_path: Path) -> None:
    gpa(tmp_path, "prepare", corpus / "train.parquet", "-o", "tok", *FREE, *COLUMNS)
    assert rows_of(tmp_path / "tok") == reference[:3]


def test_a_folder_of_parquet_has_splits(
    corpus: Path, reference: list[dict[str, Any]], tmp_path: Path
) -> None:
    gpa(tmp_path, "prepare", corpus / "hub", "-o", "tok", *FREE)
    assert rows_of(tmp_path / "tok") == reference


def test_hf_with_a_split(corpus: Path, reference: list[dict[str, Any]], tmp_path: Path) -> None:
    """A folder laid out as on the hub is read by the code that reads the hub, a slice of a split too."""
    gpa(tmp_path, "prepare", f"hf:{corpus}/hub", "-o", "tok", *FREE, "--split", "train[:2]", "validation")
    assert rows_of(tmp_path / "tok") == [*reference[:2], reference[3]]


def test_streaming_leaves_no_copy(corpus: Path, reference: list[dict[str, Any]], tmp_path: Path) -> None:
    gpa(tmp_path, "prepare", f"hf:{corpus}/hub", "-o", "tok", *FREE, "--streaming")
    assert rows_of(tmp_path / "tok") == reference
    assert not list((tmp_path / "hf").rglob("*.arrow"))


def test_tar_shards_of_the_hub_stream(
    corpus: Path, wavs: list[np.ndarray], reference: list[dict[str, Any]], tmp_path: Path
) -> None:
    """A repository of WebDataset shards: `datasets` reads them, and decodes nothing."""
    (tmp_path / "hub").mkdir()
    with tarfile.open(tmp_path / "hub" / "train-000000.tar", "w") as tar:
        for n in ORDER[:3]:
            for suffix, content in (("flac", flac(wavs[n])), ("txt", TEXTS[n].encode())):
                member = tarfile.TarInfo(f"clip-{n}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    gpa(tmp_path, "prepare", f"hf:{tmp_path}/hub", "-o", "tok", *FREE, "--streaming")
    found = rows_of(tmp_path / "tok")
    assert [row["id"] for row in found] == [row["id"] for row in reference[:3]]
    assert [row["semantic"] for row in found] == [row["semantic"] for row in reference[:3]]
    assert [row["text"] for row in found] == [row["text"] for row in reference[:3]]


def test_the_folder_streams_in_datasets(
    corpus: Path, reference: list[dict[str, Any]], tmp_path: Path
) -> None:
    """As docs/data.md says."""
    gpa(tmp_path, "prepare", corpus / "manifest.jsonl", "-o", "tok", *FREE)
    files = str(tmp_path / "tok" / "*.arrow")
    rows = datasets.load_dataset(
        "arrow", data_files=files, split="train", streaming=True, cache_dir=str(tmp_path / "cache")
    )
    assert [row["semantic"] for row in rows] == [row["semantic"] for row in reference]


def test_a_hub_out_of_reach_is_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    words = ("prepare", "hf:nobody/none", "-o", "tok", "--offline", "--model", "no-model")
    said = gpa(tmp_path, *words, code=DataError.exit_code)
    assert re.search("hf:nobody/none: cannot be loaded .*[Oo]ffline.*hf:owner/name.*without network", said)
    assert "Traceback" not in said and not (tmp_path / "tok").exists()


# In Python --------------------------------------------------------------------------------------------------


def given(wavs: list[np.ndarray]) -> Iterator[dict[str, Any]]:
    """Rows as a program yields them, every kind of sound among them."""
    cells: list[Any] = [
        {"bytes": flac(wavs[0]), "path": None},
        {"array": wavs[2].astype(np.float64) / 32768, "sampling_rate": RATE},
        flac(wavs[3]),
        {"bytes": flac(wavs[1])},
    ]
    for n, cell in zip(ORDER, cells, strict=True):
        yield {"id": f"clip-{n}", "audio": cell, "text": TEXTS[n], "speaker": SPEAKERS[n], "split": SPLITS[n]}


def snippet(name: str) -> Any:
    """A function that docs/data.md defines."""
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if f"def {name}(" in b)
    space: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(block, "docs/data.md", "exec"), space)
    return space[name]


def test_rows_of_a_program_as_the_page_shows(
    wavs: list[np.ndarray], reference: list[dict[str, Any]], tmp_path: Path
) -> None:
    report = snippet("tokens")(given(wavs), tmp_path / "tok")
    assert report.about["rows"] == 4 and rows_of(tmp_path / "tok") == reference


@pytest.mark.parametrize("typed", [False, True])
def test_an_iterable_dataset(
    typed: bool, wavs: list[np.ndarray], reference: list[dict[str, Any]], tmp_path: Path
) -> None:
    """From a generator, which has no features; and of a table whose Audio feature would decode."""
    if typed:
        sets = {s: table(wavs, RENAMED, s).to_iterable_dataset() for s in ("train", "validation")}
        source: Any = datasets.IterableDatasetDict(sets)
    else:
        rows = [{**row, "audio": {"bytes": flac(wavs[n])}} for n, row in zip(ORDER, given(wavs), strict=True)]
        source = datasets.IterableDataset.from_generator(lambda: iter(rows))
    out = tmp_path / "tok"
    columns = RENAMED if typed else {}
    prepare(Job(source, out, "gpa-mini", columns=columns, licence="CC0-1.0", shard_rows=3, offline=True))
    assert rows_of(out) == reference


def test_two_ranks_share_a_stream(
    wavs: list[np.ndarray], reference: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The lead alone writes it down, and the other reads what the lead wrote, not its own."""

    def job(rows: Iterator[dict[str, Any]]) -> Job:
        return Job(rows, tmp_path / "tok", "gpa-mini", licence="CC0-1.0", shard_rows=2, patience=60)

    with ThreadPoolExecutor(2) as pool:
        second = pool.submit(prepare, job(iter([])), Share(1, 2))
        lead = pool.submit(prepare, job(given(wavs)), Share(0, 2))
        assert second.result().about == lead.result().about
    assert rows_of(tmp_path / "tok") == reference


def test_a_stream_goes_on_where_it_was_killed(wavs: list[np.ndarray], tmp_path: Path) -> None:
    """Parts that are there stay; the folder is that of a run that was not killed, and another stream is
    refused.
    """

    def dies() -> Iterator[dict[str, Any]]:
        rows = given(wavs)
        yield from (next(rows) for _ in range(3))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream.write(dies(), tmp_path / "a", {}, part_rows=2)
    (first,) = (tmp_path / "a").glob("data-*.arrow")
    before = first.stat().st_mtime_ns
    shutil.copytree(tmp_path / "a", tmp_path / "d")
    stream.write(given(wavs), tmp_path / "a", {}, part_rows=2)
    stream.write(given(wavs), tmp_path / "b", {}, part_rows=2)
    stream.write(given(wavs), tmp_path / "d", {}, part_rows=1)  # of another size from here on
    assert [row.id for row in open_source(tmp_path / "d").rows()] == [f"clip-{n}" for n in ORDER]
    for path in (tmp_path / "b").iterdir():
        assert (tmp_path / "a" / path.name).read_bytes() == path.read_bytes()
    assert first.stat().st_mtime_ns == before
    assert [row.id for row in open_source(tmp_path / "a").rows()] == [f"clip-{n}" for n in ORDER]
    for other in (list(given(wavs))[1:], []):
        with pytest.raises(DataError, match="rows of another stream"):
            stream.write(other, tmp_path / "a", {}, part_rows=2)
    for rows in (given(wavs), list(given(wavs)), 7):
        with pytest.raises(DataError, match="prepare alone takes a stream"):
            open_source(rows)
    with pytest.raises(DataError, match="the stream has no rows"):
        stream.write([], tmp_path / "c", {})


def test_few_rows_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is asked for a row only when the ones before are on their way to the disk."""
    from datasets.arrow_writer import ArrowWriter

    taken, held = 0, []
    flush = ArrowWriter.write_examples_on_file

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for n in range(100):
            taken += 1
            yield {"audio": flac(np.full(800, n, np.int16)), "text": "one"}

    def watched(writer: Any) -> None:
        held.append(len(writer.current_examples))
        flush(writer)

    monkeypatch.setattr(ArrowWriter, "write_examples_on_file", watched)
    stream.write(rows(), tmp_path / "s", {}, part_rows=40)
    assert taken == 100 and max(held) == stream.BATCH and len(open_source(tmp_path / "s").digest) == 64
    assert [len(list((tmp_path / "s").glob("data-*.arrow")))] == [3]


def test_rows_may_lack_what_the_first_has(wavs: list[np.ndarray], tmp_path: Path) -> None:
    rows = [{"audio": flac(wavs[0]), "text": "one", "speaker": "anna"}, {"text": "two"}]
    stream.write(rows, tmp_path / "s", {})
    first, second = open_source(tmp_path / "s").check()
    assert (first.speaker, second.speaker, second.text) == ("anna", "", "two")
    with pytest.raises(AudioError, match="is empty"):
        second.audio.wav(RATE)


def test_sound_inside_an_archive(wavs: list[np.ndarray], tmp_path: Path) -> None:
    """Streaming names a file in a zip; its bytes are stored, since nobody finds that path again."""
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        archive.writestr("a.flac", flac(wavs[0]))
    row = {"audio": {"bytes": None, "path": f"zip://a.flac::{tmp_path / 'clips.zip'}"}, "text": TEXTS[0]}
    stream.write([row], tmp_path / "s", {})
    (found,) = open_source(tmp_path / "s").rows()
    np.testing.assert_array_equal(np.rint(found.audio.wav(RATE) * 32768).astype(np.int16), wavs[0])


def test_paths_are_of_the_working_folder_or_of_the_dataset(wavs: list[np.ndarray], tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"file_name": ["clips/a.flac"], "text": [TEXTS[0]]})
    data.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "clips").mkdir()
    (tmp_path / "saved" / "clips" / "a.flac").write_bytes(flac(wavs[0]))
    (found,) = open_source(tmp_path / "saved").rows()
    assert len(found.audio.wav(RATE)) == len(wavs[0])
    shaped = data.with_format("numpy", columns=["text"])  # which hides the sound from whoever reads rows
    assert [row.text for row in open_source(shaped).rows()] == [TEXTS[0]]
    assert next(open_source(shaped).rows()).audio.fetch() == "clips/a.flac"  # type: ignore[misc]
    assert sound({"path": "a.wav", "bytes": None}) == "a.wav" and sound(None) == b""
    assert sound({"path": "a.wav", "bytes": b"x"}) == b"x"
    assert sound({"array": [0.0], "sampling_rate": None}) == sound([0.0, 0.1]) == b""


def test_arrays_are_stored_unchanged() -> None:
    stereo = np.random.default_rng(0).normal(0, 0.1, (2, 900)).astype(np.float32)
    for wav in (stereo, stereo.T, stereo[0]):
        held = audio.to_bytes(wav, 22_050)
        np.testing.assert_array_equal(audio.load(held, 22_050), audio.load((wav, 22_050), 22_050))
    time.sleep(1.1)  # no clock in it, or a resumed stream would be another
    assert audio.to_bytes(stereo[0], 22_050) == held


def test_columns_keys_and_splits_that_are_not_there(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saved = corpus / "saved"
    columns = "its columns are id, clip, words, reader, noise"
    with pytest.raises(DataError, match=f"no column of audio; {columns}.*--columns audio=NAME"):
        open_source(saved)
    with pytest.raises(DataError, match=f"no column 'speech'; {columns}"):
        open_source(saved, {"audio": "speech"})
    with pytest.raises(DataError, match="'words' is no key of a row: audio, text, speaker"):
        open_source(saved, {"words": "text"})
    with pytest.raises(DataError, match="no split 'test'; it has train, validation"):
        open_source(saved, RENAMED, ["test"])
    assert open_source(saved, RENAMED, ["validation"]).size == 1
    assert open_source(saved, RENAMED).digest != open_source(saved, {**RENAMED, "text": "reader"}).digest
    open_source(saved, {"audio": "clip"})
    assert "no column of text, so rows serve vc only" in caplog.text
    with pytest.raises(DataError, match="columns and splits are named for datasets and tables only"):
        open_source(corpus / "manifest.jsonl", {"text": "words"})
    for name in ("saved", "manifest.jsonl"):
        with pytest.raises(DataError, match="--streaming is for hf:NAME and Parquet"):
            prepare(Job(corpus / name, corpus / "none", "gpa-mini", streaming=True))


def test_a_damaged_parquet_file_is_an_error_of_ours(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    shutil.copy(corpus / "train.parquet", tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-900])
    with pytest.raises(DataError, match="cut.parquet: cannot be loaded .*arquet"):
        open_source(tmp_path / "cut.parquet")


def test_a_folder_of_something_else_is_left_alone(wavs: list[np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DataError, match="is not empty"):
        prepare(Job(given(wavs), tmp_path, "gpa-mini"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
