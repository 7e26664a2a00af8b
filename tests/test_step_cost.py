"""What a step costs: its parts, operations and peak add up; a trace changes no weight and costs no run."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from gpa import config
from gpa.errors import UsageError
from gpa.train import meter, metrics
from gpa.train.arguments import TrainArgs
from gpa.train.command import main
from gpa.train.families.base import Loss
from gpa.train.families.lm import LMFamily, LMRecipe
from gpa.train.loop import train
from gpa.train.meter import PARTS, SECONDS, Meter, peak
from gpa.train.optim import OptimArgs
from gpa.train.planning import GPUS, known_peak
from training import lm_tree, write_recipe, write_tokens

pytestmark = pytest.mark.usefixtures("threads_kept")
pytest.importorskip("sentencepiece")
CPU = torch.device("cpu")
DATA, COMPUTE, EVALUATION = 0.03, 0.06, 0.09  # seconds, at least


class Slow:
    """A family whose parts take a known time at least."""

    def build(self) -> nn.Module:
        return nn.Linear(2, 1)

    def parameters(self, module: nn.Module) -> dict[str, list[nn.Parameter]]:
        return {"model": list(module.parameters())}

    def batch(self, step: int) -> torch.Tensor:
        time.sleep(DATA)
        return torch.ones(3, 2)

    def losses(self, module: nn.Module, batch: torch.Tensor, step: int) -> Iterator[Loss]:
        time.sleep(COMPUTE)
        yield Loss("model", module(batch).square().mean(), {"frames": 6.0, "positions": 8.0})

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        time.sleep(EVALUATION)
        return {"fit": 0.0}

    def export(self, module: nn.Module, path: Path) -> None:
        torch.save(module.state_dict(), path / "weights.pt")


def slow(run: Path, **args: Any) -> list[dict[str, float]]:
    train(Slow(), TrainArgs(**{"steps": 6, "log_every": 3} | args), OptimArgs(), run, progress=False)
    return [row for row in metrics.read(run / "metrics.jsonl") if "lr" in row]


def trained(caplog: pytest.LogCaptureFixture, recipe: Path, run: Path, *more: str) -> str:
    """Train by the command; returns what it said."""
    caplog.clear()
    main([str(recipe), *more, "--run", str(run)])
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens"))


def test_the_parts_of_a_step_are_told_apart_and_add_up(tmp_path: Path) -> None:
    first, second = slow(tmp_path, accumulate=2, eval_every=1)
    for row in (first, second):
        parts = {part: row[SECONDS + part] for part in PARTS}
        assert parts["data"] >= 2 * DATA and parts["compute"] >= 2 * COMPUTE and parts["optimizer"] > 0
    # An evaluation is after the line of its step: two were before the first line, three before the second.
    assert first[SECONDS + "other"] >= 2 / 3 * EVALUATION and second[SECONDS + "other"] >= EVALUATION
    step = sum(second[SECONDS + part] for part in PARTS)
    assert 3 * step == pytest.approx(second["seconds"] - first["seconds"], rel=0.05)
    assert second["frames_per_s"] * step == pytest.approx(12, rel=0.05) and second["padding"] == 0.25
    assert "mfu" not in second and "tokens_per_s" not in second


def test_the_operations_of_a_step_are_those_of_its_rows(tokens: Path) -> None:
    data = {**lm_tree(tokens)["data"], "pack_ids": 700, "batch_ids": 1000}  # one row of two is short
    family = LMFamily(config.build(LMRecipe, lm_tree(tokens, data=data)))
    batch = family.batch(0)
    module = family.build()
    (loss,) = family.losses(module, batch, 0)
    assert family.shape is not None
    begins = [np.flatnonzero(row == 0).tolist() for row in batch.positions.numpy()]
    lengths = [
        int(n) for row, at in zip(batch.positions, begins, strict=True) for n in np.diff([*at, len(row)])
    ]
    assert len(lengths) > len(batch.ids) and sum(lengths) == batch.ids.numel()
    # Padding goes on counting after the last row, which is what positions cannot tell apart.
    spare = batch.ids.numel() - batch.real
    exact = family.shape.flops(batch.real, batch.squares)
    most = sum(n * family.shape.flops_per_id(n) for n in lengths)
    assert loss.metrics["flops"] == exact
    assert spare > 0 and exact < most


def test_adapters_claim_no_operations(tokens: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("peft")
    recipe = write_recipe(tmp_path / "base.yaml", lm_tree(tokens, train={"steps": 1, "threads": 1}))
    said = trained(caplog, recipe, tmp_path / "base")
    assert " MFU " in said and "MFU -" not in said
    more = ("adapter.rank=2", f"init={tmp_path / 'base/export'}", "weights.alignment=0", "model={}")
    assert "MFU -" in trained(caplog, recipe, tmp_path / "r", *more)
    assert "mfu" not in metrics.read(tmp_path / "r" / "metrics.jsonl")[0]


def test_mfu_is_the_operations_over_the_peak(tokens: Path, tmp_path: Path) -> None:
    tree = lm_tree(tokens, train={"steps": 4, "log_every": 1, "threads": 1})
    recipe = config.build(LMRecipe, tree)
    family = LMFamily(recipe)
    train(family, recipe.train, recipe.optim, tmp_path / "run", progress=False)
    rows = [row for row in metrics.read(tmp_path / "run" / "metrics.jsonl") if "lr" in row]
    assert family.shape is not None and len(rows) == 4
    for step, row in enumerate(rows):
        batch = family.batch(step)
        each = family.shape.flops(batch.real, batch.squares) / batch.real
        assert row["mfu"] == pytest.approx(row["tokens_per_s"] * each / peak(CPU, "fp32"), rel=1e-3, abs=1e-6)
        assert 0 < row["mfu"] < 2


def test_ranks_add_up_and_each_brings_a_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the operations on two devices are the same share of what both could do; a step is their mean."""
    monkeypatch.setattr(meter, "peak", lambda *_: 1e6)
    counts = {**dict.fromkeys(meter.COUNTS, 0.0), "tokens": 8.0, "positions": 10.0, "flops": 1e5}
    one, two = ({**counts, SECONDS + "data": seconds} for seconds in (1.0, 3.0))
    rates = Meter(CPU).rates([one, two])
    assert rates["mfu"] / rates["tokens_per_s"] == pytest.approx(0.1 / 16)
    assert rates["padding"] == pytest.approx(0.2) and rates[SECONDS + "data"] == 2


