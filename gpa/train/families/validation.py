"""What the language model says and writes at every evaluation: next-token loss does not tell.

Held-out rows are generated from under the rules of inference: its prompts, legal ids, length budgets and
sampling. Recognition is compared with the row's text. Speech goes back, as the ids that it is, to the model's
own recognition and is then compared with the text it was to say: neither codec nor sound is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpa.data import token_folder
from gpa.engine.request import Completion, Request, Sampling
from gpa.engine.scheduler import Engine
from gpa.errors import UsageError
from gpa.models.gpa.budgets_gpa import Budgets
from gpa.models.gpa.configuration_gpa import GPAConfig
from gpa.prompt.tasks import ASR, TASKS, TTS
from gpa.text.edit_distance import edits, words

if TYPE_CHECKING:
    from gpa.data.rows import RowBuilder
    from gpa.engine.network import Network
    from gpa.text.pronunciations import Pronunciations

Clip = Mapping[str, Any]
MEASURED = (ASR.name, TTS.name)


@dataclass(frozen=True)
class ValidateArgs:
    """`rows` held-out rows are generated from at every evaluation; 0: none."""

    rows: int = 0
    samples: int = 0  # held-out rows that are spoken, transcribed and converted for RUN/samples; 0: none
    frame_rate: float = 0.0  # semantic ids per second; 0: as the prepared folder says
    speech: Sampling | None = None  # how speech is drawn; unset: as gpa.json of `init`, or its defaults

    def __post_init__(self) -> None:
        if min(self.rows, self.samples, self.frame_rate) < 0:
            raise UsageError("validate.rows, validate.samples and validate.frame_rate: at least 0")


@dataclass
class Tally:
    """Word errors pooled over all rows, and how many completions ended by themselves."""

    errors: int = 0
    words: int = 0
    stopped: int = 0
    rows: int = 0

    def add(self, text: str, heard: str, stopped: bool) -> None:
        """Count one row: what was to be heard, what was, and whether generation stopped."""
        said = words(text)
        self.errors += edits(said, words(heard))
        self.words += len(said)
        self.stopped += stopped
        self.rows += 1

    @property
    def wer(self) -> float:
        """Word errors per word of the texts; above 1 where much is inserted."""
        return self.errors / self.words

    @property
    def stop(self) -> float:
        """Share of completions that the model itself ended."""
        return self.stopped / self.rows


class Validation:
    """Chosen rows and how they are generated from; called with a network it gives its metrics."""

    def __init__(
        self,
        rows: Mapping[int, Clip],
        budgets: Budgets,
        sampling: Mapping[str, Sampling] | None = None,
        dictionary: Pronunciations | None = None,
    ) -> None:
        """`rows` are clips by the seed of their random numbers; `sampling` is per task, as in gpa.json.

        Speech is asked for by the sounds of a `dictionary`.
        """
        self.rows, self.budgets, self.format = rows, budgets, budgets.format
        self.dictionary = dictionary
        self.sampling = sampling or GPAConfig().sampling

    def __call__(self, network: Network) -> dict[str, float]:
        """Word error and stop rates of recognition and of speech.

        Speech of a format whose recognition reads more than semantic ids has no round trip, and no word error
        rate.
        """
        asr, tts = Tally(), Tally()
        clips, seeds = list(self.rows.values()), list(self.rows)
        requests = [
            self._hearing(clip["semantic"], clip.get("glm"), seed) for seed, clip in self.rows.items()
        ]
        requests += [self._speaking(clip, seed) for seed, clip in self.rows.items()]
        # On a CPU inference computes in float32, whatever training does; for single ids that is also faster.
        with torch.autocast("cpu", enabled=False):
            done = self.complete(network, requests)
            heard, said = done[: len(clips)], done[len(clips) :]
            spoken = [self.budgets.codes(each) for each in said]
            again = [Completion()] * len(clips)
            if heard_again := self.format.layouts[ASR.name].blocks == ("semantic",):
                pairs = zip(spoken, seeds, strict=True)
                again = self.complete(network, [self._hearing(c, None, s) if c else None for c, s in pairs])
        for clip, first, speech, second in zip(clips, heard, said, again, strict=True):
            asr.add(clip["text"], self.text(first), _stopped(first))
            tts.add(clip["text"], self.text(second), _stopped(speech))
        found = {f"{ASR.name}_wer": asr.wer, f"{ASR.name}_stop": asr.stop, f"{TTS.name}_stop": tts.stop}
        return {**found, f"{TTS.name}_roundtrip_wer": tts.wer} if heard_again else found

    def _hearing(self, codes: Sequence[int], glm: Sequence[int] | None, seed: int) -> Request:
        """For the transcript of semantic codes (T,)."""
        glm = glm if "glm" in self.format.layouts[ASR.name].blocks else None
        prompt = self.format.build(ASR.name, semantic=codes, glm=glm)
        return self._request(ASR.name, prompt, self.budgets.span(ASR, len(codes)), seed)

    def _speaking(self, clip: Clip, seed: int) -> Request:
        """For semantic codes that say the clip's text in its voice."""
        text = self.dictionary.respelt(clip["text"]).text if self.dictionary else clip["text"]
        prompt = self.format.build(TTS.name, text=text, global_=clip["global"])
        return self._request(TTS.name, prompt, self.budgets.spoken_ids(clip["text"]), seed)

    def request(self, task: str, clip: Clip, seed: int, voice: Sequence[int]) -> Request:
        """For what a task makes of a clip; conversion is into a `voice`."""
        if task == TTS.name:
            return self._speaking(clip, seed)
        if task == ASR.name:
            return self._hearing(clip["semantic"], clip.get("glm"), seed)
        prompt = self.format.build(task, semantic=clip["semantic"], global_=voice)
        return self._request(task, prompt, self.budgets.span(TASKS[task], len(clip["semantic"])), seed)

    def _request(self, task: str, prompt: Sequence[int], span: tuple[int, int], seed: int) -> Request:
        """At least and at most so many new ids."""
        least, most = span
        return Request(prompt, self.budgets.rules(task, most, least), self.sampling[task], seed)

    def complete(self, network: Network, requests: Sequence[Request | None]) -> list[Completion]:
        """As one batch; nothing where nothing is asked, or the prompt (endless speech) fills the context."""
        context = network.sizes.max_position_embeddings
        fits = [each for each in requests if each is not None and len(each.prompt) < context]
        done = dict(zip(map(id, fits), Engine(network).generate(fits), strict=True))
        return [done.get(id(each), Completion()) for each in requests]

    def text(self, done: Completion) -> str:
        """What a completion of recognition says."""
        return self.format.text_tokenizer.decode(self.budgets.text_ids(done))


