"""`gpa prepare` from WebDataset tar shards: the same ids as from files, and what happens to bad shards."""

import io
import json
import os
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import RATE, speechlike
from gpa.data import tar_shards
from gpa.data.prepare import Job, prepare
from gpa.data.token_folder import TokenSet
from gpa.errors import DataError

pytest.importorskip("datasets")
Files = list[tuple[str, bytes]]


def sound(n: int, kind: str = "WAV") -> bytes:
    held = io.BytesIO()
    soundfile.write(held, speechlike(1.5 + 0.1 * n, seed=n), RATE, format=kind)
    return held.getvalue()


def sample(n: int) -> Files:
    """One sample in either layout of labels."""
    text = f"hello there, how are you? {'abcdefgh'[n]}"
    if n % 2:
        told = {"text": text, "speaker": "anna", "licence": "CC0-1.0"}
        return [(f"x/k{n}.flac", sound(n, "FLAC")), (f"x/k{n}.json", json.dumps(told).encode())]
    return [(f"x/k{n}.txt", text.encode()), (f"x/k{n}.wav", sound(n))]


def write(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six samples in two shards, the last of them held out by its shard's name."""
    folder = tmp_path_factory.mktemp("tars")
    write(folder / "train-000000.tar", [file for n in range(4) for file in sample(n)])
    write(folder / "dev-000000.tar", [file for n in range(4, 6) for file in sample(n)])
    return folder


def test_the_ids_are_those_of_the_same_files(tiny: Path, shards: Path, tmp_path: Path) -> None:
    words = ["prepare", f"{shards}/*.tar", "-o", "tokens", "--model", str(tiny), "--licence", "CC0-1.0"]
    command = [sys.executable, "-m", "gpa", *words, "--allow", "speaker_leak"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = []
    for n in range(6):
        files = {Path(name).suffix: (name, content) for name, content in sample(n)}
        name, content = files.get(".wav") or files[".flac"]
        (tmp_path / Path(name).name).write_bytes(content)
        told = json.loads(files[".json"][1]) if n % 2 else {"text": files[".txt"][1].decode()}
        rows.append({"id": f"k{n}", "path": Path(name).name, "split": "train" if n < 4 else "dev", **told})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = tmp_path / "plain"
    from gpa.data.checks import Limits

    prepare(
        Job(tmp_path / "m.jsonl", plain, str(tiny), Limits(allow=("speaker_leak",)), "CC0-1.0", device="cpu")
    )
    wanted = {row["id"]: row for row in TokenSet.open(plain)}
    found = {row["id"]: row for row in TokenSet.open(tmp_path / "tokens")}
    assert set(found) == {f"{'train' if n < 4 else 'dev'}-000000/x/k{n}" for n in range(6)}
    for name, row in found.items():
        other = wanted[name.rpartition("/")[2]]
        assert all(row[key] == other[key] for key in ("text", "split", "speaker", "licence"))
        assert np.array_equal(row["semantic"], other["semantic"]) and len(row["semantic"])


@pytest.mark.parametrize("size", [0, 300, 1024, 30_000])
def test_a_cut_shard_is_refused_with_its_name(size: int, shards: Path, tmp_path: Path) -> None:
    """1024 is between two files, where tarfile itself sees nothing wrong."""
    cut = tmp_path / "s-000000.tar"
    cut.write_bytes((shards / "train-000000.tar").read_bytes()[:size])
    with pytest.raises(DataError, match=r"s-000000\.tar: cut.*after (its beginning|x/k\d)"):
        list(tar_shards.read([cut]))


def test_a_sample_without_sound_is_rejected_by_name(tiny: Path, tmp_path: Path) -> None:
    files = [*sample(0), ("lost.txt", b"hello there"), *sample(1)]
    write(tmp_path / "t" / "s-000000.tar", files)
    with pytest.raises(DataError, match="rejected"):
        prepare(Job(tmp_path / "t", tmp_path / "out", str(tiny), licence="CC0-1.0", device="cpu"))
    (line,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "s-000000/lost" and "unreadable" in line


def test_samples_without_text_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "s-000000.tar", [*sample(0), ("bare.wav", sound(1)), ("more.wav", sound(2))])
    assert [bool(row["text"]) for row in tar_shards.read([path])] == [True, False, False]
    assert f"2 samples have no text and serve vc only, the first is {path}: bare" in caplog.text


@pytest.mark.parametrize("content", [b"{", b"[1]"])
def test_bad_json_is_refused_with_file_and_key(content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", [("k.json", content), ("k.wav", b"")])
    with pytest.raises(DataError, match=r"s\.tar: k\.json: "):
        list(tar_shards.read([path]))


def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    def peak(samples: int) -> int:
        files = [(f"k{n}.{kind}", bytes(2000)) for n in range(samples) for kind in ("txt", "wav")]
        path = write(tmp_path / f"{samples}.tar", files)
        del files
        tracemalloc.start()
        assert sum(1 for _ in tar_shards.read([path])) == samples
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(2000) < peak(200) + 50_000
