"""Recorded outputs of a checkpoint: `record` writes its golden/ folder, `verify` computes them again.

The layout is that of the published replica: cases.json, tensors.safetensors, audio_N.wav.
Every stage starts from recorded inputs, so an error is reported where it arises and not again in what
follows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gpa import audio as sound
from gpa import disk, hub
from gpa.codec.base import differing
from gpa.errors import CheckpointError, UsageError
from gpa.models.gpa.checkpoint_gpa import GOLDEN
from gpa.models.gpa.outputs_gpa import Voice
from gpa.prompt.tasks import FIELD_OF

if TYPE_CHECKING:
    from gpa.models.gpa.pipeline_gpa import GPA

FOLDER, CASES, TENSORS = GOLDEN, "cases.json", "tensors.safetensors"
NEW_IDS = 24  # recorded greedy continuation of each prompt
# Where two codes are almost equally near, kernels that round differently flip one: compared by that margin.
CODES, FLOATS = 1e-3, 1e-4


@dataclass(frozen=True)
class Stage:
    """The largest error of one stage over `items` recorded items, and what it may be.

    `unit` says what the error is: a margin, a difference relative to the largest value, or a count.
    """

    name: str
    error: float
    tolerance: float
    items: int
    unit: str

    @property
    def ok(self) -> bool:
        """Whether the error is within tolerance; NaN is not."""
        return self.error <= self.tolerance


class Golden:
    """A golden/ folder, read: `cases`, `training` rows, recorded arrays by kind and clip number."""

    def __init__(self, folder: Path) -> None:
        if not (folder / CASES).is_file():
            raise CheckpointError(f"{folder}: no {CASES}, so there are no recorded outputs to compare with")
        self.folder = folder
        tree = hub.read_json(folder / CASES)
        try:
            self.tensors: dict[str, np.ndarray] = load_file(folder / TENSORS)
            self.cases: list[dict[str, Any]] = tree["cases"]
            self.vocab_size, self.offsets = int(tree["vocab_size"]), dict(tree["offsets"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder}: incomplete or damaged ({error})") from error
        self.training: list[dict[str, Any]] = tree.get("training", [])

    def clips(self, kind: str) -> Iterator[tuple[Path, np.ndarray]]:
        """(audio file, recorded codes (N,)) of every clip with codes of a kind: semantic, global or glm."""
        for name in sorted(self.tensors):
            if match := re.fullmatch(rf"{kind}_(\d+)", name):
                yield self.folder / f"audio_{match[1]}.wav", self.tensors[name].reshape(-1)

    def codes(self, kind: str, file: str | None) -> list[int] | None:
        """Recorded codes of the clip with this file name; None without a file or a record."""
        if not file:
            return None
        found = self.tensors.get(f"{kind}_{Path(file).stem.removeprefix('audio_')}")
        return None if found is None else [int(code) for code in found.reshape(-1)]


def verify(model: GPA) -> list[Stage]:
    """Compare a model with the golden/ folder of its directory; CheckpointError if there is none."""
    if model.path is None:
        raise UsageError("only a model that was loaded from a directory can be verified")
    golden = Golden(model.path / FOLDER)
    codec, glm = model.codec, model.processor.glm
    stages = [
        Stage("vocabulary", _vocabulary(model, golden), 0, 1 + len(golden.offsets), "numbers that differ"),
        _codes("semantic", codec.code_excess, golden),
        _codes("global", codec.voice_excess, golden),
        *([_codes("glm", lambda path, codes: differing(glm.tokens(path), codes), golden)] if glm else []),
        _exact("prompts", [(_prompt(model, golden, c), c["prompt"]) for c in golden.cases]),
        _exact("training rows", [pair for row in golden.training for pair in _row(model, golden, row)]),
        _largest("logits", [_logits_error(model, golden, case) for case in golden.cases]),
        _largest("greedy ids", [_greedy_error(model, case) for case in golden.cases]),
        _largest("frames", _frame_errors(model, golden)),
        _largest("waveform", _waveform_errors(model, golden)),
    ]
    return [stage for stage in stages if stage.items]


def _vocabulary(model: GPA, golden: Golden) -> int:
    """How many of the vocabulary's size and block offsets differ."""
    found = {block.name: block.offset for block in model.processor.vocab.blocks}
    expected = {re.sub(r"(_semantic)?_token_offset$", "", k): v for k, v in golden.offsets.items()}
    return (model.processor.vocab.size != golden.vocab_size) + sum(
        found.get(k) != v for k, v in expected.items()
    )


