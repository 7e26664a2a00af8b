"""A language model's export: the whole checkpoint, as `GPA.from_pretrained` loads it.

Network, codec, tokenizer, settings, voices of the speakers who were learnt, recorded outputs and a card. All
of it follows from the recipe, the rows and what lies beside (`gpa.train.parts`); nothing is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpa import disk
from gpa.models.gpa import GPA
from gpa.models.gpa.configuration_gpa import GPAConfig
from gpa.models.gpa.outputs_gpa import Voice
from gpa.models.gpa.verify_gpa import record
from gpa.prompt.tasks import DEFAULT, TASKS
from gpa.text import lexicon, ngrams
from gpa.text import pronunciations as pronounce
from gpa.text.spelling import SpellingSearch
from gpa.train import model_card
from gpa.train.corpus_statistics import Clip, CorpusStatistics

if TYPE_CHECKING:
    from gpa.codec.base import TokenCodec
    from gpa.engine.network import Network
    from gpa.engine.request import Sampling
    from gpa.train.parts import CheckpointParts

GOLDEN, GOLDEN_SECONDS = 2, 2.0  # recorded clips, and how long they should be
CHOICE = 1000  # rows that they are chosen from
LISTS = (lexicon.FILE, ngrams.FILE, pronounce.FILE)
SPOKEN = "It is a fine day."  # where a corpus has no text


@dataclass(frozen=True)
class TrainingFacts:
    """What a recipe taught beyond the network's weights: on which rows, and how it is to be used."""

    clips: Sequence[Clip]
    tokens: Path
    format: str
    recipe: str  # resolved, as YAML
    tasks: Sequence[str] = DEFAULT
    init: Path | None = None
    speech: Sampling | None = None  # how speech is drawn, if the recipe says
    guided: bool = False  # whether speech was learnt without text, too
    instructed: bool = False  # whether wordings were learnt to decide without a task's token
    pronunciations: str = ""  # file by which speech was asked for


def write(
    network: Network,
    out: Path,
    parts: CheckpointParts,
    facts: TrainingFacts,
    more: Callable[[Path], Any],
    dtype: torch.dtype,
) -> None:
    """Write the checkpoint, whole or not at all, the network in `dtype`; `more` adds to its folder."""
    codec, glm = parts.load()
    statistics = CorpusStatistics.of(facts.clips, codec.spec.code_rate)
    config = _settings(parts.settings, facts, statistics, out.resolve().parent.name)
    model = GPA(network, codec, facts.init or facts.tokens, glm=glm, config=config)
    if facts.init is None:  # lists of the codec's model were weighed against another network
        for name in LISTS:
            model.processor.text_files.pop(name, None)
    if facts.pronunciations:
        model.processor.take_pronunciations(Path(facts.pronunciations))
    voices = {voice.name: voice for voice in statistics.voices(codec)}
    for name, voice in {**voices, **(parts.voices if facts.init else {})}.items():
        model.add_voice(name, voice)
    with stored(model, out, dtypes=(dtype, None), overwrite=True) as (made, folder):
        pairs = golden_inputs(facts.clips, made.codec)
        record(made, folder, [clip for clip, _ in pairs], [text for _, text in pairs])
        model_card.write(made, folder, statistics, out.parent, facts.recipe)
        more(folder)


def _settings(
    before: GPAConfig | None, facts: TrainingFacts, statistics: CorpusStatistics, name: str
) -> GPAConfig:
    """gpa.json: that of the model before, but for what was learnt otherwise."""
    base = before if before is not None and before.format == facts.format else GPAConfig(format=facts.format)
    about = model_card.facts(before.about if before else {}, statistics, further=facts.init is not None)
    tasks = tuple(dict.fromkeys((*(base.tasks if facts.init else ()), *facts.tasks)))
    sampling = {task: drawn for task, drawn in base.sampling.items() if task in tasks}
    if facts.speech:
        sampling |= {task: facts.speech for task in tasks if not TASKS[task].writes}
    base = replace(base, name=name, about=about, tasks=tasks, sampling=sampling, fingerprints={})
    base = replace(base, instructed=facts.instructed or (base.instructed and facts.init is not None))
    if facts.init is not None:
        return base
    return replace(
        base,
        max_audio_seconds=float(min(GPAConfig.max_audio_seconds, max(3, math.ceil(statistics.seconds)))),
        max_text_chars=min(GPAConfig.max_text_chars, max(40, statistics.characters)),
        keeps_timing=not statistics.converted,
        beams=SpellingSearch(),
        takes=1,
        gamma=1.0 if facts.guided else 0.0,
    )


def golden_inputs(clips: Sequence[Clip], codec: TokenCodec) -> list[tuple[tuple[np.ndarray, int], str]]:
    """(clip, text) pairs to record outputs of: short rows as the codec sounds, as no recording is at hand."""
    wanted = GOLDEN_SECONDS * codec.spec.code_rate
    some = sorted(range(min(len(clips), CHOICE)), key=lambda i: abs(len(clips[i]["semantic"]) - wanted))
    pairs = []
    for clip in (clips[i] for i in (some * GOLDEN)[:GOLDEN]):
        with torch.inference_mode():
            voice = Voice(tuple(map(int, clip["global"])))
            wav = codec.decode(codec.tokens(np.array(clip["semantic"])), voice)
        pairs.append(((wav, codec.spec.sample_rate), clip["text"] or SPOKEN))
    return pairs


@contextmanager
def stored(
    model: GPA,
    out: Path,
    *,
    dtypes: tuple[torch.dtype | None, torch.dtype | None] = (None, None),
    overwrite: bool = False,
) -> Iterator[tuple[GPA, Path]]:
    """The model as it is written, in float32, and its folder: more may be added, and it becomes `out`.

    What a user's computer gives is made by it, not by the network in memory. `dtypes` are those of language
    model and codec; None keeps them.
    """
    with disk.written_whole(out, overwrite) as folder:
        model.save_pretrained(folder, dtype=dtypes[0], codec_dtype=dtypes[1])
        yield GPA.from_pretrained(folder, device="cpu", dtype="float32"), folder
