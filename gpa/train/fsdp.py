"""FSDP2 (torch.distributed.fsdp.fully_shard): weights, gradients and AdamW's state in shards, by torch alone.

Every entry of a module list, as a transformer's layers, is a group: gathered for its forward and its backward
pass, freed after each. The rest is one more group, whole during a step. Every micro-batch ends by averaging
gradients over ranks, so they too are never whole. https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html

Checkpoints are torch.distributed.checkpoint's in its safetensors format: tensors with their offsets, which
any number of ranks can read, and nothing that loading would execute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from gpa.errors import UsageError
from gpa.train.arguments import PRECISIONS
from gpa.train.collectives import Watch, lost_rank, send
from gpa.train.optim import make_optimizer
from gpa.train.parallel import Update
from gpa.train.sharded import Sharded

if TYPE_CHECKING:
    from gpa.train.families.base import Loss

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, as torch names them


class Fsdp(Sharded):
    """One rank of an FSDP2 run."""

    setting, instead = "train.fsdp", "train.fsdp=false"
    fits = ("fsdp",)

    @property
    def fsdp(self) -> bool:
        return isinstance(self.root, FSDPModule)

    @property
    def precision(self) -> str:
        """That of the weights which ranks gather; the shards stay float32."""
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.gathered)

    def _shard(self, params: Sequence[nn.Parameter]) -> list[Tensor]:
        if self.args.precision == "fp16":
            raise UsageError("train.precision=fp16 with train.fsdp: it has no loss scale; use bf16")
        self.gathered = PRECISIONS[self.args.precision]
        self.group = dist.new_group(backend="gloo")  # a thread that writes must not meet the steps' messages
        send(list(self.module.parameters()))
        names = {id(p): name for name, p in self.module.named_parameters()}
        mesh = init_device_mesh(self.device.type, (self.world,))
        policy = MixedPrecisionPolicy(self.gathered, torch.float32, cast_forward_inputs=False)
        for block in blocks(self.module):
            fully_shard(block, mesh=mesh, mp_policy=policy)
            _gather_on_use(block)
        root: Any = fully_shard(self.root, mesh=mesh, mp_policy=policy)
        root.set_reduce_scatter_unused_params(True)  # or ranks whose rows use other parts would disagree
        root.set_force_sum_reduction_for_comms(self.device.type == "cpu")  # gloo knows no mean
        shards = dict(self.module.named_parameters())
        self.params = {names[id(p)]: shards[names[id(p)]] for p in params}
        optimizer: Any = make_optimizer(list(self.params.values()), self.module, self.optim)
        self.optimizer = optimizer
        for p in self.params.values():  # as at AdamW's first step: a checkpoint is read into it
            self.optimizer.state[p] = {"step": torch.tensor(0.0)}
            self.optimizer.state[p] |= {name: torch.zeros_like(p) for name in MOMENTS}
        return list(self.params.values())

    def _call(self) -> None:
        compute = self.root.compute

        def watched() -> Loss | None:
            names, params = zip(*self.module.named_parameters(), strict=True)
            watch = Watch(params)  # of those that are whole now, so not of the blocks'
            loss = compute() if compute else None
            self._refuse_changes(names, watch)
            return loss

        self.root.compute = watched
        self.root()

    def backward(self, loss: Loss, *, first: bool, last: bool) -> None:
        if first:
            self.optimizer.zero_grad(set_to_none=True)
        with lost_rank():
            (loss.value / self.args.accumulate).backward()
        self.fresh = not last

    def step(self, name: str, rate: float) -> Update:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        grads: list[Any] = [p.grad for p in self.params.values() if p.grad is not None]
        with lost_rank():
            self.watch.agree()
            norm: Any = nn.utils.get_total_norm(grads)
            norm = norm.full_tensor()  # of all ranks: a shard's own would clip each of them differently
        nn.utils.clip_grads_with_norm_(list(self.params.values()), self.optim.clip, norm)
        taken = float(norm) < float("inf") and float(norm) <= (self.optim.skip_above or float("inf"))
        if taken:
            self.optimizer.step()
        return Update(float(norm), taken)

    @property
    def facts(self) -> dict[str, Any]:
        steps = {int(state["step"]) for state in self.optimizer.state.values()}
        return {**super().facts, "updates": max(steps)}

    def _tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, by name: what this rank writes from and reads into."""
        held = reversed(self.module.state_dict(keep_vars=True).items())
        once = {id(tensor): (f"module.{name}", tensor) for name, tensor in held}  # of tied names the first
        tensors = dict(once.values())
        for name, p in self.params.items():
            tensors |= {f"{moment}.{name}": self.optimizer.state[p][moment] for moment in MOMENTS}
        if self.average:
            tensors |= {f"ema.{n}": v for n, v in zip(self.params, self.average.values, strict=True)}
        return {name: tensor.detach() for name, tensor in tensors.items()}

    def _writing(self, folder: Path) -> Callable[[], None]:
        state = self._tensors()
        if self.args.async_save:
            state = {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}

        def write() -> None:
            with _plain_errors():
                target = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
                dcp.save(state, storage_writer=target, process_group=self.group)

        return write

    def _read(self, path: Path, facts: dict[str, Any]) -> None:
        with _plain_errors():
            source = dcp.HuggingFaceStorageReader(str(path))
            dcp.load(self._tensors(), storage_reader=source, process_group=self.group)
        for state in self.optimizer.state.values():
            state["step"].fill_(facts["updates"])

    def _full(self, p: nn.Parameter) -> Tensor:
        shard: Any = p.detach()
        return shard.full_tensor()


def blocks(module: nn.Module, listed: bool = False) -> Iterator[nn.Module]:
    """Entries of the outermost module lists, also of lists in lists, as far as they have parameters."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from blocks(child, listed=True)
        elif not listed:
            yield from blocks(child)
        elif any(True for _ in child.parameters()):
            yield child


def _gather_on_use(block: Any) -> None:
    """A part called outside of its block's forward pass meets whole weights too; backward frees them."""

    def gather(module: nn.Module, args: Any) -> None:
        block.unshard()

    for part in block.modules():
        if part is not block and any(True for _ in part.parameters(recurse=False)):
            part.register_forward_pre_hook(gather)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """torch's CheckpointException is no Exception: here it is one, whose text has the ranks' own errors."""
    try:
        yield
    except dcp.CheckpointException as error:
        raise RuntimeError("; ".join(str(why) for why, _ in error.failures.values())) from error
