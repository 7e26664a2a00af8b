"""`gpa bench train`: every variant runs and takes the same rows; ratios and JSON. No time is asserted."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import RATE, speechlike
from gpa import audio, config
from gpa.bench import figures, throughput
from gpa.bench.peer import Dataset
from gpa.bench.throughput import (
    LIVE,
    PACKED,
    PADDED,
    RUN,
    SHARDED,
    SORTED,
    TRACKED,
    TRAINER,
    Count,
    Result,
)
from gpa.bench.training import Settings, measure, peak, read_recipe
from gpa.bench.variants import Given, Later, Maker, Rows, Sound
from gpa.cli import main
from gpa.data import sequences, token_folder
from gpa.data.encoding import Encoder
from gpa.data.manifest import read_jsonl
from gpa.data.rows import LMBatch
from gpa.errors import CheckpointError, DataError, UsageError
from gpa.models.gpa import GPA
from tiny_model import write_keen_model
from training import lm_tree, write_recipe, write_tokens

pytest.importorskip("sentencepiece")
pytest.importorskip("accelerate")
CPU = torch.device("cpu")
CLIPS = 6
BRIEF = ("--rounds", "1", "--steps", "1", "--warmup", "0", "--rows", "3", "--threads", "1")


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_keen_model(tiny, tmp_path_factory.mktemp("keen") / "tiny")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips from one to over two seconds, one of them held out, with its manifest."""
    folder, rows = tmp_path_factory.mktemp("sounds"), []
    for n in range(CLIPS):
        audio.save(folder / f"{n}.wav", speechlike(1.0 + 0.25 * n, seed=n), RATE)
        split = "dev" if n == CLIPS - 1 else "train"
        row = {
            "id": f"c{n}",
            "path": f"{n}.wav",
            "text": "hello there",
            "speaker": "ab"[n % 2],
            "split": split,
        }
        rows.append(json.dumps(row) + "\n")
    (folder / "manifest.jsonl").write_text("".join(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokens(model: Path, sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ids of these clips, made once by the model's codec."""
    folder = tmp_path_factory.mktemp("ids")
    encoder = Encoder(GPA.from_pretrained(model, device="cpu").processor)
    rows = encoder.rows(list(read_jsonl(sounds / "manifest.jsonl").rows()))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, folder / name)
    spec, vocab = encoder.processor.codec.spec, encoder.processor.vocab
    about = {"kind": token_folder.KIND, "version": token_folder.VERSION, "format": "instruct"}
    about |= {"codec": {"frame_rate": spec.frame_rate}, "fingerprints": encoder.processor.fingerprints()}
    sequences.write(folder, rows, about | {"vocabulary": token_folder.layout(vocab)})
    return folder


@pytest.fixture(scope="module")
def recipe(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = lm_tree(tokens)
    tree["data"] |= {"batch_ids": 400, "pack_ids": 200}
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml", tree)


@pytest.fixture(scope="module")
def rows(recipe: Path, tokens: Path, model: Path, sounds: Path) -> Rows:
    family = Given(read_recipe(Settings(recipe))[0])
    return Rows(family, Sound.open(sounds, str(model), tokens, device=CPU))


def found(makers: list[Maker], pad: int) -> Counter[tuple[int, ...]]:
    """The rows in batches: ids between one position 0 and the next, without padding."""
    rows: Counter[tuple[int, ...]] = Counter()
    for maker in makers:
        batch = maker()
        for ids, positions in zip(batch.ids.tolist(), batch.positions.tolist(), strict=True):
            starts = [*(n for n, at in enumerate(positions) if at == 0), len(ids)]
            for begin, end in zip(starts, starts[1:], strict=False):
                row = ids[begin:end]
                while row[-1] == pad:
                    row.pop()
                rows[tuple(row)] += 1
    return rows


def equal(a: LMBatch, b: LMBatch) -> bool:
    names = ("ids", "labels", "task", "positions", "look")
    return a.real == b.real and all(torch.equal(getattr(a, n), getattr(b, n)) for n in names)


def test_variants_have_the_same_rows(rows: Rows) -> None:
    drawn, pad = rows.draw(20, 0, 1), rows.family.vocab.control["pad"]
    assert drawn == rows.draw(20, 0, 1) != rows.draw(20, 0, 2)
    wanted = Counter(tuple(rows.row(pick).ids.tolist()) for pick, _ in drawn)
    assert len(wanted) > 5
    assert found(rows.padded(drawn, 3), pad) == wanted
    assert found(rows.padded(drawn, 3, live=True), pad) == wanted
    assert found(rows.packed(drawn), pad) == found(rows.packed(drawn, pack=False), pad) == wanted
    dataset = Dataset([pick for pick, _ in drawn], rows.row)
    assert Counter(tuple(dataset[n]["input_ids"]) for n in range(len(dataset))) == wanted


def test_live_codes_are_the_stored_ones(rows: Rows) -> None:
    drawn = rows.draw(9, 3)
    pairs = zip(rows.padded(drawn, 3, live=True), rows.padded(drawn, 3), strict=True)
    assert all(equal(live(), cached()) for live, cached in pairs)


def test_padded_batches_are_rows_as_they_come(rows: Rows) -> None:
    """No bucketing: each batch holds the next few rows, padded on the right to its longest."""
    drawn = rows.draw(7, 0)
    batches = [maker() for maker in rows.padded(drawn, 3)]
    assert [len(batch.ids) for batch in batches] == [3, 3, 1]
    lengths = [len(rows.row(pick).ids) for pick, _ in drawn]
    for n, batch in enumerate(batches):
        assert batch.ids.shape[1] == max(lengths[3 * n : 3 * n + 3])
        assert batch.ids[0, : lengths[3 * n]].tolist() == rows.row(drawn[3 * n][0]).ids.tolist()


def test_packed_batches_are_the_recipes(rows: Rows) -> None:
    data = rows.family.recipe.data
    for maker in rows.packed(rows.draw(20, 0)):
        batch = maker()
        assert batch.ids.shape[1] <= data.pack_ids and batch.real <= data.batch_ids


def test_the_codec_makes_what_is_read_and_each_row_anew(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recognition needs no voice; a clip that serves two rows is encoded twice, as live training does."""
    assert rows.live is not None
    codec, heard = rows.live.clips.sound.codec, []  # type: ignore[attr-defined]

    def listen(name: str) -> Any:
        real = getattr(codec, name)
        return lambda clip: heard.append(name) or real(clip)

    for name in ("codes", "voice_codes"):
        monkeypatch.setattr(codec, name, listen(name))
    picks = {pick.task: pick for pick, _ in rows.draw(60, 0)}
    for pick in (picks["asr"], picks["asr"], picks["tts"], picks["vc"]):
        rows.live_row(pick)
    assert Counter(heard) == {"codes": 4, "voice_codes": 2}
    Later(lambda: pytest.fail("nobody has read it"))


def test_every_variant_runs_on_equal_tokens(recipe: Path, sounds: Path, model: Path) -> None:
    settings = Settings(
        recipe, audio=sounds, model=str(model), rounds=2, steps=3, warmup=1, rows=4, threads=1
    )
    result = measure(settings)
    assert torch.get_num_threads() == 1
    assert list(result.counts) == [LIVE, PADDED, PACKED, SORTED, TRAINER] and not result.skipped
    for live, padded, packed, by_length, trainer in zip(*result.counts.values(), strict=True):
        assert live.tokens == padded.tokens == packed.tokens == by_length.tokens == trainer.tokens
        assert live.positions == padded.positions == trainer.positions
        assert padded.positions >= by_length.positions and padded.positions >= packed.positions
        assert live.steps == padded.steps == trainer.steps == 3 and packed.steps == by_length.steps > 0
        assert all(count.seconds > 0 for count in (live, padded, packed, by_length, trainer))
    tree = throughput.tree(result)
    share = {row["name"]: row["padding"] for row in tree["variants"]}
    assert 0 <= share[PACKED] <= share[PADDED] == share[LIVE] == share[TRAINER] < 1
    assert result.flops_per_token > 6 * 0.5 * tree["parameters"] and result.peak is None


def test_command_prints_one_json_object(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "train", str(recipe), "train.workers=1", *BRIEF, "--json"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert "--audio" in found["skipped"][LIVE] and "Trainer" in err
    assert [row["name"] for row in found["variants"]] == [PADDED, PACKED, SORTED, TRAINER]
    keys = {"bench", "recipe", "overrides", "tokens", "audio", "device", "threads", "precision", "torch"}
    keys |= {"workers"}
    keys |= {"transformers", "rounds", "steps", "warmup", "rows", "mean_length", "pack_ids", "batch_ids"}
    assert set(found) == keys | {"parameters", "variants", "skipped"}
    keys = {"name", "title", "tokens_per_s", "padding", "seconds_per_step", "flops_per_s", "mfu", "over_live"}
    for row in found["variants"]:
        assert set(row) == keys | {"over_trainer", "over_run", "rounds"}
        assert row["over_live"] is None and set(row["over_trainer"]) == {"ratio", "low", "high"}
        assert [set(turn) for turn in row["rounds"]] == [{"tokens", "positions", "steps", "seconds"}]


def test_command_prints_a_table(
    recipe: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    assert main.main(["bench", "train", str(recipe), *BRIEF]) == 0
    out, _ = capfd.readouterr()
    assert "tokens/s" in out and "(b) cached ids, padded" in out and "(c) cached ids, packed" in out
    assert "pip install 'gpa-audio[train]'" in out and "left out: it needs the recordings" in out


def test_ratios_and_rates_are_of_what_was_counted() -> None:
    slow = [Count(100, 200, 2, 10.0), Count(100, 200, 2, 20.0)]
    fast = [Count(100, 125, 1, 2.0), Count(100, 125, 1, 1.0)]
    about = {"parameters": 7}
    tree = throughput.tree(Result(about, {LIVE: slow, PACKED: fast}, {TRAINER: "why"}, 1e3, peak=1e5))
    live, packed = tree["variants"]
    assert (packed["tokens_per_s"], packed["padding"], packed["seconds_per_step"]) == pytest.approx(
        (200 / 3, 0.2, 1.5)
    )
    assert packed["over_live"] == pytest.approx({"ratio": 10.0, "low": 5.0, "high": 20.0})
    assert live["over_live"] == {"ratio": 1.0, "low": 1.0, "high": 1.0} and packed["over_trainer"] is None
    assert packed["mfu"] == pytest.approx(200 / 3 * 1e3 / 1e5)
    assert tree["skipped"] == {TRAINER: "why"} and tree["parameters"] == 7


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["bench"], ["bench", "train"]):
        with pytest.raises(SystemExit) as stopped:
            main.main([*words, "--help"])
        shown = capsys.readouterr().out
        assert stopped.value.code == 0 and "examples:" in shown and "gpa bench train" in shown


def test_a_shape_may_have_more_ids_than_the_tokens(recipe: Path) -> None:
    family = Given(read_recipe(Settings(recipe))[0], vocab_size=900)
    model: Any = family.build()
    assert model.config.vocab_size == len(model.lm_head.weight) == 900 > family.vocab.size
    with pytest.raises(UsageError, match="vocab_size"):
        Given(read_recipe(Settings(recipe))[0], vocab_size=10)


def test_recipe_is_for_one_process_and_packs(tokens: Path, tmp_path: Path) -> None:
    tree = lm_tree(
        Path("elsewhere"), codec="nowhere", model={**lm_tree(tokens)["model"], "vocab_size": 70_000}
    )
    tree["train"] |= {"accumulate": 4, "zero": 1, "world": 8}
    path = write_recipe(tmp_path / "large.yaml", tree)
    recipe, vocab_size = read_recipe(Settings(path, tokens=tokens))
    assert (recipe.train.accumulate, recipe.train.zero, recipe.train.world) == (1, 0, 0)
    assert recipe.data.tokens == str(tokens) and recipe.data.pack_ids == recipe.data.max_ids
    assert recipe.codec == "" and vocab_size == 70_000 and config.load_yaml(path)["codec"] == "nowhere"


def test_what_is_missing_is_said(
    recipe: Path, tokens: Path, model: Path, sounds: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="not prepared"):
        measure(Settings(recipe, tokens=tmp_path))
    with pytest.raises(DataError, match="no such manifest"):
        measure(Settings(recipe, audio=tmp_path / "none", model=str(model)))
    audio.save(tmp_path / "stranger.wav", speechlike(1.0), RATE)
    with pytest.raises(DataError, match="id and split"):
        measure(Settings(recipe, audio=tmp_path, model=str(model)))
    other = write_tokens(tmp_path / "other")
    with pytest.raises(CheckpointError, match="another codec"):
        measure(Settings(recipe, tokens=other, audio=sounds, model=str(model)))
    with pytest.raises(UsageError, match="kind 'codec'"):
        measure(Settings(write_recipe(tmp_path / "codec.yaml", {"kind": "codec"})))


@pytest.mark.parametrize("words", [("--rounds", "0"), ("--rows", "0"), ("--warmup", "-1")])
def test_wrong_counts_are_refused(recipe: Path, words: tuple[str, str]) -> None:
    assert main.main(["bench", "train", str(recipe), *words]) == UsageError.exit_code


def test_a_launcher_is_refused(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="one process"):
        measure(Settings(recipe))


def test_peak_is_known_for_planned_gpus_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA GeForce RTX 4090")
    assert peak(torch.device("cuda"), "bf16") == 165e12
    assert peak(torch.device("cuda"), "fp32") is None and peak(CPU, "bf16") is None


def test_a_measurement_says_how_far_it_is(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the rows are read, within every turn of every variant, the Trainer's too, and after each."""
    monkeypatch.setattr(figures, "SAY_EVERY", 0.0)
    said: list[str] = []
    measure(Settings(recipe, rounds=1, steps=2, warmup=1, rows=3, threads=1), said.append)
    assert said[0].endswith(f"reading {read_recipe(Settings(recipe))[0].data.tokens}")
    for name in (PADDED, PACKED, SORTED, TRAINER):
        head = f"round 1/1  {throughput.TITLES[name]}: "
        mine = [line.removeprefix(head) for line in said if line.startswith(head)]
        steps = len(mine) - 1
        assert mine[:-1] == [f"step {n} of {steps}" for n in range(1, steps + 1)] and steps > 1
        assert mine[-1].endswith(" tokens/s")


def test_a_measurement_is_silent_for_seconds(recipe: Path) -> None:
    said: list[str] = []
    measure(Settings(recipe, rounds=1, steps=1, warmup=0, rows=3, threads=1), said.append)
    assert not [line for line in said if "step" in line]


def test_whole_runs_stand_beside_each_other(recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With a tracker the batches are those of the plain run; all three have real steps behind them."""
    pytest.importorskip("tensorboard")
    words = ["bench", "train", str(recipe), "--rounds", "2", "--steps", "2", "--warmup", "1", "--rows", "3"]
    assert main.main([*words, "--runs", "--threads", "1", "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capfd.readouterr().out)["variants"]}
    plain, tracked, streamed = (found[name]["rounds"] for name in (RUN, TRACKED, SHARDED))
    assert [(a["tokens"], a["positions"]) for a in plain] == [(a["tokens"], a["positions"]) for a in tracked]
    assert all(each["steps"] == 2 and each["seconds"] > 0 and each["tokens"] > 0 for each in streamed)
    assert found[RUN]["over_run"] == {"ratio": 1.0, "low": 1.0, "high": 1.0}
    assert found[TRACKED]["over_run"]["ratio"] > 0
