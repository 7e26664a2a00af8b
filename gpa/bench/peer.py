"""transformers' Trainer as others use it: same network and rows, its own padding, optimiser and loop."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gpa.bench.throughput import Count
from gpa.errors import MissingExtraError

if TYPE_CHECKING:
    from gpa.bench.figures import Told
    from gpa.data.rows import Row
    from gpa.train.arguments import TrainArgs


class Dataset(torch.utils.data.Dataset):
    """Rows that are built when they are asked for, as mappings of lists."""

    def __init__(self, rows: Sequence[Any], build: Callable[[Any], Row]) -> None:
        self.rows, self.build = rows, build

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, n: int) -> dict[str, list[int]]:
        row = self.build(self.rows[n])
        ids = row.ids.tolist()
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": row.labels.tolist()}


class Peer:
    """A Trainer over turns: each call of `turn` goes on with the same network and optimiser."""

    def __init__(
        self, model: nn.Module, tokens: Path, args: TrainArgs, device: torch.device, out: Path
    ) -> None:
        """`tokens` holds the tokenizer; nothing is written to `out`. MissingExtraError without accelerate."""
        try:
            import accelerate  # noqa: F401 (the Trainer needs it and says so less clearly)
        except ImportError as error:
            raise MissingExtraError("accelerate", "train") from error
        from transformers import AutoTokenizer, DataCollatorForSeq2Seq

        self.model, self.args, self.device, self.out = model, args, device, out
        tokenizer = AutoTokenizer.from_pretrained(tokens)
        tokenizer.padding_side = "right"
        self.collator = DataCollatorForSeq2Seq(tokenizer)
        self.masks: list[Tensor] = []  # of every batch it trained on
        self.trainer: Any = None

    def turn(
        self, rows: Sequence[Any], build: Callable[[Any], Row], size: int, warmup: int, told: Told
    ) -> Count:
        """Train on `rows` in their order, `size` a batch; the first `warmup` steps are not counted.

        Time runs from the end of the last of those to the end of the last step, collation included; each
        step is `told`.
        """
        steps = -(-len(rows) // size)
        trainer = self._trainer(size, steps)
        trainer.train_dataset = Dataset(rows, build)
        clock = self._clock(warmup, steps, told)
        trainer.add_callback(clock)
        self.masks.clear()
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result
            trainer.train()
        trainer.remove_callback(clock)
        timed = self.masks[warmup:]
        tokens, positions = sum(int(m.sum()) for m in timed), sum(m.numel() for m in timed)
        return Count(tokens, positions, len(timed), clock.ended - clock.began)

    def _trainer(self, size: int, steps: int) -> Any:
        if self.trainer is None:
            from transformers import PrinterCallback, Trainer, TrainingArguments

            arguments = TrainingArguments(
                output_dir=str(self.out),
                per_device_train_batch_size=size,
                max_steps=steps,
                train_sampling_strategy="sequential",  # the rows are in random order already
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=self.device.type == "cpu",
                bf16=self.args.precision == "bf16",
                fp16=self.args.precision == "fp16",
                dataloader_num_workers=self.args.workers,
                dataloader_pin_memory=self.device.type == "cuda",
                seed=self.args.seed,
            )
            masks = self.masks

            class Counting(Trainer):
                def training_step(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
                    masks.append(inputs["attention_mask"])  # counted when the clock has stopped
                    return super().training_step(model, inputs, *more, **named)

            self.trainer = Counting(model=self.model, args=arguments, data_collator=self.collator)
            self.trainer.remove_callback(PrinterCallback)
        return self.trainer

    def _clock(self, warmup: int, steps: int, told: Told) -> Any:
        from transformers import TrainerCallback

        device = self.device

        class Clock(TrainerCallback):
            began = ended = 0.0

            def on_train_begin(self, *_: Any, **__: Any) -> None:
                self.began = time.perf_counter()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                told(state.global_step, steps)
                if state.global_step in (warmup, steps):
                    now = finished(device)
                    self.began, self.ended = (now, now) if state.global_step == warmup else (self.began, now)

        return Clock()


def finished(device: torch.device) -> float:
    """The time in seconds once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
