"""What a language model says at every evaluation, as sound: the first rows of its validation, decoded.

Requests are those of `Validation`; here their ids become sound, and conversion is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpa.codec.voice import Voice
from gpa.errors import UsageError
from gpa.prompt.tasks import ASR, TTS, VC
from gpa.text.edit_distance import edits, words
from gpa.train.samples import Sample

if TYPE_CHECKING:
    from gpa.codec.base import TokenCodec
    from gpa.engine.network import Network
    from gpa.train.families.validation import Validation
    from gpa.train.parts import CheckpointParts

Clip = Mapping[str, Any]


class SpeechSamples:
    """Chosen rows spoken, transcribed and, where the recipe trains that, converted."""

    def __init__(self, validation: Validation | None, parts: CheckpointParts | None) -> None:
        """UsageError for rows without a codec; without rows nothing is ever said."""
        if validation and parts is None:
            raise UsageError("validate.samples needs a codec: train with export=whole, or set it to 0")
        self.validation, self.parts = validation, parts

    @cached_property
    def codec(self) -> TokenCodec:
        """Read when it is first needed, on the process that evaluates."""
        assert self.parts is not None
        return self.parts.load()[0]

    def __call__(self, network: Network) -> list[Sample]:
        """The same rows, by the same random numbers."""
        if self.validation is None:
            return []
        with torch.autocast("cpu", enabled=False):
            return _speak(self.validation, network, self.codec)


def _speak(validation: Validation, network: Network, codec: TokenCodec) -> list[Sample]:
    """A row is converted to the voice of the next. The sound of a transcript is the row's own, as its codes
    sound; what the model made no codes of is left out.
    """
    clips = list(validation.rows.items())
    tasks = [TTS.name, ASR.name, *([VC.name] if VC.name in validation.format.tasks else [])]
    following = [*clips[1:], *clips[:1]]
    voices = {seed: other["global"] for (seed, _), (_, other) in zip(clips, following, strict=True)}
    requests = [validation.request(task, clip, seed, voices[seed]) for task in tasks for seed, clip in clips]
    done = iter(validation.complete(network, requests))
    samples = []
    for task in tasks:
        for number, (seed, clip) in enumerate(clips):
            made = next(done)
            codes, voice, scores = validation.budgets.codes(made), clip["global"], {}
            caption = str(clip["text"])
            if task == ASR.name:
                heard, said = validation.text(made), words(caption)
                scores = {"wer": edits(said, words(heard)) / max(1, len(said))}
                codes, caption = clip["semantic"], f"{heard} (said: {caption})"
            voice = voices[seed] if task == VC.name else voice
            if len(codes):
                wav = _sound(codec, codes, voice)
                scores |= {"stopped": float(made.finish_reason == "stop")}
                samples.append(Sample(f"{task}-{number}", wav, codec.spec.sample_rate, caption, scores))
    return samples


def _sound(codec: TokenCodec, codes: Sequence[int], voice: Sequence[int]) -> np.ndarray:
    return codec.decode(codec.tokens(np.array(codes)), Voice(tuple(map(int, voice))))
