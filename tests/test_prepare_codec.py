"""`gpa prepare --codec`: a trained codec without a language model gives ids, letters' times and copies."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpa import audio, config
from gpa.cli import main
from gpa.codec import trained
from gpa.codec.bicodec import BiCodec
from gpa.codec.losses import LetterHead
from gpa.data import feature_cache
from gpa.data.alignment import align
from gpa.data.augmented_copies import AugmentedCopies
from gpa.errors import CheckpointError, DataError, UsageError
from gpa.models.gpa import GPA
from gpa.text.letters import letter_targets
from gpa.train import command
from gpa.train.families.lm import LMFamily, LMRecipe
from training import (
    CODEC,
    MORE_TEXT,
    codec_tree,
    lm_tree,
    plain,
    read_rows,
    write_encoder,
    write_manifest,
    write_recipe,
    write_tokens,
)

pytestmark = pytest.mark.usefixtures("threads_kept")
pytest.importorskip("datasets")
pytest.importorskip("sentencepiece")
LOOSE = "--licence CC0-1.0 --max-rejected 1 --max-rate 99 --max-dense-rate 99 --min-rate 0".split()
ASKED = ["--align", "--copies", "2", "--shard-rows", "4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips, and runs/codec, a codec that was trained on them for a few steps."""
    root = tmp_path_factory.mktemp("data")
    manifest, encoder = write_manifest(root), write_encoder(root / "encoder")
    feature_cache.main([str(manifest), "--encoder", str(encoder), "-o", str(root / "cache")])
    recipe = write_recipe(root / "codec.yaml", codec_tree(root / "cache"))
    command.main([str(recipe), "--run", str(root / "runs" / "codec"), "train.steps=1"])
    (root / "more.txt").write_text("\n".join(MORE_TEXT) + "\n", encoding="utf-8")
    return root


def prepare(data: Path, out: Path, *words: str, codec: Path | None = None) -> int:
    export = codec or data / "runs" / "codec" / "export"
    manifest = str(data / "manifest.jsonl")
    seen = ["--seen-speakers", "dev"]
    return main.main(["prepare", manifest, "--codec", str(export), *LOOSE, *seen, *words, "-o", str(out)])


def wording(data: Path) -> list[str]:
    return ["--text", str(data / "more.txt"), "--vocab-size", "300"]


@pytest.fixture(scope="module")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "tokens"
    assert prepare(data, out, *wording(data), *ASKED) == 0
    return out


def test_ids_letters_and_copies_are_the_codecs(data: Path, prepared: Path) -> None:
    export = data / "runs" / "codec" / "export"
    codec, head = BiCodec.from_pretrained(export), LetterHead(CODEC["quantizer"]["input_dim"])
    head.load_state_dict(trained.read_heads(export)["letters"])
    copy = AugmentedCopies(codec.features)  # type: ignore[arg-type]
    rows = read_rows(prepared)
    assert [row["id"] for row in rows] == [str(n) for n in range(6)]
    for n, row in enumerate(rows):
        wav = audio.load(data / f"{n}.wav", 16_000)
        assert row["semantic"] == codec.semantic_tokens((wav, 16_000)).tolist()
        assert row["global"] == codec.global_tokens((wav, 16_000)).tolist()
        with torch.inference_mode():
            latents = codec.model.quantizer.decode(torch.tensor([row["semantic"]]))
            best = align(head(latents)[0].log_softmax(-1).numpy(), letter_targets(row["text"]))
            padded = np.pad(wav, (0, -len(wav) % 640))
            features = [copy(padded, number)[None] for number in (2 * n, 2 * n + 1)]
            copies = [codec.model.encode_semantic(each)[0].tolist() for each in features]
        assert row["letters"] == ([] if not row["text"] or best is None else best.tolist())
        assert row["copies"] == (copies if row["split"].startswith("train") else [])
    assert sum(bool(row["letters"]) for row in rows) == 5  # one has no text
    assert any(row["copies"] and row["copies"][0] != row["copies"][1] for row in rows)  # else it shows little
    about = json.loads((prepared / "prepared.json").read_text())
    assert about["model"] == str(export.resolve()) and about["fingerprints"]["codec"] == codec.fingerprint()
    assert about["extras"] == {"align": True, "copies": 2, "noise": "", "rooms": "", "silence": False}
    assert not (prepared / ".work").exists()


