"""Files and weights: strict loading, damaged files, and no network unless asked for."""

import json
import pickle
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gpa import hub
from gpa.errors import CheckpointError


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_load_strict_copies_and_keeps_precision() -> None:
    source, target = module(), module()
    state = {
        name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in source.state_dict().items()
    }
    hub.load_strict(target, state)
    weight = target.state_dict()["0.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, source.state_dict()["0.weight"].bfloat16().float())


def test_load_strict_fills_a_meta_module() -> None:
    source = module()
    with torch.device("meta"):
        target = module()
    hub.load_strict(
        target, {n: t.half() if t.is_floating_point() else t for n, t in source.state_dict().items()}
    )
    assert not any(t.is_meta for t in target.state_dict().values())
    assert target.state_dict()["0.weight"].dtype == torch.float32


def test_load_strict_reports_every_kind_of_difference_and_changes_nothing() -> None:
    target = module()
    before = {n: t.clone() for n, t in target.state_dict().items()}
    state = {n: t + 1 for n, t in before.items() if n != "0.bias"}
    state |= {f"new.{i:02d}": torch.zeros(1) for i in range(14)}
    state |= {"0.weight": torch.zeros(3, 4), "1.num_batches_tracked": torch.tensor(1.0)}
    with pytest.raises(CheckpointError) as error:
        hub.load_strict(target, state, where="some/folder")
    text = str(error.value)
    for part in (
        "some/folder: weights do not fit",
        "missing (1):\n    0.bias",
        "unexpected (14):",
        "new.09",
        "... and 4 more",
        "0.weight: file [3, 4], model [3, 2]",
        "1.num_batches_tracked: file torch.float32, model torch.int64",
    ):
        assert part in text
    assert "new.10" not in text
    assert all(torch.equal(t, before[n]) for n, t in target.state_dict().items())


def test_ignore_and_optional_are_patterns_for_one_side_each() -> None:
    target = module()
    state = {n: t for n, t in target.state_dict().items() if not n.startswith("1.")} | {
        "ema.a": torch.zeros(1)
    }
    hub.load_strict(target, state, ignore=["ema.*"], optional=["1.*"])
    with pytest.raises(CheckpointError, match="missing"):
        hub.load_strict(target, state, ignore=["ema.*", "1.*"])
    with pytest.raises(CheckpointError, match="unexpected"):
        hub.load_strict(target, state, optional=["ema.*", "1.*"])


def sharded(folder: Path, **changes: str) -> Path:
    save_file({"a": torch.ones(2)}, folder / "one.safetensors")
    save_file({"b": torch.zeros(3)}, folder / "two.safetensors")
    names = {"a": "one.safetensors", "b": "two.safetensors", **changes}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    return index


def test_read_state_of_every_layout(tmp_path: Path) -> None:
    for name, write in {
        "plain": lambda d: save_file({"a": torch.ones(2)}, d / "model.safetensors"),
        "sharded": sharded,
        "pickle": lambda d: torch.save({"a": torch.ones(2)}, d / "pytorch_model.bin"),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        write(folder)
        assert hub.read_state(folder)["a"].tolist() == [1, 1]
        assert sorted(hub.weight_files(folder)) == sorted(folder.iterdir())
        assert hub.read_state(next(folder.iterdir()) if name != "sharded" else folder)["a"].tolist() == [1, 1]


def cut(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


def safetensors_cut(folder: Path) -> Path:
    save_file({"a": torch.ones(999)}, folder / "model.safetensors")
    return cut(folder / "model.safetensors", 2000)


def safetensors_empty(folder: Path) -> Path:
    (folder / "model.safetensors").touch()
    return folder / "model.safetensors"


def pickle_cut(folder: Path) -> Path:
    torch.save({"a": torch.ones(999)}, folder / "pytorch_model.bin")
    return cut(folder / "pytorch_model.bin", 2000)


def pickle_of_text(folder: Path) -> Path:
    (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1")
    return folder / "pytorch_model.bin"


class Payload:
    """What a hostile pickle looks like: reading it would call a function."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return Path.touch, (Path("/tmp/gpa-test-hub-executed"),)  # type: ignore[return-value]


def pickle_with_code(folder: Path) -> Path:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Payload()}, protocol=2))
    return folder / "pytorch_model.bin"


def pickle_of_no_state(folder: Path) -> Path:
    torch.save({"a": {"b": torch.ones(1)}}, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


@pytest.mark.parametrize(
    "damage",
    [safetensors_cut, safetensors_empty, pickle_cut, pickle_of_text, pickle_with_code, pickle_of_no_state],
)
def test_damaged_files_are_named(tmp_path: Path, damage: Callable[[Path], Path]) -> None:
    path = damage(tmp_path)
    with pytest.raises(CheckpointError) as error:
        hub.read_state(tmp_path)
    assert str(path) in str(error.value)
    assert not Path("/tmp/gpa-test-hub-executed").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"b": "three.safetensors"}, "three.safetensors"),
        ({"c": "two.safetensors"}, "listed but not in any shard"),
        ({"b": "../two.safetensors"}, "not the name of a weight file"),
    ],
)
def test_incomplete_shards_are_refused(tmp_path: Path, changes: dict[str, str], named: str) -> None:
    sharded(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=named):
        hub.read_state(tmp_path)


def test_absent_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none of model.safetensors"):
        hub.read_state(tmp_path)
    with pytest.raises(CheckpointError, match="no such weight file"):
        hub.read_state(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        hub.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="JSON object"):
        hub.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        hub.read_json(tmp_path / "config.json")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every attempt to reach a host is noted and fails."""
    tried: list[object] = []

    def refuse(*args: object, **_: object) -> None:
        tried.append(args)
        raise OSError("network is off in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tried


def test_existing_paths_are_used_as_they_are(tmp_path: Path, no_network: list[object]) -> None:
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve(str(tmp_path), revision="main", offline=True) == tmp_path
    assert not no_network


@pytest.mark.parametrize("offline", [True, False])
def test_no_network_says_what_to_do(
    no_network: list[object], offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # CI sets it for everything
    with pytest.raises(CheckpointError, match="pass the directory instead"):
        hub.resolve("no-such-owner/no-such-model@v1", offline=offline)
    assert bool(no_network) != offline  # offline does not even try


@pytest.mark.parametrize("path", ["./absent", "/absent/model", "a/b/c", "absent", "../x"])
def test_a_mistyped_path_is_not_taken_for_a_repository(path: str, no_network: list[object]) -> None:
    with pytest.raises(CheckpointError, match="no such file or directory"):
        hub.resolve(path)
    assert not no_network


def test_fingerprint_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("1")
    b.write_text("2")
    mark = hub.fingerprint_files(a, b)
    assert len(mark) == 64
    assert mark == hub.fingerprint_files(b, str(a))
    b.write_text("3")
    assert mark != hub.fingerprint_files(a, b)
    with pytest.raises(CheckpointError, match="absent"):
        hub.fingerprint_files(tmp_path / "absent")
