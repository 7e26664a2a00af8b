"""`gpa prepare` from WebDataset tar shards: the same ids as from files, and what happens to bad shards."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from conftest import RATE, speechlike
from gpa.data import tar_shards
from gpa.data.checks import Limits
from gpa.data.encoding import Extras
from gpa.data.prepare import Job, prepare
from gpa.data.token_folder import TokenSet
from gpa.errors import CheckpointError, DataError

pytest.importorskip("datasets")
Files = list[tuple[str, bytes]]
FREE = Limits(allow=("speaker_leak",))
LOST = {"id": "lost", "path": "lost.wav"}


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
    prepare(Job(tmp_path / "m.jsonl", plain, str(tiny), FREE, "CC0-1.0", device="cpu"))
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
    path = write(
        tmp_path / "s-000000.tar", [*sample(0), ("bare.wav", sound(1)), ("k.txt", b" "), ("k.wav", b"")]
    )
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


# Written by us ----------------------------------------------------------------------------------------------


def pack(source: Path, out: Path, tiny: Path, **changes: Any) -> dict[str, Any]:
    job = Job(source, out, str(tiny), FREE, "CC0-1.0", device="cpu", shard_rows=4, **changes)
    return dict(prepare(job).about)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of whole files, one span of a file, one held out and one that is missing."""
    root, rows = tmp_path_factory.mktemp("files"), []
    for n, kind in enumerate(("WAV", "FLAC", "OGG", "WAV", "AIFF", "WAV")):
        (root / f"{n}.{kind.lower()}").write_bytes(sound(n, kind))
        row = {"id": f"a b/{n}.x", "path": f"{n}.{kind.lower()}", "text": f"hello there {'abcdef'[n]}"}
        rows.append(row | {"speaker": "anna", "split": "dev" if n == 5 else "train"})
    rows[3] |= {"begin_time": 0.25, "end_time": 1.5}
    (root / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_written_shards_hold_the_recordings_that_are_kept(folder: Path, tiny: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (folder / "m.jsonl").read_text().splitlines()]
    (folder / "lost.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | LOST]))
    about = pack(folder / "lost.jsonl", tmp_path / "out", tiny, to="tar", max_rejected=0.2)
    assert about["kind"] == tar_shards.KIND and about["rejected"]["missing_file"]["rows"] == 1
    assert "lost.wav" in (tmp_path / "out" / "rejected.jsonl").read_text()
    names = {"rejected.jsonl", "prepared.json", "shard-000000.tar", "shard-000001.tar"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert list(files)[:2] == ["000000000_a_b_0_x.wav", "000000000_a_b_0_x.json"]
    for n, kind in enumerate(("wav", "flac", "ogg")):
        assert files[f"00000000{n}_a_b_{n}_x.{kind}"] == (folder / f"{n}.{kind}").read_bytes()
    assert json.loads(files["000000000_a_b_0_x.json"]) == {
        "id": "a b/0.x", "text": "hello there a", "speaker": "anna", "licence": "CC0-1.0", "split": "train",
    }  # fmt: skip


def test_ids_of_written_shards_are_those_of_the_files(folder: Path, tiny: Path, tmp_path: Path) -> None:
    pack(folder / "m.jsonl", tmp_path / "shards", tiny, to="tar")
    pack(folder / "m.jsonl", tmp_path / "plain", tiny)
    pack(tmp_path / "shards", tmp_path / "tokens", tiny)
    wanted, found = (list(TokenSet.open(tmp_path / name)) for name in ("plain", "tokens"))
    assert len(found) == 6 and found[0]["id"] == "shard-000000/000000000_a_b_0_x"
    for one, other in zip(wanted, found, strict=True):
        assert all(one[key] == other[key] for key in ("text", "split", "speaker", "licence", "seconds"))
        assert np.array_equal(one["semantic"], other["semantic"])
        assert np.array_equal(one["global"], other["global"])


def test_a_killed_writing_goes_on_and_is_the_same(
    folder: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(folder / "m.jsonl", tmp_path / "whole", tiny, to="tar")
    write_shard = tar_shards.write

    def dies(path: Path, *more: Any) -> None:
        if path.name == "shard-000001.tar":
            raise InterruptedError
        write_shard(path, *more)

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(tar_shards, "write", dies)
        pack(folder / "m.jsonl", tmp_path / "killed", tiny, to="tar")
    assert not (tmp_path / "killed" / "prepared.json").exists()
    with pytest.raises(DataError, match="kind differ"):
        pack(folder / "m.jsonl", tmp_path / "killed", tiny)  # ids do not go where recordings went
    pack(folder / "m.jsonl", tmp_path / "killed", tiny, to="tar")
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("whole", "killed"))
    assert one == other


def test_what_shards_cannot_hold_is_refused_by_name(folder: Path, tiny: Path, tmp_path: Path) -> None:
    row = {"id": "k", "path": "0.wav", "ref_audio": "1.flac", "text": "hello there", "split": "train"}
    (folder / "two.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"two\.jsonl:1: has a task or a second recording"):
        pack(folder / "two.jsonl", tmp_path / "two", tiny, to="tar")
    with pytest.raises(DataError, match="tar shards hold recordings alone"):
        pack(folder / "m.jsonl", tmp_path / "silent", tiny, to="tar", extras=Extras(silence=True))
    pack(folder / "m.jsonl", tmp_path / "shards", tiny, to="tar")
    with pytest.raises(CheckpointError, match="gpa-recordings"):
        TokenSet.open(tmp_path / "shards")


def test_a_shard_that_is_fetched_again_goes_on(shards: Path, tiny: Path, tmp_path: Path) -> None:
    """What was read before the cut stays, and the result is that of whole shards."""
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    whole = (copy / "train-000000.tar").read_bytes()
    (copy / "train-000000.tar").write_bytes(whole[: len(whole) // 2])
    job = Job(copy, tmp_path / "out", str(tiny), FREE, "CC0-1.0", device="cpu", shard_rows=2)
    with pytest.raises(DataError, match=r"train-000000\.tar: cut, or no tar file"):
        prepare(job)
    parts = sorted((tmp_path / "out" / ".work" / "stream").glob("data-*.arrow"))
    assert parts and not (tmp_path / "out" / "prepared.json").exists()
    (copy / "train-000000.tar").write_bytes(whole)
    prepare(job)
    plain = Job(shards, tmp_path / "plain", str(tiny), FREE, "CC0-1.0", device="cpu", shard_rows=2)
    prepare(plain)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.arrow")} == {
        p.name: p.read_bytes() for p in (tmp_path / "plain").glob("*.arrow")
    }