def _stopped(done: Completion) -> bool:
    return done.finish_reason == "stop"


def prepare(
    args: ValidateArgs, dev: RowBuilder, max_ids: int, *, tokens: str, init: str = ""
) -> Validation | None:
    """The validation that a recipe asks for, on `dev` rows that one pass can take; None without `rows`.

    `tokens` and `init` are the recipe's folders. UsageError if no row fits.
    """
    if not args.rows:
        return None
    if lost := [name for name in MEASURED if name not in dev.fmt.tasks]:
        raise UsageError(f"validate.rows measures {' and '.join(MEASURED)}: tasks has no {lost[0]}")
    config = GPAConfig.read(Path(init)) if init else GPAConfig()
    budgets = Budgets(dev.fmt, args.frame_rate or _frame_rate(Path(tokens)))
    sampling = {**config.sampling, **({TTS.name: args.speech} if args.speech else {})}
    rows = _choose(dev, args.rows, max_ids, config, budgets.frame_rate)
    return Validation(rows, budgets, sampling, dev.dictionary)


def _frame_rate(tokens: Path) -> float:
    made = token_folder.read_about(tokens)["codec"]
    return float(made["frame_rate"] * made.get("codebooks", 1))


def _choose(
    dev: RowBuilder, count: int, max_ids: int, config: GPAConfig, frame_rate: float
) -> dict[int, Clip]:
    """{number: clip}, the first that fit in an order of its own: a larger count only adds rows."""
    chosen: dict[int, Clip] = {}
    for i in map(int, np.random.default_rng(0).permutation(len(dev.clips))):
        clip = dev.clips[i]
        fits = words(clip["text"]) and len(clip["text"]) <= config.max_text_chars
        fits = fits and 0 < len(clip["semantic"]) <= config.max_audio_seconds * frame_rate
        if fits and all(dev.length(task, i) <= max_ids for task in MEASURED):
            chosen[i] = clip
        if len(chosen) == count:
            break
    if not chosen:
        raise UsageError(
            f"validate.rows={count}: none of {len(dev.clips)} held-out rows fits data.max_ids={max_ids}, "
            f"{config.max_text_chars} characters and {config.max_audio_seconds:g} s"
        )
    return chosen
