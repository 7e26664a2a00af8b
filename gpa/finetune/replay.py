"""What the base model can do, written down by itself: rows to rehearse while a new voice is learnt.

The model's own answers are the targets (self-distillation, Li and Hoiem 2016): speech in its shipped voices,
what it hears in that speech, and conversions of it. So no corpus is needed, and none is imitated better than
the model did before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpa.data import tokenset
from gpa.errors import GenerationError, GPAError
from gpa.models.gpa.modeling_gpa import GPA

HELD = 24  # sentences for the comparison; the others are rehearsed
PASSES = 2  # every rehearsed sentence is spoken in so many voices


def sentences() -> tuple[list[str], list[str]]:
    """Sentences to rehearse, and others to compare on."""
    lines = resources.files("gpa").joinpath("assets/sentences.txt").read_text(encoding="utf-8").splitlines()
    return lines[HELD:], lines[:HELD]


def write(model: GPA, texts: Sequence[str], folder: Path) -> None:
    """A token folder of rows of all three tasks; it appears when it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(_rows(model, texts))
    if not rows:
        raise GenerationError("the base model made no speech to rehearse: give a prepared folder, --replay")
    for name, content in model.processor.text_files.items():
        (folder / name).write_bytes(content)
    tokenset.write_text(folder / "tokens.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _rows(model: GPA, texts: Sequence[str]) -> Iterator[dict[str, Any]]:
    names = sorted(model.voices)
    spoken = [(n, text) for n in range(PASSES if names else 0) for text in texts]
    for k, (n, text) in enumerate(tqdm(spoken, desc="rehearsal", unit="sentence", dynamic_ncols=True)):
        name, other = names[k % len(names)], names[(k + 1 + n) % len(names)]
        base = {"id": f"replay-{k}", "split": "train", "speaker": name}
        try:
            yield from _of_sentence(model, base, text, name, other if k % 3 == 0 else "")
        except GPAError:  # nothing usable came of this sentence
            continue


def _of_sentence(
    model: GPA, base: dict[str, Any], text: str, name: str, other: str
) -> Iterator[dict[str, Any]]:
    """Speech of the sentence, what is heard in it, and its conversion to `other` unless that is empty."""
    speech = model.tts(text, voice=name, seed=int(base["id"].rpartition("-")[2]))
    if speech.finish_reason != "stop":
        return
    voice = list(model.resolve_voice(name).codes)
    said = {**base, "semantic": speech.tokens.tolist(), "global": voice}
    yield {**said, "task": "tts", "text": tokenset.stored_text(model.format, text)}
    sound = (speech.wav, speech.sample_rate)
    said["semantic"] = model.codec.semantic_tokens(sound).tolist()  # what is heard, not what was meant
    if model.glm:  # its recognition also reads ids that only sound gives
        said["glm"] = model.glm.tokens(sound).tolist()
    heard = model.asr(sound)
    yield {**said, "task": "asr", "text": tokenset.stored_text(model.format, heard.text)}
    if other:
        made = model.vc(sound, voice=other)
        codes = list(model.resolve_voice(other).codes)
        yield {**said, "task": "vc", "text": "", "target": made.tokens.tolist(), "global": codes}
