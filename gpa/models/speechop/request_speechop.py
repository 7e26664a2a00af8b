"""One request on its way through the model: plans become jobs, jobs become sound.

Knows what is made ready by front_speechop.py and run by run_speechop.py; not how a user asks for it.

    S samples   C latent channels   T latent frames
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from gpa.compose import Above, Guided, Plan, given
from gpa.errors import UsageError
from gpa.models.speechop import edit_speechop as edits
from gpa.models.speechop.filter_speechop import filtered
from gpa.models.speechop.outputs_speechop import Part, Sound
from gpa.models.speechop.processing_speechop import Front, Guide, Heard, Listener
from gpa.models.speechop.run_speechop import Encode, Job, Progress, check_tasks, run, task_of, without
from gpa.models.speechop.text_speechop import target_frames
from gpa.models.speechop.windows_speechop import pieces
from gpa.models.speechop.words_speechop import spoken, units

if TYPE_CHECKING:
    from gpa.audio import AudioLike
    from gpa.models.speechop.configuration_speechop import Sampler, SpeechOpConfig
    from gpa.models.speechop.modeling_speechop import SpeechOpModel

PAUSE = 0.2  # seconds between the parts of long speech

Sample = tuple[Heard, np.ndarray]  # what is used of a voice or of acoustics, and all of it
PlanOf = Callable[[str | None], Plan]  # the plan of a window, from the name of its text or None


@dataclass(frozen=True)
class Request:
    """A model with the settings of one request."""

    front: Front
    model: SpeechOpModel
    encode: Encode
    listener: Listener
    sampler: Sampler
    seed: int
    progress: Progress | None = None
    filtered: bool = False
    strong: bool = True

    @property
    def config(self) -> SpeechOpConfig:
        """All numbers of the model."""
        return self.model.config

    def run(self, job: Job, later: int = 0) -> tuple[Tensor, dict[str, int]]:
        """Latents (1, C, T) of a job and what was evaluated; `later` jobs of a request have other noise."""
        return run(self.model, job, self.encode, self.sampler, self.seed + later, self.progress)

    def words_of(self, sample: Sample, text: str | None) -> str:
        """What the used part of a sample says."""
        used, whole = sample
        return self.front.words_in(whole, (0.0, len(used.wav) / self.front.sample_rate), text, self.listener)

    # A source, restored -----------------------------------------------------------------------------------

    def strengths(self, text: str | None, guide: Guide) -> dict[str, Any]:
        """Guidance of the base, which differs while composing, and strength and gate of the text."""
        c = self.config.compose
        base = c.guidance_s2s if text is None else c.base_guidance
        return {"guidance": base, "gamma": guide.gamma, "gate": Above(c.gate)}

    def single(self, task: str, prompt: str | None = None) -> PlanOf:
        """One task alone, with its usual guidance."""
        base = Guided(task, given(source="source", prompt=prompt), scale=self.config.compose.guidance_s2s)
        return lambda text: Plan(base)

    def restore(
        self, plan_of: PlanOf, heard: Heard, guide: Guide, sample: Sample | None = None, before: str = ""
    ) -> Sound:
        """A source run through the plans its windows ask for; `before` is what the sample says.

        With `filtered` it is the recording itself, filtered by what is made.
        """
        plans = [plan_of("words" if text else None) for text in guide.texts]
        texts = [{"words": f"{before} {text}".strip()} if text else {} for text in guide.texts]
        return self._sound(
            plans, texts, heard, {"source": heard}, {"sample": sample} if sample else {}, guide
        )

    def _sound(
        self,
        plans: Sequence[Plan],
        texts: Sequence[Mapping[str, str]],
        first: Heard,
        sources: Mapping[str, Heard],
        samples: Mapping[str, Sample],
        guide: Guide,
    ) -> Sound:
        """Sound as long and as loud as `first`."""
        frames = first.latents.shape[2]
        inputs = {name: self.front.source(heard) for name, heard in sources.items()}
        prompts = {name: used.latents for name, (used, _) in samples.items()}
        z, counts = self.run(Job(self.front.cuts(frames), plans, texts, inputs, prompts))
        wav = self.front.decode(z, first.gain, len(first.wav))
        if self.filtered:
            wav = filtered(first.wav, wav, self.front.sample_rate, self.config.filter, self.strong)
        spans = zip(self.front.spans(frames), guide.texts, strict=True)
        parts = tuple(Part(*span, text) for span, text in spans)
        return self._made(wav, task_of(plans[0]), guide.whole or None, counts, parts)

    def _made(
        self,
        wav: np.ndarray,
        task: str,
        text: str | None,
        counts: Mapping[str, int],
        parts: tuple[Part, ...] = (),
    ) -> Sound:
        """The result, quieter rather than clipped."""
        wav = (wav / max(1.0, float(np.abs(wav).max(initial=0.0)))).astype(np.float32)
        return Sound(wav, self.front.sample_rate, task, text, dict(counts), parts, self.seed)

    # Any plan ---------------------------------------------------------------------------------------------

    def compose(
        self,
        plan: Plan,
        texts: Mapping[str, str],
        sources: Mapping[str, AudioLike],
        prompts: Mapping[str, AudioLike],
        seconds: float | None,
    ) -> Sound:
        """What `SpeechOp.compose` does."""
        check_tasks(plan, self.config)
        front = self.front
        heard = {name: front.hear(audio, f"source {name!r}") for name, audio in sources.items()}
        first = next(iter(heard.values())) if heard else front.nothing(seconds)
        if len({len(one.wav) for one in heard.values()}) > 1:
            found = ", ".join(
                f"{name!r} {len(one.wav) / front.sample_rate:.2f} s" for name, one in heard.items()
            )
            raise UsageError(f"sources of different lengths: {found}; cut them to one")
        samples = {name: front.sample(audio, f"prompt {name!r}") for name, audio in prompts.items()}
        spans = front.spans(first.latents.shape[2])
        said = {
            name: spoken(text, f"text {name!r}", len(first.wav) / front.sample_rate)
            for name, text in texts.items()
        }
        shared = {name: front.divided(text, first, spans) for name, text in said.items()}
        windows = [{name: parts[i] for name, parts in shared.items()} for i in range(len(spans))]
        plans = [without(plan, [name for name, text in one.items() if not text]) for one in windows]
        guide = Guide([" / ".join(one.values()) for one in windows], 0.0, " / ".join(said.values()))
        return self._sound(plans, windows, first, heard, samples, guide)

    # Speech from text -------------------------------------------------------------------------------------

    def speak(self, words: str, sample: Sample | None, before: str) -> Sound:
        """What `SpeechOp.tts` does, with normalised words; `before` is what the sample says."""
        prompt = None if sample is None else sample[0].latents
        taken = 0 if prompt is None else prompt.shape[2]
        rate, room = self.front.speaking(before, taken), self.front.windows.seconds - taken / self.front.rate
        if prompt is None and self._frames(words, rate) > room * self.front.rate:
            room /= 2  # the other half is for the first part, with whose voice the others go on
        wavs: list[np.ndarray] = []
        counts: Counter[str] = Counter()
        for i, part in enumerate(pieces(words, max(1, int(room * rate)))):
            slots = given(text="words", prompt=None if prompt is None else "sample")
            plan = Plan(Guided("tts", slots, scale=self.config.compose.guidance_tts))
            prompts = {} if prompt is None else {"sample": prompt}
            texts = {"words": f"{before} {part}".strip()}
            z, found = self.run(Job([(0, self._frames(part, rate))], [plan], [texts], {}, prompts), i)
            wavs.append(self.front.decode(z))
            counts.update(found)
            if prompt is None:
                prompt, before = z, part
        pause = np.zeros(int(PAUSE * self.front.sample_rate), np.float32)
        wav = np.concatenate([x for one in wavs for x in (pause, one)][1:])
        return self._made(wav, "tts", words, counts)

    def _frames(self, words: str, rate: float | None = None) -> int:
        return target_frames(units(words, self.config), self.config, rate)

    def edit(
        self, heard: Heard, span: Sequence[float], words: str, before: str | None, after: str | None
    ) -> Sound:
        """What `SpeechOp.edit` does, with normalised words."""
        front, hop = self.front, self.front.codec.spec.hop_length
        room = edits.room(self._frames(words), front.windows.seconds * front.rate)
        length = len(heard.wav) / front.sample_rate
        at = edits.place(span, length, heard.latents.shape[2], front.rate, room)
        head, tail = heard.wav[: at.first * hop], heard.wav[at.last * hop :]
        end, rest = len(head) / front.sample_rate, len(tail) / front.sample_rate
        told = front.words_in(
            head, (end - at.left / front.rate, end), before, self.listener, "what is before the span"
        )
        later = front.words_in(
            tail, (0.0, min(rest, at.right / front.rate)), after, self.listener, "what is after the span"
        )
        new = self._frames(words, front.speaking(f"{told} {later}".strip(), at.left + at.right))
        plan = Plan(Guided("tts", given(text="words"), scale=self.config.compose.guidance_edit))
        whole = " ".join(part for part in (told, words, later) if part)
        known = edits.known(heard.latents, at, new)
        z, counts = self.run(Job([(0, at.left + new + at.right)], [plan], [{"words": whole}], known=known))
        wav = edits.splice(heard.wav, front.decode(z, heard.gain), at, new, hop)
        part = Part(at.first / front.rate, (at.first + new) / front.rate, words)
        return self._made(wav, "tts", whole, counts, (part,))
