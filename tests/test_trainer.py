"""Our rows in transformers' own `Trainer`: the same batches give the loss of our loop, step by step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3ForCausalLM, Trainer, TrainingArguments

from gpa import config
from gpa.train.families.lm import LMFamily, LMRecipe
from gpa.train.loop import train
from gpa.train.metrics import read
from training import lm_tree, write_tokens

pytest.importorskip("sentencepiece")
pytest.importorskip("accelerate")
STEPS = 4
LR = 1e-2


class Batches(torch.utils.data.IterableDataset):
    """The batches of a family as docs/huggingface.md makes them."""

    def __init__(self, family: LMFamily) -> None:
        self.family = family

    def __iter__(self) -> Any:
        for step in range(STEPS):
            batch = self.family.batch(step)
            yield {"input_ids": batch.ids, "labels": batch.labels, "position_ids": batch.positions}


class Losses(Trainer):
    """Keeps what every step says."""

    seen: list[float]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        found = super().compute_loss(*args, **kwargs)
        self.seen.append(found.item())
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

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "theirs"), max_steps=STEPS, learning_rate=LR, lr_scheduler_type="constant",
        use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        per_device_train_batch_size=1,
    )  # fmt: skip
    model = Qwen3ForCausalLM.from_pretrained(path)
    trainer = Losses(model, arguments, train_dataset=Batches(family), data_collator=lambda rows: rows[0])
    trainer.seen = []
    trainer.train()
    assert len(ours) == STEPS and ours == pytest.approx(trainer.seen, rel=2e-5)
    assert ours[-1] < ours[0] - 0.1  # it learnt
