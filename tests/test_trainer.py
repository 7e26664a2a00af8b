"""Our rows in transformers' own `Trainer`: the same batches give the loss of our loop, step by step."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3ForCausalLM, Trainer

from gpa import config
from gpa.train.families.lm import LMFamily, LMRecipe
from gpa.train.loop import train
from gpa.train.metrics import read
from training import lm_tree, write_tokens

pytest.importorskip("sentencepiece")
pytest.importorskip("accelerate")
PAGE = (Path(__file__).parent.parent / "docs" / "huggingface.md").read_text(encoding="utf-8")
STEPS = 4
LR = 1e-2


def page_trainer(family: LMFamily, recipe: LMRecipe) -> Callable[..., Trainer]:
    """What docs/huggingface.md defines, which keeps the loss of every step in `seen`."""
    (block,) = re.findall(r"^```python\n(import torch\n.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    made: dict[str, Any] = {"family": family, "recipe": recipe}
    exec(compile(block, "huggingface.md", "exec"), made)
    made["Trainer"] = Losses
    return made["trainer"]


class Losses(Trainer):
    """Keeps what every step says."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        found = super().compute_loss(*args, **kwargs)
        self.seen = [*getattr(self, "seen", []), found.item()]
        return found


@pytest.mark.parametrize("pack", [0, 400])
def test_our_rows_in_the_plain_trainer_give_our_loss(pack: int, tmp_path: Path) -> None:
    """One task, so that ours is the mean over its ids, as theirs; plain AdamW at one rate on both sides."""
    tree = lm_tree(write_tokens(tmp_path / "tokens"))
    tree["data"]["pack_ids"] = pack
    tree |= {"tasks": {"tts": {"weight": 1.0}}, "weights": {"alignment": 0.0}}
    tree["train"] = {"steps": STEPS, "log_every": 1, "eval_every": STEPS, "threads": 1, "attention": "sdpa"}
    tree["optim"] = {"lr": LR, "lr_end": 1.0, "warmup": 0, "beta2": 0.999, "weight_decay": 0.0}
    recipe = config.build(LMRecipe, tree)
    family = LMFamily(recipe)
    torch.manual_seed(recipe.train.seed)
    start = family.build()
    path = tmp_path / "start"
    start.save_pretrained(path)

    train(family, recipe.train, recipe.optim, tmp_path / "run", progress=False)
    ours = [row["tts"] for row in read(tmp_path / "run" / "metrics.jsonl") if "tts" in row]

    theirs = page_trainer(family, recipe)(
        Qwen3ForCausalLM.from_pretrained(path), output_dir=str(tmp_path / "theirs"), learning_rate=LR,
        lr_scheduler_type="constant", use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    theirs.train()
    assert len(ours) == STEPS and ours == pytest.approx(theirs.seen, rel=2e-5)
    assert ours[-1] < ours[0] - 0.1  # it learnt
