"""Generation by several prompts at once: `gpa.compose` over the next id.

Speech that follows its text is speech plus what the text makes more likely than no text does (classifier-free
guidance); a conversion that follows a transcript is the conversion plus the same. The page: docs/speechop.md.

    B branches   L positions   V vocabulary   K ids that are legal
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gpa.compose import GAMMA_LOGITS, Branch, Guided, Plan, Term, compose_logits, given
from gpa.errors import GenerationError, PromptError, UsageError
from gpa.models.gpa.generation_gpa import Rules, cached, new_cache
from gpa.models.gpa.outputs_gpa import Transcript
from gpa.prompt.formats import Format, InstructFormat
from gpa.text.tokenizer import normalise_text

PLAUSIBLE = 0.1  # an id less likely than this share of the likeliest is not promoted by the words


class Composed:
    """Logits of a plan: the prompts of its branches are rows of one batch and share the generated ids.

    The stop id keeps the base's probability: how long it takes is the source's affair. With strength 0 there
    is one row, and the logits are those of the base alone.
    """

    def __init__(
        self, lm: PreTrainedModel, plan: Plan, prompts: Mapping[Branch, Sequence[int]], rules: Rules
    ) -> None:
        self.lm, self.plan = lm, plan
        self.branches = plan.logit_branches()
        self.prompts = [list(prompts[branch]) for branch in self.branches]
        legal = sorted(i for run in rules.legal or (range(lm.config.vocab_size),) for i in run)
        (stop,) = rules.stop
        self.legal, self.stop = torch.tensor(legal, device=lm.device), legal.index(stop)
        room = lm.config.max_position_embeddings - max(map(len, self.prompts))
        if room < rules.max_new:
            raise PromptError(f"the transcript leaves room for {room} ids, {rules.max_new} may be needed")

    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Composed logits (V,); ids that are not legal at minus infinity."""
        rows = self._decode(ids[-1]) if ids else self._prefill()  # (B, V)
        parts = {branch: row[self.legal] for branch, row in zip(self.branches, rows, strict=True)}
        found = compose_logits(self.plan, parts, eos=self.stop, plausibility=PLAUSIBLE)
        return torch.full_like(rows[0], -torch.inf).index_copy(0, self.legal, found)

    @torch.inference_mode()
    def _prefill(self) -> Tensor:
        """Padding stands at the left, so that all rows end together."""
        longest = max(map(len, self.prompts))
        self.cache = new_cache(self.lm)
        left = [longest - len(prompt) for prompt in self.prompts]
        ids = [[prompt[0]] * n + prompt for prompt, n in zip(self.prompts, left, strict=True)]
        mask = [[0] * n + [1] * (longest - n) for n in left]
        self.mask = torch.tensor(mask, device=self.lm.device)
        return self._run(torch.tensor(ids, device=self.lm.device))

    @torch.inference_mode()
    def _decode(self, token_id: int) -> Tensor:
        ids = torch.full((len(self.prompts), 1), token_id, device=self.lm.device)
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], 1)
        return self._run(ids)

    def _run(self, ids: Tensor) -> Tensor:  # (B, L) -> (B, V)
        places = (self.mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        padded = {} if self.mask.all() else {"attention_mask": self.mask}  # alone it runs as `Cached` does
        out = self.lm(
            input_ids=ids,
            position_ids=places,
            **cached(self.lm, self.cache),
            use_cache=True,
            logits_to_keep=1,
            **padded,
        )
        return out.logits[:, -1].float()


def spoken(
    lm: PreTrainedModel,
    fmt: Format,
    prompt: Sequence[int],
    voice: Sequence[int],
    rules: Rules,
    gamma: float,
) -> Composed | None:
    """Speech (`prompt`) that follows its text with strength `gamma`; None at 0, where nothing guides.

    UsageError for a format without wordless speech, or a strength that is no number.
    """
    if gamma == 0:
        return None
    text = given(text="words")
    plan = Plan(Guided("tts", text), (Term("tts", text, gamma=gamma),))
    prompts = {Branch("tts", text): prompt, Branch("tts"): _instructed(fmt).wordless(voice)}
    return Composed(lm, plan, prompts, rules)


def anchored(
    lm: PreTrainedModel,
    fmt: Format,
    prompt: Sequence[int],
    text: str,
    voice: Sequence[int],
    rules: Rules,
    gamma: float | None = None,
) -> Composed:
    """A conversion (`prompt`) that follows a transcript with strength `gamma`, 1 unless given.

    UsageError for a format without wordless speech, or a strength that is no number.
    """
    fmt = _instructed(fmt)
    words = Term("tts", given(text="words"), gamma=GAMMA_LOGITS if gamma is None else gamma)
    plan = Plan(Guided("vc", given(source="source")), (words,))
    prompts = {
        Branch("vc", given(source="source")): prompt,
        Branch("tts", given(text="words")): fmt.build("tts", text=text, global_=voice),
        Branch("tts"): fmt.wordless(voice),
    }
    return Composed(lm, plan, prompts, rules)


def _instructed(fmt: Format) -> InstructFormat:
    if not isinstance(fmt, InstructFormat):
        raise UsageError(f"a text guides models of the instruct format; this one has {fmt.name}")
    return fmt


def recognised(asr: Callable[[tuple[np.ndarray, int]], Transcript], sound: tuple[np.ndarray, int]) -> str:
    """The transcript by which sound may guide itself, "" where no words are found: then nothing guides."""
    try:
        return normalise_text(asr(sound).text)
    except GenerationError:
        return ""
