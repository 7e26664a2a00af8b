"""A language model's export: the whole checkpoint, as `GPA.from_pretrained` loads it.

Network, codec, tokenizer, settings, voices of the speakers who were learnt, recorded outputs and a card. All
of it follows from the recipe, the rows and what lies beside (`gpa.train.beside`); nothing is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpa import bigrams, hub, lexicon, pronounce
from gpa.codec.bicodec import BiCodec
from gpa.models.gpa import GPA
from gpa.models.gpa.backbone import Backbone
from gpa.models.gpa.beam_gpa import Beams
from gpa.models.gpa.configuration_gpa import GPAConfig
from gpa.models.gpa.generation_gpa import Sampling
from gpa.models.gpa.golden_gpa import record
from gpa.train import card
from gpa.train.beside import Beside
from gpa.train.survey import Clip, Survey

GOLDEN, GOLDEN_SECONDS = 2, 2.0  # recorded clips, and how long they should be
CHOICE = 1000  # rows that they are chosen from
LISTS = (lexicon.FILE, bigrams.FILE, pronounce.FILE)
SPOKEN = "It is a fine day."  # where a corpus has no text


@dataclass(frozen=True)
class Learnt:
    """What a recipe taught beyond the network's weights: on which rows, and how it is to be used."""

    clips: Sequence[Clip]
    tokens: Path
    format: str
    recipe: str  # resolved, as YAML
    init: Path | None = None
    speech: Sampling | None = None  # how speech is drawn, if the recipe says
    guided: bool = False  # whether speech was learnt without text, too
    pronunciations: str = ""  # file by which speech was asked for


def write(
    lm: Backbone, out: Path, beside: Beside, learnt: Learnt, more: Callable[[Path], Any] = lambda folder: None
) -> None:
    """Write the checkpoint, whole or not at all; `more` adds to its folder."""
    codec, glm = beside.parts()
    survey = Survey.of(learnt.clips, codec.spec.frame_rate)
    config = _settings(beside.settings, learnt, survey, out.resolve().parent.name)
    model = GPA(lm, codec, learnt.init or learnt.tokens, glm=glm, config=config)
    if learnt.init is None:  # lists of the codec's model were weighed against another network
        for name in LISTS:
            model.processor.text_files.pop(name, None)
    if learnt.pronunciations:
        model.processor.take_pronunciations(Path(learnt.pronunciations))
    voices = {voice.name: voice for voice in survey.voices(codec)}
    for name, voice in {**voices, **(beside.voices if learnt.init else {})}.items():
        model.add_voice(name, voice)
    with stored(model, out, overwrite=True) as (made, folder):
        pairs = golden_inputs(learnt.clips, made.codec)
        record(made, folder, [clip for clip, _ in pairs], [text for _, text in pairs])
        card.write(made, folder, survey, out.parent, learnt.recipe)
        more(folder)


def _settings(before: GPAConfig | None, learnt: Learnt, survey: Survey, name: str) -> GPAConfig:
    """gpa.json: that of the model before, but for what was learnt otherwise."""
    base = (
        before if before is not None and before.format == learnt.format else GPAConfig(format=learnt.format)
    )
    about = card.facts(before.about if before else {}, survey, further=learnt.init is not None)
    speech = {task: learnt.speech for task in ("tts", "vc")} if learnt.speech else {}
    base = replace(base, name=name, about=about, sampling={**base.sampling, **speech}, fingerprints={})
    if learnt.init is not None:
        return base
    return replace(
        base,
        max_audio_seconds=float(min(GPAConfig.max_audio_seconds, max(3, math.ceil(survey.seconds)))),
        max_text_chars=min(GPAConfig.max_text_chars, max(40, survey.characters)),
        keeps_timing=not survey.converted,
        beams=Beams(),
        gamma=1.0 if learnt.guided else 0.0,
    )


def golden_inputs(clips: Sequence[Clip], codec: BiCodec) -> list[tuple[tuple[np.ndarray, int], str]]:
    """(clip, text) pairs to record outputs of: short rows as the codec sounds, as no recording is at hand."""
    wanted = GOLDEN_SECONDS * codec.spec.frame_rate
    some = sorted(range(min(len(clips), CHOICE)), key=lambda i: abs(len(clips[i]["semantic"]) - wanted))
    pairs = []
    for clip in (clips[i] for i in (some * GOLDEN)[:GOLDEN]):
        with torch.inference_mode():
            wav = codec.decode(np.array(clip["semantic"]), np.array(clip["global"]))
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
    with hub.written_whole(out, overwrite) as folder:
        model.save_pretrained(folder, dtype=dtypes[0], codec_dtype=dtypes[1])
        yield GPA.from_pretrained(folder, device="cpu", dtype="float32"), folder
