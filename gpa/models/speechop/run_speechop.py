"""A plan run over audio of any length: window by window, each going on from the one before.

Knows plans, latents and texts; no files, no waveforms, no recogniser.

    C latent channels   H channels of the ASR encoder, or 0   T frames of the whole
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gpa.compose import Average, Branch, Given, Guided, Plan, composed
from gpa.errors import UsageError
from gpa.models.speechop.diffusion_speechop import inpaint, inpaint_source
from gpa.models.speechop.layers_speechop import Text, TextKeys
from gpa.models.speechop.modeling_speechop import Conditions, Context, Latents, SpeechOpModel
from gpa.models.speechop.sampling_speechop import SeededNoise, ddim, nodes, ode_dpmpp_2m, sde_dpmpp_2m

if TYPE_CHECKING:
    from gpa.models.speechop.configuration_speechop import Sampler, SpeechOpConfig
    from gpa.models.speechop.windows_speechop import Cut

Progress = Callable[[int, int], None]  # evaluated steps so far, and all of them
Encode = Callable[[str], Text]

SEED_STEP = 1_000_003  # between the seeds of the windows of one request


@dataclass(frozen=True)
class Job:
    """What is to be made: `plans` and `texts` (name -> text) for each window of `cuts`.

    `sources` (1, C + H, T) and `prompts` (1, C, P) by name; `known` are frames (1, C, T) that stay as they
    are.
    """

    cuts: Sequence[Cut]
    plans: Sequence[Plan]
    texts: Sequence[Mapping[str, str]]
    sources: Mapping[str, Tensor] = field(default_factory=dict)
    prompts: Mapping[str, Tensor] = field(default_factory=dict)
    known: Latents | None = None


class Watched:
    """A network that reports each step: what `branches.sample` needs of one, no more."""

    def __init__(self, model: SpeechOpModel, report: Callable[[], None]) -> None:
        self.model, self.config, self.condition, self.report = model, model.config, model.condition, report

    def denoise(self, *inputs: Any) -> Tensor:
        """As the network's."""
        v = self.model.denoise(*inputs)
        self.report()
        return v


def run(
    model: SpeechOpModel,
    job: Job,
    encode: Encode,
    sampler: Sampler,
    seed: int,
    progress: Progress | None = None,
) -> tuple[Tensor, dict[str, int]]:
    """Latents (1, C, T) of a job, and how often each branch was evaluated.

    Frames that an earlier window made are known to the next, in its source as well, as in training. The first
    window's noise is that of `seed`; UsageError for a task the model lacks.
    """
    for plan in job.plans:
        check_tasks(plan, model.config)
    z = model.into.weight.new_zeros(1, model.config.latent.channels, job.cuts[-1][1])
    fixed = torch.zeros(1, z.shape[2], dtype=torch.bool, device=z.device)
    if job.known is not None:
        z, fixed = inpaint(z, job.known.values, job.known.mask), job.known.mask.clone()
    total = len(job.cuts) * len(_levels(sampler))
    ticks = iter(range(1, total + 1))
    watched = Watched(model, (lambda: progress(next(ticks), total)) if progress else (lambda: None))
    counts: Counter[str] = Counter()
    for i, (start, stop) in enumerate(job.cuts):
        inputs = _inputs(job, i, z[..., start:stop], fixed[:, start:stop], encode)
        one = sample(
            cast(SpeechOpModel, watched), job.plans[i], inputs, [(seed + i * SEED_STEP) % 2**63], sampler
        )
        z[..., start:stop] = one
        fixed[:, start:stop] = True
        counts += tally(job.plans[i], sampler)
    return z, dict(counts)


def _inputs(job: Job, i: int, z: Tensor, fixed: Tensor, encode: Encode) -> Inputs:
    """The inputs of window i, of whose frames z (1, C, T) those in `fixed` (1, T) are known."""
    start, stop = job.cuts[i]
    known = Latents(z.clone(), fixed.clone()) if fixed.any() else None
    sources: dict[Hashable, Tensor] = {
        name: inpaint_source(whole[..., start:stop], z, fixed) for name, whole in job.sources.items()
    }
    prompts: dict[Hashable, Latents] = {
        name: Latents(values, torch.ones(1, values.shape[2], dtype=torch.bool, device=z.device))
        for name, values in job.prompts.items()
    }
    texts: dict[Hashable, Text] = {name: encode(text) for name, text in job.texts[i].items() if text}
    return Inputs(torch.ones_like(fixed), texts, sources, prompts, known)


# Plans ------------------------------------------------------------------------------------------------------


def _levels(sampler: Sampler) -> list[float]:
    """The log-SNRs at which the network is evaluated."""
    low, high = sampler.lambda_range
    levels = nodes(low, high, sampler.steps)
    return levels if sampler.final else levels[:-1]


def tally(plan: Plan, sampler: Sampler) -> Counter[str]:
    """Branch -> how often sampling evaluates it, such as {"enhance(source)": 257, "tts(text)": 138}."""
    return Counter(label(branch) for level in _levels(sampler) for branch in plan.branches(level))


def label(branch: Branch) -> str:
    """A branch in words: its task and what it is given."""
    return f"{branch.task}({', '.join(sorted(slot for slot, _ in branch.given))})"


def _bases(plan: Plan) -> Iterator[Guided]:
    yield from [plan.base.first, plan.base.second] if isinstance(plan.base, Average) else [plan.base]


def task_of(plan: Plan) -> str:
    """The task of a plan's base, the first of an average."""
    return next(_bases(plan)).task


def check_tasks(plan: Plan, config: SpeechOpConfig) -> None:
    """UsageError if a plan has a task that the model was not made for."""
    for task in [*(base.task for base in _bases(plan)), *(term.task for term in plan.terms)]:
        if task not in config.tasks.names:
            known = ", ".join(config.tasks.names)
            raise UsageError(f"this model has no task {task!r}; it knows {known}. Use another model")


def without(plan: Plan, texts: Sequence[str]) -> Plan:
    """A plan for a window in which these texts say nothing: terms that follow one go, bases go without."""
    empty = {("text", name) for name in texts}

    def bare(slots: Given) -> Given:
        return slots - empty

    def base(guided: Guided) -> Guided:
        return dataclasses.replace(guided, given=bare(guided.given), null=bare(guided.null))

    parts = [base(guided) for guided in _bases(plan)]
    whole: Guided | Average = parts[0]
    if isinstance(plan.base, Average):
        whole = dataclasses.replace(plan.base, first=parts[0], second=parts[1])
    return Plan(whole, tuple(term for term in plan.terms if not term.given & empty))


# A plan on the network: names become tensors, the branches of a step become one batch of n -----------------

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