def test_a_killed_run_keeps_its_tokenizer(data: Path, prepared: Path, tmp_path: Path) -> None:
    """Its first shard and tokenizer are there, the rest is made: the same bytes as in one go."""
    out = tmp_path / "tokens"
    words = ["prepare", str(data / "manifest.jsonl"), "--codec", str(data / "runs" / "codec" / "export")]
    words += [*LOOSE, "--seen-speakers", "dev", *wording(data), *ASKED, "-o", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "gpa", *words], stderr=subprocess.DEVNULL)
    while not list(out.glob("*.arrow")) and process.poll() is None:
        pass
    process.kill()
    process.wait()
    assert (out / ".work" / "text" / "tokenizer.json").is_file()
    assert prepare(data, out, *wording(data), *ASKED) == 0
    assert prepare(data, out, *wording(data), *ASKED) == 0  # nothing is left to do
    files = {path.name for path in prepared.iterdir()}
    assert {path.name for path in out.iterdir()} == files
    assert all((out / name).read_bytes() == (prepared / name).read_bytes() for name in files)


def test_a_model_comes_of_it(prepared: Path, data: Path, tmp_path: Path) -> None:
    """With the alignment loss, and a checkpoint that holds the codec which made the ids."""
    tree = lm_tree(prepared, export="whole")
    tree["data"]["max_ids"] = 300
    command.main([str(write_recipe(tmp_path / "lm.yaml", tree)), "--run", str(tmp_path / "run")])
    model = GPA.from_pretrained(tmp_path / "run" / "export")
    codec = BiCodec.from_pretrained(data / "runs" / "codec" / "export")
    assert model.codec.fingerprint() == codec.fingerprint()
    assert any(row.look.any() for row in _rows(tree, "tts"))


def _rows(tree: dict[str, Any], task: str) -> list[Any]:
    family = LMFamily(config.build(LMRecipe, tree))
    return [family.train_rows.row(task, i, np.random.default_rng(0)) for t, i, _ in family.items if t == task]


def test_the_tokenizer_of_another_folder(data: Path, prepared: Path, tmp_path: Path) -> None:
    assert prepare(data, tmp_path / "like", "--tokenizer", str(prepared)) == 0
    taken, rows = (tmp_path / "like" / "tokenizer.json").read_bytes(), read_rows(tmp_path / "like")
    assert taken == (prepared / "tokenizer.json").read_bytes()
    assert not any({"letters", "copies"} & set(row) for row in rows)
    assert [row["semantic"] for row in rows] == [row["semantic"] for row in read_rows(prepared)]
    other = write_tokens(tmp_path / "other", codes=29)
    assert prepare(data, tmp_path / "odd", "--tokenizer", str(other)) == CheckpointError.exit_code


def test_several_folders_are_trained_on_as_one(data: Path, prepared: Path, tmp_path: Path) -> None:
    """A list under data.tokens or data.replay is what one folder with all their rows would be."""
    more = tmp_path / "more"
    assert prepare(data, more, "--tokenizer", str(prepared)) == 0
    tree = lm_tree(prepared)
    tree["data"] |= {"max_ids": 300, "tokens": [str(prepared), str(more)]}
    family = LMFamily(config.build(LMRecipe, tree))
    rows = [row for row in read_rows(prepared) if row["split"].startswith("train")]
    found = [plain(clip) for clip in family.train_rows.clips]
    assert len(family.clips) == 12 and len(found) == 10 and found[:5] == rows
    assert [clip["semantic"] for clip in found[5:]] == [row["semantic"] for row in rows]
    assert len(family.dev.clips) == 2
    tree["data"] |= {"tokens": str(prepared), "replay": [str(more), str(more)], "replay_share": 0.5}
    family = LMFamily(config.build(LMRecipe, tree))
    assert len(family.train_rows.clips) == 15 and len(family.clips) == 6
    tree["data"] |= {"tokens": [str(prepared), str(write_tokens(tmp_path / "random"))], "replay": ""}
    with pytest.raises(CheckpointError, match="random: its ids are"):
        LMFamily(config.build(LMRecipe, tree))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--align"], "letters are timed by heads.safetensors"),
        (["--copies", "-1"], "--copies -1"),
        (["--check-text"], "--check-text needs a model"),
    ],
)
def test_what_a_codec_alone_cannot_give_is_said(
    words: list[str],
    said: str,
    data: Path,
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in (data / "runs" / "codec" / "export").iterdir():
        if path.name != trained.HEADS:
            (bare / path.name).symlink_to(path)
    like = ["--tokenizer", str(prepared)]
    assert prepare(data, tmp_path / "out", *like, *words, codec=bare) in (
        DataError.exit_code,
        UsageError.exit_code,
    )
    assert said in capsys.readouterr().err