def test_peaks_are_the_tables_or_measured() -> None:
    assert known_peak("NVIDIA H100 80GB HBM3") == GPUS["h100"].flops
    assert known_peak("NVIDIA GeForce RTX 4090") == GPUS["rtx4090"].flops
    assert known_peak("Tesla T4") is None and known_peak("") is None
    torch.set_num_threads(1)
    a = torch.ones(512, 512)
    took = []
    for _ in range(8):
        began = time.perf_counter()
        a @ a
        took.append(time.perf_counter() - began)
    assert peak(CPU, "fp32") == pytest.approx(2 * 512**3 / min(took), rel=2)  # beside other work
    assert peak(CPU, "fp32") == peak(CPU, "fp32")  # measured once


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpus_own_clock_is_read_without_waiting_for_it() -> None:
    device = torch.device("cuda")
    clock, matrix = Meter(device), torch.ones(4096, 4096, device=device)
    clock.begin()
    for _ in range(200):
        matrix = matrix @ matrix
    clock.lap("compute")
    began = time.perf_counter()
    before = clock.take()[SECONDS + "compute"]
    assert time.perf_counter() - began < 0.01
    torch.cuda.synchronize()
    assert before + clock.take()[SECONDS + "compute"] > 0.01


# Traces -----------------------------------------------------------------------------------------------------


def test_traced_steps_leave_weights_as_they_are(
    tokens: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = write_recipe(tmp_path / "lm.yaml", lm_tree(tokens))
    trained(caplog, recipe, tmp_path / "plain")
    said = trained(caplog, recipe, tmp_path / "traced", "train.profile=2")
    assert not (tmp_path / "plain" / "profile").exists()
    one, two = (load_file(tmp_path / name / "export" / "model.safetensors") for name in ("plain", "traced"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    folder = tmp_path / "traced" / "profile"
    assert f"traced 2 steps: {folder / 'operators.txt'}" in said
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert sum(name.startswith("Optimizer.step#") for name in names) == 2
    table = (folder / "operators.txt").read_text()
    assert "Self CPU" in table and "aten::mm" in table


def test_a_run_that_ends_first_writes_what_was_traced(
    tokens: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = write_recipe(tmp_path / "lm.yaml", lm_tree(tokens))
    said = trained(caplog, recipe, tmp_path / "run", "train.profile=10", "train.steps=5")
    assert "traced 2 steps" in said and (tmp_path / "run" / "profile" / "trace.json").is_file()
    assert "traced" not in trained(caplog, recipe, tmp_path / "short", "train.profile=10", "train.steps=3")


def test_a_trace_that_fails_costs_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: object) -> None:
        raise RuntimeError("CUPTI_ERROR_NOT_INITIALIZED")

    monkeypatch.setattr(torch.profiler, "profile", refused)
    rows = slow(tmp_path, profile=2)
    assert rows[-1]["step"] == 6 and (tmp_path / "export").is_dir()
    assert (
        sum(
            "train.profile gave up, the run goes on without it: CUPTI" in record.getMessage()
            for record in caplog.records
        )
        == 1
    )
    assert not (tmp_path / "profile").exists()


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(UsageError, match="train.profile=-1: at least 0"):
        TrainArgs(profile=-1)
