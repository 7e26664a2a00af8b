"""Plans of `gpa.compose` run on the network: names become tensors, the branches of a step become one batch.

B utterances   C latent channels   T target frames   P prompt frames   n branches
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gpa.compose import Branch, Plan, composed
from gpa.errors import UsageError
from gpa.models.speechop.diffusion_speechop import inpaint
from gpa.models.speechop.layers_speechop import Text, TextKeys
from gpa.models.speechop.modeling_speechop import Conditions, Context, Latents, SpeechOpModel
from gpa.models.speechop.sampling_speechop import SeededNoise, ddim, nodes, ode_dpmpp_2m, sde_dpmpp_2m

if TYPE_CHECKING:
    from gpa.models.speechop.configuration_speechop import Sampler

V = TypeVar("V")


@dataclass(frozen=True)
class Inputs:
    """A batch of utterances and what the names in a plan stand for.

    `mask` (B, T) bool: the frames to be made. `texts`, `sources` (B, C + H, T) and `prompts` by name. For
    editing, `known` holds latents whose marked frames stay as they are, in every branch.
    """

    mask: Tensor
    texts: Mapping[Hashable, Text] = field(default_factory=dict)
    sources: Mapping[Hashable, Tensor] = field(default_factory=dict)
    prompts: Mapping[Hashable, Latents] = field(default_factory=dict)
    known: Latents | None = None


class Evaluator:
    """Evaluates the branches of a plan: encoders once a branch, the network once a step for all together."""

    def __init__(self, model: SpeechOpModel, inputs: Inputs) -> None:
        self.model, self.inputs = model, inputs
        self._contexts: dict[Branch, Context] = {}
        self._joined: dict[tuple[Branch, ...], Context] = {}

    def __call__(self, branches: Sequence[Branch], z: Tensor, lam: float) -> Sequence[Tensor]:
        """Velocities (B, C, T) of the branches, in order."""
        n, known = len(branches), self.inputs.known
        level = torch.full((n * len(z),), lam, device=z.device, dtype=z.dtype)
        clean = None if known is None else known.mask.repeat(n, 1)
        return self.model.denoise(z.repeat(n, 1, 1), level, self._context(tuple(branches)), clean).chunk(n)

    def _context(self, branches: tuple[Branch, ...]) -> Context:
        """The branches' contexts as one batch; a plan has few sets of branches: gates closed or open."""
        if branches not in self._joined:
            for branch in branches:
                if branch not in self._contexts:
                    self._contexts[branch] = self.model.condition(self._conditions(branch))
            self._joined[branches] = join([self._contexts[branch] for branch in branches])
        return self._joined[branches]

    def _conditions(self, branch: Branch) -> Conditions:
        inputs, slots = self.inputs, dict(branch.given)
        tables: dict[str, Mapping[Hashable, Any]] = {
            "text": inputs.texts,
            "source": inputs.sources,
            "prompt": inputs.prompts,
        }
        if strange := sorted(set(slots) - set(tables)):
            raise UsageError(f"{branch.task}: a branch has no slots {strange}; known: {sorted(tables)}")
        found = {slot: _find(tables[slot], slot, name) for slot, name in slots.items()}
        index = self.model.config.tasks.index(branch.task)
        task = torch.full((len(inputs.mask),), index, device=inputs.mask.device)
        return Conditions(task, inputs.mask, **found)


def _find(table: Mapping[Hashable, V], slot: str, name: Hashable) -> V:
    if name not in table:
        raise UsageError(f"the plan names {slot} {name!r}, the inputs have {sorted(map(str, table))}")
    return table[name]


def join(contexts: Sequence[Context]) -> Context:
    """Several contexts as the rows of one: prompts padded at the left, texts at the right, both masked."""
    if len(contexts) == 1:
        return contexts[0]
    frames = max(c.mask.shape[1] for c in contexts)
    places = max(c.text_mask.shape[1] for c in contexts)
    left = [frames - c.mask.shape[1] for c in contexts]
    right = [places - c.text_mask.shape[1] for c in contexts]
    return Context(
        task=torch.cat([c.task for c in contexts]),
        prompt=torch.cat([F.pad(c.prompt, (n, 0)) for c, n in zip(contexts, left, strict=True)]),
        mask=torch.cat([F.pad(c.mask, (n, 0)) for c, n in zip(contexts, left, strict=True)]),
        source=torch.cat([F.pad(c.source, (0, 0, n, 0)) for c, n in zip(contexts, left, strict=True)]),
        text=tuple(_join_keys(layer, right) for layer in zip(*(c.text for c in contexts), strict=True)),
        text_mask=torch.cat([F.pad(c.text_mask, (0, n)) for c, n in zip(contexts, right, strict=True)]),
    )


def _join_keys(parts: Sequence[TextKeys], right: Sequence[int]) -> TextKeys:
    """One layer's keys and values of all contexts."""
    key = torch.cat([F.pad(part.key, (0, 0, 0, n)) for part, n in zip(parts, right, strict=True)])
    value = torch.cat([F.pad(part.value, (0, 0, 0, n)) for part, n in zip(parts, right, strict=True)])
    return TextKeys(key, value)


@torch.no_grad()
def sample(
    model: SpeechOpModel, plan: Plan, inputs: Inputs, seeds: Sequence[int], settings: Sampler
) -> Tensor:
    """Clean latents (B, C, T) of a plan, zero at padding; a row depends on its seed, not on other rows."""
    lengths = [int(n) for n in inputs.mask.sum(1)]
    noise = SeededNoise(seeds, lengths, model.config.latent.channels, inputs.mask.device)
    denoise = composed(plan, Evaluator(model, inputs))
    known = inputs.known
    hold = None if known is None else (lambda z: inpaint(z, known.values, known.mask))
    low, high = settings.lambda_range
    levels = nodes(low, high, settings.steps)
    if settings.name == "sde_dpmpp_2m":
        return sde_dpmpp_2m(denoise, noise(), levels, noise, hold=hold, final=settings.final)
    solve = ode_dpmpp_2m if settings.name == "ode_dpmpp_2m" else ddim
    return solve(denoise, noise(), levels, hold=hold, final=settings.final)
