"""What trains in a fine-tune: all weights, or a low-rank adapter beside frozen ones (LoRA, Hu et al. 2021).

Layers and files are peft's, put into the network by peft itself: what is written here is loaded by
`PeftModel.from_pretrained`. transformers' own `add_adapter` is not asked, as it refuses versions of peft.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from gpa.errors import MissingExtraError, UsageError
from gpa.models.gpa.modeling_gpa import ADAPTER, Backbone

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FOLDER = "adapter"  # inside an exported model
WRAPPED = "base_model.model."  # where the files of peft say that the network is


@dataclass(frozen=True)
class AdapterArgs:
    """A low-rank adapter: its share of a layer's output is `alpha / rank` times the product of its two
    matrices.
    """

    rank: int = 0  # 0: no adapter, all weights train
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = PROJECTIONS

    def __post_init__(self) -> None:
        if self.rank < 0 or not 0 <= self.dropout < 1:
            raise UsageError("adapter.rank is at least 0, adapter.dropout at least 0 and below 1")


def attach(model: Backbone, args: AdapterArgs) -> None:
    """Put a fresh adapter into the network, which changes nothing yet; everything else is frozen.

    UsageError for targets that the network does not have.
    """
    known = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if strange := sorted(set(args.targets) - known):
        raise UsageError(f"adapter.targets: the network has no {', '.join(strange)}")
    settings = _peft().LoraConfig(
        r=args.rank,
        lora_alpha=args.alpha,
        lora_dropout=args.dropout,
        target_modules=list(args.targets),
        task_type="CAUSAL_LM",
    )
    _peft().inject_adapter_in_model(settings, model)


def save(model: Backbone, init: str | Path, folder: Path) -> None:
    """Write the adapter of a network that `attach` changed, alone and as `PeftModel.save_pretrained` does.

    `init` is the network that it belongs to, which the files name.
    """
    settings: Any = model.peft_config[ADAPTER]
    settings = replace(settings, base_model_name_or_path=str(init), inference_mode=True)
    settings.save_pretrained(str(folder))
    state = _peft().get_peft_model_state_dict(model, adapter_name=ADAPTER)
    state = {f"{WRAPPED}{name}": tensor.contiguous().cpu() for name, tensor in state.items()}
    save_file(state, folder / _peft().utils.SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("peft", "finetune") from error
    return peft
