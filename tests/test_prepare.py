"""`gpa prepare` on real files and a tiny model: sources, every reason, ids, resuming, ranks, refusal."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from conftest import RATE, speechlike
from gpa import audio
from gpa.cli import main
from gpa.data.checks import CHECKS, REASONS, Limits
from gpa.data.manifest import ManifestRow
from gpa.data.screening import Seen, character_errors, duplicates, held_out
from gpa.data.sharding import Share, wait
from gpa.data.sources import open_source
from gpa.errors import CheckpointError, DataError, UsageError

datasets = pytest.importorskip("datasets")

TEXT = "hello there, how are you?"
FREE = {"licence": "CC0-1.0"}


def clip(folder: Path, name: str, seconds: float = 1.5, *, seed: int = 0, gain: float = 1.0) -> str:
    """Write one clip of its own and return its name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(gain * speechlike(seconds, seed=seed), -1, 1), RATE)
    return name


def row(folder: Path, n: int, **more: Any) -> dict[str, Any]:
    """A row of ours with a good clip."""
    name = more.pop("path", None) or clip(folder, f"{n}.wav", 1.5 + 0.1 * n, seed=n)
    return {
        "id": f"r{n}",
        "path": name,
        "text": f"{TEXT} {'abcdefgh'[n % 8]}",
        "speaker": "s",
        **FREE,
        **more,
    }


def write(folder: Path, rows: list[Any], name: str = "manifest.jsonl") -> Path:
    path = folder / name
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def run(tiny: Path, source: Any, out: Path, *words: str) -> int:
    return main.main(["prepare", str(source), "-o", str(out), "--model", str(tiny), *words])