def _codes(kind: str, excess: Callable[[Path, np.ndarray], float], golden: Golden) -> Stage:
    errors = [excess(path, codes) for path, codes in golden.clips(kind)]
    return Stage(
        f"{kind} codes", float(np.max(errors, initial=0.0)), CODES, len(errors), "margin of lost codes"
    )


def _exact(name: str, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Stage:
    wrong = sum(list(found) != list(expected) for found, expected in pairs)
    return Stage(name, wrong, 0, len(pairs), "sequences that differ")


def _largest(name: str, errors: Sequence[float]) -> Stage:
    # np.max, unlike max, hands a NaN on.
    return Stage(name, float(np.max(errors, initial=0.0)), FLOATS, len(errors), "relative error")


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the largest expected value; infinite for another shape."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))


def _prompt(model: GPA, golden: Golden, case: Mapping[str, Any]) -> list[int]:
    """The prompt of a case, from its text and the recorded codes."""
    return model.processor.format.build(case["task"], **_fields(model, golden, case))


def _fields(model: GPA, golden: Golden, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a case's or row's layout takes: its text, and recorded codes in place of its files."""
    source, reference = (row.get(f"{name}_path") or row.get(name) for name in ("audio", "ref_audio"))
    text = row.get("text")
    fields = {
        "glm": golden.codes("glm", source),
        "semantic": golden.codes("semantic", source),
        "global": golden.codes("global", reference),
        "content": text and model.processor.pronounced(text),
    }
    blocks = model.format.layouts[model.format.task(row["task"]).name].blocks
    return {FIELD_OF[kind]: fields[kind] for kind in blocks}


def _row(model: GPA, golden: Golden, row: Mapping[str, Any]) -> list[tuple[Sequence[int], Sequence[int]]]:
    """(found, recorded) pairs of a training row's ids and labels."""
    example = row["example"]
    task = model.format.task(example["task"])
    target: dict[str, Any] = {"target_text": example.get("text")}
    if not task.writes:
        spoken = example["vc_audio" if task.converts else "audio"]
        target = {"target_semantic": golden.codes("semantic", spoken)}
    built = model.processor.format.example(task.name, **target, **_fields(model, golden, example))
    return [(built.input_ids, row["input_ids"]), (built.labels, row["labels"])]


def _logits_error(model: GPA, golden: Golden, case: Mapping[str, Any]) -> float:
    found = model.network.logits(case["prompt"])[-1].cpu().numpy()
    return _relative(found, golden.tensors[f"logits_{case['name']}"])


def _greedy_error(model: GPA, case: Mapping[str, Any]) -> float:
    """0 for the recorded continuation, else how far the recorded id was from winning where they part."""
    expected = case["greedy"]
    found = model.generate(
        case["prompt"], task=case["task"], constrained=False, temperature=0, max_new_tokens=len(expected)
    )
    apart = next((i for i, ids in enumerate(zip(found, expected, strict=False)) if ids[0] != ids[1]), None)
    if apart is None:
        return 0.0 if len(found) == len(expected) else float("inf")
    logits = model.network.logits([*case["prompt"], *expected[:apart]])[-1]
    return float((logits.max() - logits[expected[apart]]) / logits.abs().max())


def _frame_errors(model: GPA, golden: Golden) -> list[float]:
    """Of what the decoder draws; published golden outputs have only the samples."""
    if "detok_frames" not in golden.tensors:
        return []
    return [_relative(_drawn(model, golden), golden.tensors["detok_frames"])]


def _waveform_errors(model: GPA, golden: Golden) -> list[float]:
    """Of the samples of recorded frames: a pitch with another last bit is another phase a second later."""
    if "detok_waveform" not in golden.tensors:
        return []
    frames = golden.tensors.get("detok_frames")
    wav = model.codec.render(_drawn(model, golden) if frames is None else frames)
    return [_relative(wav, golden.tensors["detok_waveform"].reshape(-1))]


def _drawn(model: GPA, golden: Golden) -> np.ndarray:
    semantic, voice = (golden.tensors[f"detok_{kind}"].reshape(-1) for kind in ("semantic", "global"))
    return _frames(model, semantic, voice)


def _frames(model: GPA, semantic: np.ndarray, voice: np.ndarray) -> np.ndarray:
    return model.codec.frames(model.codec.tokens(semantic), Voice(tuple(voice.tolist())))


# Recording --------------------------------------------------------------------------------------------------


def record(model: GPA, folder: str | Path, clips: Sequence[sound.AudioLike], texts: Sequence[str]) -> Path:
    """Write golden/ into a checkpoint directory: every task on every clip, in the next clip's voice.

    `clips` and `texts` are equally many, two at least; keep them short, as they travel with the checkpoint.
    Record with a float32 model on a CPU. Returns the golden folder.
    """
    if len(clips) != len(texts) or len(clips) < 2:
        raise UsageError(f"{len(clips)} clips and {len(texts)} texts: equally many are needed, two at least")
    out = Path(folder) / FOLDER
    out.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for i, clip in enumerate(clips):
        path = out / f"audio_{i}.wav"
        sound.save(path, sound.load(clip, model.sample_rate), model.sample_rate)
        tensors[f"semantic_{i}"] = model.codec.codes(path)
        tensors[f"global_{i}"] = model.codec.voice_codes(path)
        if model.processor.glm:
            tensors[f"glm_{i}"] = model.processor.glm.tokens(path)
    voices = [tuple(tensors[f"global_{i}"].tolist()) for i in range(len(texts))]
    cases = [
        _case(model, out, task, i, texts, voices) for task in model.format.tasks for i in range(len(texts))
    ]
    for case in cases:
        tensors[f"logits_{case['name']}"] = model.network.logits(case["prompt"])[-1].cpu().numpy()
    tensors["detok_semantic"], tensors["detok_global"] = tensors["semantic_0"], tensors["global_0"]
    tensors["detok_frames"] = _frames(model, tensors["semantic_0"], tensors["global_0"])
    tensors["detok_waveform"] = model.codec.render(tensors["detok_frames"])
    offsets = {block.name: block.offset for block in model.processor.vocab.blocks if block.name != "text"}
    tree = {
        "vocab_size": model.processor.vocab.size,
        "offsets": offsets,
        "texts": list(texts),
        "cases": cases,
    }
    disk.write_text(out / CASES, json.dumps(tree, ensure_ascii=False) + "\n")
    with disk.room(out):
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, out / TENSORS)
    return out


def _case(
    model: GPA, out: Path, task: str, i: int, texts: Sequence[str], voices: Sequence[tuple[int, ...]]
) -> dict[str, Any]:
    """One recorded case: inputs by file name, prompt ids, greedy continuation."""
    own, other = f"audio_{i}.wav", f"audio_{(i + 1) % len(texts)}.wav"
    voice = Voice(voices[(i + 1) % len(texts)], model.codec.voice_fingerprint())
    given: dict[str, Any] = {"audio": out / own, "source": out / own, "text": texts[i], "voice": voice}
    inputs = model.format.task(task).inputs
    prompt = model.prompt(task, **{name: given[name] for name in inputs})
    greedy = model.generate(prompt, task=task, constrained=False, temperature=0, max_new_tokens=NEW_IDS)
    case: dict[str, Any] = {"name": f"{task}_{i}", "task": task, "prompt": prompt, "greedy": greedy}
    case |= {"text": texts[i]} if "text" in inputs else {}
    case |= {"audio_path": own} if model.format.task(task).reads_speech else {}
    return case | ({"ref_audio_path": other} if "voice" in inputs else {})
