"""The headers of recipes that begin with a corpus of the user: each command as printed, training dry-run.

Those of the shipped models are run in test_recipes.py.
"""

import json
import shlex
from pathlib import Path

import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from gpa.cli import main
from gpa.train import command as training
from headers import FROM_A_CORPUS, ROOT, commands
from training import write_manifest

for package in ("datasets", "peft", "sentencepiece"):
    pytest.importorskip(package)


def write_site(folder: Path) -> None:
    """The recipes, a corpus of the clips with a text, and a small codec in the place of EnCodec's weights."""
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "corpus").mkdir()
    manifest = write_manifest(folder / "corpus")
    rows = map(json.loads, manifest.read_text(encoding="utf-8").splitlines())
    spoken = ({**row, "speaker": row["id"], "licence": "CC0-1.0"} for row in rows if row["text"])
    manifest.write_text("".join(json.dumps(row) + "\n" for row in spoken), encoding="utf-8")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_filters": 4, "upsampling_ratios": [8, 8, 10], "num_lstm_layers": 1}
    rate = {"sampling_rate": 16000, "target_bandwidths": [0.125, 0.25], "codebook_size": 32}
    EncodecModel(EncodecConfig(**sizes, **rate)).save_pretrained(folder / "original")


@pytest.mark.parametrize("name", FROM_A_CORPUS)
def test_the_header_runs(
    name: str, replica: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """With the recipe's own sizes: a dry run allocates no weight and writes no file."""
    write_site(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = {"CORPUS": "corpus/manifest.jsonl", "MANIFEST": "corpus/manifest.jsonl"}
    words |= {"encodec_24khz-d7cc33bc.th": "original", "4": "2"}  # a codec of two codebooks
    trained = 0
    for line in commands(ROOT / "recipes" / "gpa" / f"{name}.yaml"):
        argv = [words.get(word, word).replace("PUBLISHED", str(replica)) for word in shlex.split(line)]
        if "train" not in line:
            assert main.main(argv[1:]) == 0, line
            continue
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        start = argv.index("gpa.train" if "gpa.train" in argv else "train")
        training.main([*argv[start + 1 :], "--dry-run"])
        told = capsys.readouterr().out
        assert "kind: gpa" in told and "memory of a process" in told and "of them to be answered" in told
        assert sorted(tmp_path.rglob("*")) == before
        trained += 1
    assert trained