def rejected(out: Path) -> dict[str, dict[str, Any]]:
    lines = (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return {found["id"]: found for found in map(json.loads, lines)}


def contents(out: Path) -> dict[str, str]:
    """Every file of a folder and a hash of its bytes."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def tiny(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_model import write_keen_model

    return write_keen_model(tiny, tmp_path_factory.mktemp("keen") / "tiny")


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    from gpa.models.gpa import GPA

    return GPA.from_pretrained(tiny, device="cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of eight good rows, one of them held out, one without text."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [row(folder, n) for n in range(8)]
    rows[5] |= {"split": "dev", "speaker": "t"}
    rows[6] |= {"split": "train-notext", "text": None, "text_by_machine": "not used"}
    return write(folder, rows)


@pytest.fixture(scope="module")
def prepared(tiny: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That manifest prepared in one go, three rows a shard; read only."""
    out = tmp_path_factory.mktemp("prepared") / "tokens"
    assert run(tiny, corpus, out, "--shard-rows", "3") == 0
    return out


# What is written --------------------------------------------------------------------------------------------


def test_ids_are_those_of_the_codec_and_lie_in_the_file(prepared: Path, corpus: Path, model: Any) -> None:
    from gpa.data.sequences import example
    from gpa.data.token_folder import TokenSet

    tokens = TokenSet.open(prepared)
    assert len(tokens) == 8 and tokens.data.cache_files and not tokens.data._data.nbytes == 0
    assert len({tuple(tokens.row(i)["semantic"][:30]) for i in range(8)}) == 8  # else this proves nothing
    for i in (0, 5, 6):
        found = tokens.row(i)
        direct = model.codec.encode(corpus.parent / f"{i}.wav")
        np.testing.assert_array_equal(found["semantic"], direct.codes[0])
        np.testing.assert_array_equal(found["global"], direct.global_)
        assert found["semantic"].dtype == np.int32 and not found["semantic"].flags.owndata
        assert found["glm"].size == found["target"].size == 0 and found["licence"] == "CC0-1.0"
    assert tokens.row(0)["text"] == "hello there, how are you? a" and tokens.row(6)["text"] == ""
    assert list(tokens.column("split")) == ["train"] * 5 + ["dev", "train-notext", "train"]
    np.testing.assert_allclose(tokens.column("seconds"), [1.5 + 0.1 * n for n in range(8)], atol=1e-4)
    tts = [example(model.format, t, tokens.row(1)) for t in ("asr", "tts")]
    assert max(len(e.input_ids) for e in tts) <= tokens.lengths[1] < max(len(e.input_ids) for e in tts) + 40
    long = "write the speech as text"  # an instruction longer than the first is allowed for
    assert len(example(model.format, "asr", tokens.row(1), long).input_ids) <= tokens.lengths[1]


def test_the_folder_says_what_it_is(prepared: Path, tiny: Path, model: Any) -> None:
    from gpa.data.token_folder import read_vocab

    about = json.loads((prepared / "prepared.json").read_text())
    assert about["rows"] == 8 and about["shards"] == 3 and about["rejected"] == {}
    assert about["counts"]["split"]["dev"]["rows"] == 1 and set(about["counts"]["speaker"]) == {"s", "t"}
    assert about["seconds"] == pytest.approx(sum(1.5 + 0.1 * n for n in range(8)), abs=0.01)
    assert about["fingerprints"] == model.processor.fingerprints()
    assert about["vocabulary"] == {"size": model.vocab.size, "glm_size": None}
    assert read_vocab(prepared).fingerprint() == model.vocab.fingerprint()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (prepared / name).read_bytes() == (tiny / name).read_bytes()
    assert (prepared / "rejected.jsonl").read_text() == "" and not (prepared / ".work").exists()


def test_a_model_goes_on_training_from_it(prepared: Path, tiny: Path, model: Any, tmp_path: Path) -> None:
    import torch

    from gpa.train.command import family_of
    from gpa.train.loop import train

    tree = {
        "kind": "gpa",
        "init": str(tiny),
        "data": {"tokens": str(prepared), "max_ids": 400, "batch_ids": 800},
        "model": {},
        "train": {"steps": 3, "save_every": 3, "eval_every": 3, "threads": 1},
        "optim": {"lr": 1e-2, "warmup": 1},
        "weights": {"alignment": 0.0},  # what was prepared says nothing of letters' times
    }
    family, recipe = family_of(tree)
    tasks = {(task, family.train_rows.clips[i]["id"]) for task, i, _ in family.items}  # type: ignore[attr-defined]
    assert {task for task, _ in tasks} == {"tts", "asr", "vc"} and len({name for _, name in tasks}) == 7
    row = family.train_rows.row("tts", 0, np.random.default_rng(0))  # type: ignore[attr-defined]
    parsed = model.processor.format.parse(row.ids.tolist())
    assert parsed.text == family.train_rows.clips[0]["text"]  # type: ignore[attr-defined]
    before = torch.get_num_threads()
    trained = train(family, recipe.train, recipe.optim, tmp_path / "run", progress=False)
    torch.set_num_threads(before)
    old = model.network.state_dict()
    assert any(not torch.equal(t, old[name]) for name, t in trained.state_dict().items() if name in old)
    about = json.loads((tiny / "gpa.json").read_text())
    about["fingerprints"]["codec"] = "0" * 64
    other = shutil.copytree(tiny, tmp_path / "other")
    (other / "gpa.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="made with another codec"):
        family_of({**tree, "init": str(other)})


def test_another_codec_is_refused(prepared: Path, model: Any, tmp_path: Path) -> None:
    from gpa.data.token_folder import TokenSet, check_fits

    prints = model.processor.fingerprints()
    check_fits(prepared, prints)
    check_fits(prepared, {"codec": prints["codec"]})
    for part in ("codec", "tokenizer"):
        with pytest.raises(CheckpointError, match=f"another {part}.*gpa prepare"):
            check_fits(prepared, {**prints, part: "0" * 64})
    with pytest.raises(CheckpointError, match="another codec"):
        check_fits(prepared, {})
    with pytest.raises(CheckpointError, match="not prepared"):
        TokenSet.open(tmp_path)


# Resuming and sharing ---------------------------------------------------------------------------------------


def command(tiny: Path, corpus: Path, out: Path) -> list[str]:
    words = ["prepare", corpus, "-o", out, "--model", tiny, "--shard-rows", "3"]
    return [sys.executable, "-m", "gpa", *map(str, words)]


def test_a_killed_run_goes_on_and_writes_the_same(
    tiny: Path, corpus: Path, prepared: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tokens"
    process = subprocess.Popen(command(tiny, corpus, out), stderr=subprocess.PIPE)
    while not list(out.glob("*.arrow")) and process.poll() is None:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    said = process.communicate()[1]
    made = {path: path.stat().st_mtime_ns for path in out.glob("*.arrow")}
    assert process.returncode == -signal.SIGKILL and 0 < len(made) < 3, said
    assert b"row/s" in said  # a log that no terminal shows says how far it is, too
    assert not (out / "prepared.json").exists()
    assert run(tiny, corpus, out, "--shard-rows", "3") == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert contents(out) == contents(prepared)


def test_two_ranks_write_what_one_writes(tiny: Path, corpus: Path, prepared: Path, tmp_path: Path) -> None:
    """In two threads, which meet in the same files as two processes and load torch once."""
    from gpa.data.prepare import Job, prepare

    job = Job(corpus, tmp_path / "tokens", tiny, shard_rows=3, patience=60)
    with ThreadPoolExecutor(2) as pool:
        reports = [pool.submit(prepare, job, Share(rank, 2)) for rank in (1, 0)]
        second, main = (report.result() for report in reports)
    assert main.is_main and not second.is_main and main.about == second.about
    assert main.encoded == pytest.approx(main.about["seconds"]) and "s of audio per second" in main.speed()
    assert contents(tmp_path / "tokens") == contents(prepared)


def test_a_folder_that_another_process_has_just_begun_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking for its marks and listing it there is time for another rank to make the folder."""
    from gpa.data import prepare

    listed = Path.iterdir

    def begun(folder: Path) -> Any:
        (folder / prepare.WORK).mkdir(exist_ok=True)
        return listed(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", begun)
        prepare._check_free(tmp_path)
    (tmp_path / prepare.WORK).rmdir()
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        prepare._check_free(tmp_path)


def test_only_the_main_process_talks(
    tiny: Path,
    corpus: Path,
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(tiny, corpus, prepared, "--shard-rows", "3") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_worker_processes_write_the_same(tiny: Path, corpus: Path, prepared: Path, tmp_path: Path) -> None:
    assert run(tiny, corpus, tmp_path / "tokens", "--shard-rows", "3", "--workers", "2") == 0
    assert contents(tmp_path / "tokens") == contents(prepared)


@pytest.mark.slow
def test_a_failing_worker_stops_the_run(tiny: Path, corpus: Path, tmp_path: Path) -> None:
    from gpa.data.prepare import Job
    from gpa.data.sharding import Workers

    job = Job(corpus, tmp_path / "tokens", tmp_path / "no-model", shard_rows=3)
    from gpa.data import prepare as module

    with (
        pytest.raises(DataError, match="worker . failed.*no-model"),
        Workers(module._work, job, Share(workers=2)),
    ):
        pass


def test_ranks_of_the_environment() -> None:
    assert Share.from_environment({}) == Share(0, 1, None)
    share = Share.from_environment({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, workers=3)
    assert [list(share.worker(n).shards(24)) for n in range(3)] == [[6, 18], [7, 19], [8, 20]]
    assert not share.part().shards(24) and not share.part().is_main
    parts = [Share.from_environment({"RANK": str(r), "WORLD_SIZE": "3"}).part() for r in range(3)]
    assert sorted(k for part in parts for k in part.shards(10)) == list(range(10))
    for bad in ({"RANK": "3", "WORLD_SIZE": "3"}, {"RANK": "one"}):
        with pytest.raises(UsageError, match="RANK"):
            Share.from_environment(bad)


def test_waiting_ends(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    paths = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(DataError, match="1 of 2 files are missing, b first.*same command again"):
        list(wait(paths, 0.3, lambda: None, "to do it"))
    (tmp_path / "b").touch()
    assert list(wait(paths, 0.3, lambda: None, "to do it")) == [2]


def test_a_folder_of_something_else_is_left_alone(
    tiny: Path, corpus: Path, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(prepared)
    assert run(tiny, corpus, prepared, "--shard-rows", "3") == 0
    assert "already" in capsys.readouterr().err
    assert run(tiny, corpus, prepared, "--shard-rows", "3", "--min-rate", "1") == DataError.exit_code
    assert "limits differ" in capsys.readouterr().err and contents(prepared) == before
    (tmp_path / "thesis.tex").touch()
    assert run(tiny, corpus, tmp_path) == DataError.exit_code
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# The doctor -------------------------------------------------------------------------------------------------


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def bad_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """{reason: a row that has just this against it}, every file written."""
    rows: dict[str, dict[str, Any]] = {"missing_file": row(folder, 1, path="nowhere.wav")}
    (folder / "pointer.wav").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    rows["lfs_pointer"] = row(folder, 2, path="pointer.wav")
    (folder / "noise.wav").write_bytes(b"RIFF, but nothing of the kind" * 9)
    rows["unreadable"] = row(folder, 3, path="noise.wav")
    rows["truncated"] = row(folder, 4)
    cut(folder / "4.wav", 0.6)
    rows["bad_segment"] = row(folder, 5, begin_time=1.0, end_time=9.0)
    rows["too_short"] = row(folder, 6, begin_time=0.5, end_time=0.7, text="you")
    rows["silent"] = row(folder, 7, path=clip(folder, "silent.wav", seed=7, gain=5e-4))
    rows["clipped"] = row(folder, 8, path=clip(folder, "loud.wav", seed=8, gain=9))
    rows["no_licence"] = row(folder, 9, licence=" ")
    rows["no_text"] = row(folder, 10, task="asr", text="?!")
    rows["bad_text"] = row(folder, 11, text="hello there, how are y\ufffdu")
    rows["speech_rate"] = row(folder, 12, text=4 * TEXT)
    # Half a second of sound in two: the rate of the whole clip is ordinary.
    soundfile.write(folder / "13.wav", np.pad(speechlike(0.5, seed=13), (0, int(1.5 * RATE))), RATE)
    rows["text_mismatch"] = row(folder, 13, path="13.wav", text="hello there, how are you all today?")
    rows["too_long"] = row(folder, 14, path=clip(folder, "14.wav", 30, seed=14), text=8 * TEXT)
    rows["speaker_leak"] = row(folder, 15, speaker="held")
    rows["text_leak"] = row(folder, 16, text="A quick brown fox JUMPS over the lazy dog!")
    rows["duplicate"] = row(folder, 17, path="twin.flac")
    rows["bad_name"] = row(folder, 19, path=os.fsdecode(b"gr\xfcn.wav"))
    return rows


def test_every_reason_has_its_bad_file(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = bad_rows(tmp_path)
    assert set(rows) == set(REASONS)
    fine = row(tmp_path, 0)
    held = row(tmp_path, 18, split="dev", speaker="held", text="a quick brown fox jumps over the lazy dog.")
    wav, rate = soundfile.read(tmp_path / "0.wav", dtype="int16")
    soundfile.write(tmp_path / "twin.flac", wav, rate)  # another container, the same sound
    manifest = write(tmp_path, [fine, *({**r, "id": code} for code, r in rows.items()), held])
    limits = ["--max-ids", "700"]  # of the tiny model's 1,024, so that the clip need not be longer
    assert run(tiny, manifest, tmp_path / "t", *limits) == DataError.exit_code
    said = capsys.readouterr()
    found = rejected(tmp_path / "t")
    assert {code: r["reason"] for code, r in found.items()} == {code: code for code in rows}
    assert all(r["detail"] and str(manifest) in r["where"] for r in found.values())
    assert found["clipped"]["where"] == f"{manifest}:9" and "0.wav" not in found["duplicate"]["detail"]
    assert not (tmp_path / "t" / "prepared.json").exists() and not list((tmp_path / "t").glob("*.arrow"))
    assert (
        "18 of 20 rows are rejected" in said.err and all(code in said.err for code in rows) and not said.out
    )

    assert run(tiny, manifest, tmp_path / "t", *limits, "--max-rejected", "0.9") == 0  # goes on from there
    about = json.loads((tmp_path / "t" / "prepared.json").read_text())
    assert about["rows"] == 2 and {code: n["rows"] for code, n in about["rejected"].items()} == dict.fromkeys(
        rows, 1
    )
    assert "kept                  2   10.0 %" in capsys.readouterr().out


def test_damage_that_headers_hide(tmp_path: Path) -> None:
    """A FLAC that stops is no wrong format, and a stated length finds an Ogg cut between pages."""
    from gpa.data.manifest import Clip
    from gpa.data.screening import Unusable, read

    soundfile.write(tmp_path / "a.flac", speechlike(3.0), RATE)
    cut(tmp_path / "a.flac", 0.5)
    (tmp_path / "empty.wav").touch()
    for name, code in (("a.flac", "truncated"), ("empty.wav", "unreadable")):
        with pytest.raises(Unusable) as found:
            read(Clip(str(tmp_path / name)), RATE)
        assert found.value.code == code
    case = judged(row(tmp_path, 0, duration=2.0), tmp_path)
    assert CHECKS["truncated"](case, Limits()) == "1.50 s, 2.0 s stated"
    assert not CHECKS["truncated"](judged(row(tmp_path, 0, duration=1.6), tmp_path), Limits())


def judged(raw: dict[str, Any], folder: Path) -> Any:
    from gpa.data.checks import Case, measure

    (found,) = open_source(write(folder, [raw], "one.jsonl")).rows()
    sound = measure(found.audio.wav(RATE), RATE)
    return Case(found, found.text, sound, (sound,))


def test_allowed_rows_are_kept_and_counted(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(tmp_path, 0), row(tmp_path, 1, path="0.wav"), row(tmp_path, 2, licence="")]
    manifest = write(tmp_path, [*rows, row(tmp_path, 3, split="dev")])
    assert run(tiny, manifest, tmp_path / "t", "--max-rejected", "0.5") == DataError.exit_code
    assert {r["reason"] for r in rejected(tmp_path / "t").values()} == {"speaker_leak", "no_licence"}
    words = ["--allow", "duplicate", "no_licence", "--seen-speakers", "dev", "--json"]
    assert run(tiny, manifest, tmp_path / "u", *words) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["rows"] == 4 and {c: n["rows"] for c, n in about["allowed"].items()} == {
        "duplicate": 1,
        "no_licence": 1,
    }
    assert run(tiny, manifest, tmp_path / "v", "--allow", "missing_file") == DataError.exit_code
    assert "'missing_file' cannot be kept" in capsys.readouterr().err
    words = ["--licence", "CC0-1.0", "--allow", "speaker_leak", "--max-rejected", "0.25"]
    assert run(tiny, manifest, tmp_path / "w", *words) == 0
    assert rejected(tmp_path / "w").keys() == {"r1"}


def test_check_text_listens(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A random model hears nothing that was said, so nothing is left."""
    manifest = write(tmp_path, [row(tmp_path, 0)])
    assert run(tiny, manifest, tmp_path / "t", "--check-text") == DataError.exit_code
    assert rejected(tmp_path / "t")["r0"]["reason"] == "text_mismatch"
    assert "character errors" in rejected(tmp_path / "t")["r0"]["detail"]


@pytest.mark.parametrize(
    ("said", "heard", "edits"),
    [("kitten", "sitting", 3), ("abc", "", 3), ("", "", 0), ("abc", "abc", 0), ("ab", "xaby", 2)],
)
def test_character_errors(said: str, heard: str, edits: int) -> None:
    assert character_errors(said, heard) == pytest.approx(edits / max(1, len(said)))


def test_the_held_out_copy_stays() -> None:
    rows = [
        Seen(0, True, "m:1", "x"),
        Seen(1, False, "m:2", "x"),
        Seen(2, True, "m:3", "x"),
        Seen(3, True, "m:4", "y"),
    ]
    assert duplicates(rows) == {0: "m:2", 2: "m:2"}


def test_short_sentences_are_no_leak() -> None:
    from gpa.data.manifest import Clip

    rows = [ManifestRow("a", Clip("a"), text, "s", "test") for text in ("Yes, please.", 2 * TEXT)]
    held = held_out(rows, Limits())
    assert len(held.sentences) == 1 and held.speakers == {"s"}
    assert held_out(rows, Limits(seen_speakers=("test",))).speakers == frozenset()


# Sources ----------------------------------------------------------------------------------------------------


def test_published_rows_with_segments_and_references(
    tiny: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPA's own keys: paths from the working folder, segment times honoured, the voice from ref_audio."""
    work, folder = tmp_path / "work", tmp_path / "data"
    for n, name in enumerate(("a.wav", "ref.wav", "out.wav")):
        clip(work, name, 4.0, seed=n)
    clip(folder, "beside.wav", 2.0, seed=5)
    unused = {"age": "", "gender": "", "emotion": "", "pitch": "", "speed": ""}
    blank = {"text": TEXT, "ref_audio": "", "vc_audio": "", "begin_time": -1, "end_time": -1, **unused}
    rows = [
        {**blank, "task": "stt", "audio": "a.wav", "begin_time": 1.0, "end_time": 2.5},
        {**blank, "task": "tts-a", "audio": "a.wav", "ref_audio": "ref.wav"},
        {**blank, "task": "vc", "audio": "a.wav", "ref_audio": "ref.wav", "vc_audio": "out.wav", "text": ""},
        {**blank, "task": "stt", "audio": "beside.wav"},
    ]
    manifest = write(folder, rows)
    monkeypatch.chdir(work)
    assert run(tiny, manifest, tmp_path / "t", "--licence", "Apache-2.0") == 0
    from gpa.data.sequences import example
    from gpa.data.token_folder import TokenSet

    tokens, codec = TokenSet.open(tmp_path / "t"), model.codec
    assert list(tokens.column("task")) == ["asr", "tts", "vc", "asr"]
    whole = audio.load(work / "a.wav")
    np.testing.assert_array_equal(
        tokens.row(0)["semantic"], codec.semantic_tokens((whole[16000:40000], RATE))
    )
    assert tokens.row(0)["seconds"] == pytest.approx(1.5) and tokens.row(0)["id"] == "a-1"
    reference = codec.global_tokens(work / "ref.wav")
    assert (tokens.row(1)["global"] == reference).all() and (tokens.row(0)["global"] != reference).any()
    np.testing.assert_array_equal(tokens.row(2)["target"], codec.semantic_tokens(work / "out.wav"))
    made = example(model.format, "vc", tokens.row(2))
    assert model.format.parse(made.input_ids).target_semantic == tokens.row(2)["target"].tolist()
    assert len(made.input_ids) <= tokens.lengths[2]


def test_published_models_get_linguistic_codes_and_verbatim_text(replica: Path, tmp_path: Path) -> None:
    from gpa.data.sequences import example
    from gpa.data.token_folder import TokenSet, read_vocab
    from gpa.models.gpa import GPA

    clip(tmp_path, "a.wav", 2.0)
    blank = {"audio": "a.wav", "ref_audio": "", "vc_audio": "", "begin_time": -1, "end_time": -1}
    manifest = write(tmp_path, [{**blank, "task": "stt", "text": " Hello There, 3 of us"}])
    assert run(replica, manifest, tmp_path / "t", "--licence", "Apache-2.0") == 0
    published, found = GPA.from_pretrained(replica, device="cpu"), TokenSet.open(tmp_path / "t").row(0)
    assert published.glm and found["text"] == " Hello There, 3 of us"
    np.testing.assert_array_equal(found["glm"], published.glm.tokens(tmp_path / "a.wav"))
    made = example(published.format, "asr", found)
    assert len(made.input_ids) == found["length"]
    assert published.format.parse(made.input_ids).task == "asr"
    assert read_vocab(tmp_path / "t").fingerprint() == published.vocab.fingerprint()


BAD = [
    ({"id": "a", "path": "0.wav", "txt": "hello"}, "2: unknown key 'txt'; did you mean text"),
    ({"id": "a", "path": "0.wav", "text": 7}, "2: key 'text' is 7, text or null expected"),
    ({"id": "a", "path": "0.wav", "begin_time": "1"}, "2: key 'begin_time' is '1', a number"),
    ({"id": "a", "path": "0.wav", "end_time": float("nan")}, "2: key 'end_time' is nan"),
    ({"id": "a", "path": "0.wav", "begin_time": -3}, "2: key 'begin_time' is -3"),
    ({"id": "a", "path": "0.wav", "task": "dub"}, "2: key 'task': unknown task 'dub'"),
    ({"id": "a", "path": "0.wav", "task": "vc"}, "2: key 'vc_audio' is empty"),
    ({"id": "a", "path": "0.wav", "vc_audio": "0.wav"}, "2: key 'vc_audio' is for rows of task vc only"),
    ({"id": "a", "path": ""}, "2: key 'path' is empty"),
    ({"path": "0.wav"}, "2: a row has id and path"),
    ({"task": "stt", "audio": "0.wav", "path": "0.wav"}, "2: a row has id and path"),
    ('{"id": "a", ', "2: not JSON"),
    ("[1, 2]", "2: a row is an object, this is list"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_a_row_that_does_not_fit_is_named(bad: Any, message: str, tmp_path: Path) -> None:
    good = {"id": "a", "path": "0.wav"}
    source = open_source(write(tmp_path, [good, bad, good]))
    with pytest.raises(DataError) as error:
        list(source.check())
    assert f"manifest.jsonl:{message}" in str(error.value) and "1 rows" in str(error.value)


def test_bad_rows_stop_before_the_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write(tmp_path, [{"id": "a"}] * 9)
    assert run(tmp_path / "no-model", manifest, tmp_path / "t") == DataError.exit_code
    said = capsys.readouterr().err
    assert "9 rows do not fit" in said and "and 4 more" in said and not (tmp_path / "t").exists()
    assert run(tmp_path / "no-model", tmp_path / "none.jsonl", tmp_path / "t") == DataError.exit_code
    assert "hf:owner/name" in capsys.readouterr().err
    assert run(tmp_path / "no-model", write(tmp_path, []), tmp_path / "t") == DataError.exit_code


def test_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("dev/ann/1.wav", "ben/2.flac", "3.wav"):
        clip(tmp_path / "corpus", name)
    (tmp_path / "corpus/dev/ann/1.txt").write_text(" hello there \n")
    (tmp_path / "corpus/ben/2.lab").write_text("how are you")
    (tmp_path / "corpus/ben/9.txt").write_text("alone")
    source = open_source(tmp_path / "corpus")
    found = {r.id: (r.text, r.speaker, r.split) for r in source.rows()}
    assert found == {
        "3": ("", "corpus", "train"),
        "ben/2": ("how are you", "ben", "train"),
        "dev/ann/1": ("hello there", "ann", "dev"),
    }
    assert (
        "1 text files without audio" in caplog.text
        and source.digest == open_source(tmp_path / "corpus").digest
    )
    (tmp_path / "corpus/ben/2.lab").write_text("how were you")
    assert source.digest != open_source(tmp_path / "corpus").digest


def test_folders_with_a_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lj, named = tmp_path / "lj", tmp_path / "named"
    clip(lj, "wavs/LJ-1.wav"), clip(lj, "wavs/LJ-2.wav"), clip(named, "a.flac")
    (lj / "metadata.csv").write_text('LJ-1|Dr. "No|Doctor "No\n')
    (named / "metadata.csv").write_text('file_name,transcription,speaker_id\na.flac,"one, two",x\n')
    assert [(r.id, r.text, r.speaker) for r in open_source(lj).rows()] == [("LJ-1", 'Doctor "No', "lj")]
    assert "1 audio files are not named in it" in caplog.text
    (found,) = open_source(named).rows()
    assert (found.id, found.text, found.speaker) == ("a", "one, two", "x") and found.audio.wav(
        RATE
    ).size == 24000
    (named / "metadata.csv").write_text("file_name,text,mood\na.flac,one,glad\n")
    assert [row.text for row in open_source(named).rows()] == ["one"]
    assert "metadata.csv: columns that are not used: mood" in caplog.text


def test_a_folder_is_prepared(tiny: Path, tmp_path: Path) -> None:
    clip(tmp_path / "corpus", "ann/1.wav")
    (tmp_path / "corpus/ann/1.txt").write_text(TEXT)
    assert run(tiny, tmp_path / "corpus", tmp_path / "t", "--licence", "CC0-1.0") == 0
    assert list(json.loads((tmp_path / "t/prepared.json").read_text())["counts"]["speaker"]) == ["ann"]


def encoded(seed: int) -> dict[str, Any]:
    file = io.BytesIO()
    soundfile.write(file, speechlike(1.5, seed=seed), RATE, format="FLAC")
    return {"bytes": file.getvalue(), "path": None}


def hub_like(cells: list[Any], **more: Any) -> Any:
    columns = {
        "audio": cells,
        "sentence": [TEXT] * len(cells),
        "client_id": [3] * len(cells),
        "mood": ["glad"] * len(cells),
    }
    return datasets.Dataset.from_dict({**columns, **more})


def test_hugging_face_datasets(
    tiny: Path, model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Encoded bytes under the Audio feature, saved to disk with two splits."""
    train = hub_like([encoded(0), encoded(1)]).cast_column("audio", datasets.Audio(decode=False))
    held = hub_like([encoded(2)], client_id=[4], sentence=["another sentence"])
    held = held.cast_column("audio", datasets.Audio(decode=False))
    datasets.DatasetDict({"train": train, "validation": held}).save_to_disk(str(tmp_path / "saved"))
    assert run(tiny, tmp_path / "saved", tmp_path / "t", "--licence", "CC0-1.0") == 0
    from gpa.data.token_folder import TokenSet

    tokens = TokenSet.open(tmp_path / "t")
    assert list(tokens.column("id")) == ["train-0", "train-1", "validation-0"]
    assert list(tokens.column("speaker")) == ["3", "3", "4"] and "mood" in caplog.text
    direct = model.codec.semantic_tokens(encoded(1)["bytes"])
    np.testing.assert_array_equal(tokens.row(1)["semantic"], direct)


def test_loaded_datasets_of_arrays(tmp_path: Path) -> None:
    wav = speechlike(0.5)
    cells = [{"array": wav.tolist(), "sampling_rate": RATE}]
    source = open_source(hub_like(cells), {"text": "mood", "licence": "sentence"})
    (found,) = source.check()
    assert (found.text, found.licence, found.where) == ("glad", TEXT, "dataset[train]:0")
    np.testing.assert_allclose(found.audio.wav(RATE), wav, atol=1e-6)
    with pytest.raises(DataError, match="no column 'nothing'; its columns are audio, sentence"):
        open_source(hub_like(cells), {"text": "nothing"})
    with pytest.raises(DataError, match="no column of audio"):
        open_source(datasets.Dataset.from_dict({"text": ["a"]}))


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.main(["prepare", "--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and "examples:" in shown and "accelerate launch" in shown
    assert "--min-rate" in shown and "rejected.jsonl" in shown


def test_the_page_has_every_reason_and_limit(repo: Path) -> None:
    page = (repo / "docs" / "data.md").read_text(encoding="utf-8")
    assert [code for code in REASONS if f"| `{code}` |" not in page] == []
    assert [name for name in Limits.__dataclass_fields__ if f"--{name.replace('_', '-')}" not in page] == []
