"""What TRL's DPOTrainer makes of a few pairs of ids, recorded, so that our loss is compared with it anywhere.

    python tests/trl_exchange.py tests/assets/trl-exchange.json

records anew; it needs `pip install trl`.
"""

import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

SIZES = {
    "vocab_size": 23,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 12,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
PAD = 0
PAIRS = (  # prompt, better, worse
    ((1, 5, 9, 2), (11, 12, 13, 3), (11, 14, 14, 14, 15, 3)),
    ((1, 6, 2), (16, 3), (17, 18, 19, 20, 21, 22, 22, 22)),  # the worse one does not stop
    ((1, 7, 8, 9, 10, 2), (20, 19, 18, 17, 16, 3), (20, 3)),
)
SETTINGS = ({"beta": 0.1, "label_smoothing": 0.0}, {"beta": 0.5, "label_smoothing": 0.2})


def network(phase: float) -> Qwen3ForCausalLM:
    """A small network whose weights are a formula, the same with every release of torch."""
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES))
    with torch.no_grad():
        for n, weight in enumerate(model.parameters()):
            wave = torch.sin(torch.arange(weight.numel(), dtype=torch.float64) * 1.7 + n + phase)
            weight.copy_((0.4 * wave + (weight.ndim == 1)).view_as(weight))
    return model.eval()


def gradients(model: torch.nn.Module) -> dict[str, list[float]]:
    """Of every gradient its length, and its product with a wave."""
    found: dict[str, list[float]] = {}
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        grad = weight.grad.double().flatten()
        wave = torch.sin(torch.arange(len(grad), dtype=torch.float64))
        found[name] = [float(grad.norm()), float(grad @ wave)]
    return found


def cases() -> list[dict[str, Any]]:
    """Reference log-probabilities, loss and gradients of PAIRS for each of SETTINGS, by TRL itself."""
    with tempfile.TemporaryDirectory() as folder:
        return [_case(Path(folder), **settings) for settings in SETTINGS]


def _case(folder: Path, beta: float, label_smoothing: float) -> dict[str, Any]:
    """TRL smooths in the corrected form alone, ((1 - s) A - s B) / (1 - 2 s), where A and B are the losses of
    a label and of its opposite. So (1 - s) A + s B is 2 (1 - s) times A less (1 - 2 s) times that.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    words = Tokenizer(models.WordLevel({f"t{n}": n for n in range(SIZES["vocab_size"])}, unk_token="t1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=f"t{PAD}", eos_token="t3")
    rows = [{"prompt": "t5 ", "chosen": "t6 t3", "rejected": "t7 t3"}]  # it asks for texts; ids come below
    weights = [2 * (1 - label_smoothing), 2 * label_smoothing - 1]
    mixed = {"loss_type": ["sigmoid", "robust"], "loss_weights": weights}
    config = DPOConfig(
        str(folder),
        beta=beta,
        label_smoothing=label_smoothing,
        **(mixed if label_smoothing else {}),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
    )
    trainer = DPOTrainer(
        network(0.0), network(1.0), config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    batch = trainer.data_collator([dict(zip(names, map(list, pair), strict=True)) for pair in PAIRS])
    better, worse = trainer.compute_ref_log_probs(trainer.ref_model, batch)
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    reference = torch.stack([better, worse], 1).tolist()
    return {"reference": reference, "loss": float(loss), "gradients": gradients(trainer.model)}


if __name__ == "__main__":
    told = {"trl": metadata.version("trl"), "cases": cases()}
    Path(sys.argv[1]).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
