"""What the base model can do, written down by itself: rows to rehearse while a new voice is learnt.

The model's own answers are the targets (self-distillation, Li and Hoiem 2016): speech in its shipped voices,
what it hears in that speech, and conversions of it and of the new voice's recordings to shipped voices. So no
corpus is needed, and none is imitated better than the model did before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from gpa import disk
from gpa.data import sequences, token_folder
from gpa.errors import GenerationError, GPAError
from gpa.prompt.tasks import ASR, TTS, VC

if TYPE_CHECKING:
    from gpa.models.gpa.pipeline_gpa import GPA

HELD = 24  # sentences for the comparison; the others are rehearsed
PASSES = 2  # every rehearsed sentence is spoken in so many voices
CONVERSIONS = 60  # of recordings of the new voice, at most
Sound = tuple[np.ndarray, int]  # samples (S,) and their rate in Hz


def sentences() -> tuple[list[str], list[str]]:
    """Sentences to rehearse, and others to compare on."""
    lines = resources.files("gpa").joinpath("assets/sentences.txt").read_text(encoding="utf-8").splitlines()
    return lines[HELD:], lines[:HELD]


def write(model: GPA, texts: Sequence[str], recordings: Iterable[Sound], like: Path, folder: Path) -> None:
    """A prepared folder of rows of all three tasks, by the codec of `like`; whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [*_rows(model, texts), *_conversions(model, list(islice(_parts(model, recordings), CONVERSIONS)))]
    if not rows:
        raise GenerationError("the base model made no speech to rehearse: give a prepared folder, --replay")
    for name, content in model.processor.text_files.items():
        disk.write_bytes(folder / name, content)
    sequences.write(folder, rows, token_folder.read_about(like))


def _rows(model: GPA, texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    names = sorted(model.voices)
    spoken = [(n, text) for n in range(PASSES if names else 0) for text in texts]
    for k, (n, text) in enumerate(tqdm(spoken, desc="rehearsal", unit="sentence", dynamic_ncols=True)):
        base = {"id": f"replay-{k}", "split": "train", "speaker": names[k % len(names)]}
        try:
            yield from _of_sentence(model, base, text, names[(k + 1 + n) % len(names)])
        except GPAError:  # nothing usable came of this sentence
            continue


def _of_sentence(model: GPA, base: dict[str, Any], text: str, other: str) -> Iterator[dict[str, Any]]:
    """Speech of the sentence, what is heard in it, and its conversion to `other`."""
    speech = model.tts(text, voice=base["speaker"], seed=_number(base))
    if speech.finish_reason != "stop":
        return
    voice = list(model.resolve_voice(base["speaker"]).codes)
    said = {**base, "semantic": speech.tokens.tolist(), "global": voice}
    yield {**said, "task": TTS.name, "text": sequences.stored_text(model.format, text)}
    sound = (speech.wav, speech.sample_rate)
    said |= _heard(model, sound)  # what is heard, not what was meant
    yield {**said, "task": ASR.name, "text": sequences.stored_text(model.format, model.asr(sound).text)}
    yield from _converted(model, said, sound, other)


def _parts(model: GPA, recordings: Iterable[Sound]) -> Iterator[Sound]:
    """Recordings in the pieces that the model converts at once."""
    for wav, rate in recordings:
        for part in model.processor.audio_parts(model.processor.hear((wav, rate), "a recording"), VC.name):
            yield part, model.sample_rate


def _conversions(model: GPA, recordings: Sequence[Sound]) -> Iterator[dict[str, Any]]:
    """Recordings in shipped voices, pair by pair: longer and less tidy than what the model says itself."""
    names = sorted(model.voices)
    pairs = [(name, n) for name in names for n in range(len(recordings))][:CONVERSIONS]
    heard = [_heard(model, sound) for sound in recordings]
    for k, (name, n) in enumerate(tqdm(pairs, desc="conversions", unit="clip", dynamic_ncols=True)):
        said = {"id": f"replay-clip-{k}", "split": "train", "speaker": "recorded", **heard[n]}
        try:
            yield from _converted(model, said, recordings[n], name)
        except GPAError:
            continue


def _heard(model: GPA, sound: Sound) -> dict[str, list[int]]:
    """The ids of sound that recognition and conversion read."""
    ids = {"semantic": model.codec.codes(sound).tolist()}
    return ids | ({"glm": model.glm.tokens(sound).tolist()} if model.glm else {})


def _converted(model: GPA, said: dict[str, Any], sound: Sound, voice: str) -> Iterator[dict[str, Any]]:
    made = model.vc(sound, voice=voice, mode="lm", seed=_number(said))
    if made.finish_reason == "stop":
        codes = list(model.resolve_voice(voice).codes)
        yield {**said, "task": VC.name, "text": "", "target": made.tokens.tolist(), "global": codes}


def _number(row: dict[str, Any]) -> int:
    return int(row["id"].rpartition("-")[2])
