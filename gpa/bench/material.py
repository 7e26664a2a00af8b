"""What benches of speech ask of a model: sentences, recordings that it makes itself, requests.

Whoever needs the sentences alone loads no torch.
"""

from __future__ import annotations

from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from gpa.prompt.tasks import TTS

if TYPE_CHECKING:
    from gpa.engine.request import Beams, Request
    from gpa.models.gpa import GPA

SENTENCES = (
    "The boat left the harbour before the sun was up.",
    "She put the letter back into the drawer and said nothing.",
    "Nobody had told him that the bridge was closed.",
    "In the morning the whole valley was white with snow.",
    "There is a small shop at the end of the street that sells old maps.",
    "He counted the steps twice, and both times there was one too many.",
    "When the rain stopped, the children ran out into the garden.",
    "It was not the answer that they had hoped for.",
    "The train was late again, so we walked along the river instead.",
    "Her brother knows every bird by its song.",
    "Please leave the key under the stone next to the door.",
    "After a while the noise of the engine seemed almost friendly.",
)


def request(
    model: GPA, task: str, seed: int, *, gamma: float = 0.0, beams: Beams | None = None, **given: Any
) -> Request:
    """A request as the model itself makes it; `given` are the inputs of `GPA.prompt`, a voice resolved.

    A text guides speech with strength `gamma`.
    """
    from gpa.engine.request import Request
    from gpa.models.gpa.requests_gpa import spoken

    processor, ids = model.processor, model.prompt(task, **given)
    sampling, _, _ = processor.sampling(task, {})
    shortest = processor.spoken_ids(given["text"])[0] if "text" in given else 0
    rules = processor.rules(task, processor.budget_of(ids), shortest)
    guidance = spoken(model.format, ids, given["voice"].codes, gamma) if gamma else None
    return Request(ids, rules, sampling, seed, guidance, beams)


def recordings(model: GPA, count: int) -> list[np.ndarray]:
    """Waveforms (S,) of sentences that the model speaks, in the order of `SENTENCES`.

    At least as long as the sentences can be said: a model that makes no speech makes a sound.
    """
    from gpa.engine.scheduler import Engine

    voice = model.resolve_voice(None)
    asked = [
        request(model, TTS.name, seed, text=text, voice=voice)
        for seed, text in enumerate(islice(cycle(SENTENCES), count))
    ]
    done = Engine(model.network).generate(asked)
    return [model.processor.sound(np.array(model.processor.codes(each)), voice) for each in done]
