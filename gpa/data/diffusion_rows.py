"""SpeechOp's training examples: clean latents of a cache of speech, pairs of sounds made on the fly, batches.

Clean speech is encoded once and kept; what a chain of `gpa.data.augment` has changed is encoded when it is
drawn. Knows no network and no optimiser. Source: docs/speechop.md.

    B rows   C latent channels   T latent frames   P prompt frames   S samples at 16 kHz   N text positions
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gpa import disk
from gpa.codec.feature_encoder import FRAME
from gpa.data.alignment import frames_to_pieces, piece_spans
from gpa.data.augment import Degrader, Pair
from gpa.data.effects import RATE
from gpa.data.feature_cache import FeatureCache
from gpa.data.token_folder import COMMAND, TokenSet
from gpa.errors import UsageError
from gpa.models.speechop import diffusion_speechop
from gpa.models.speechop.layers_speechop import Text
from gpa.models.speechop.modeling_speechop import Conditions, Latents
from gpa.models.speechop.text_speechop import text_ids
from gpa.text.letters import letters_of
from gpa.text.normaliser import normalise_text

if TYPE_CHECKING:
    from gpa.codec.kl import KLCodec
    from gpa.models.speechop.asr_features_speechop import ASRFeatures
    from gpa.models.speechop.configuration_speechop import SpeechOpConfig
    from gpa.models.speechop.diffusion_speechop import Choice


class SpeechLatents:
    """A feature cache counted in latent frames: the sound of every row, and its latents.

    Latents of clean speech are made at the first use of a codec and kept beside the cache as float16, in a
    file named by the codec's fingerprint. UsageError for a codec whose frames are not whole ones of the
    cache.
    """

    def __init__(self, folder: str | Path, codec: KLCodec, asr_features: ASRFeatures | None = None) -> None:
        self.cache, self.codec, hop = FeatureCache(folder, sound_only=True), codec, codec.spec.hop_length
        self.asr_features = asr_features
        if codec.spec.sample_rate != RATE or hop % FRAME:
            raise UsageError(
                f"the codec needs {RATE} Hz and a hop of whole {FRAME} samples, as the cache has"
            )
        self.per = hop // FRAME  # frames of the cache
        self.rows = self.cache.rows
        counts = [-(-row["frames"] // self.per) for row in self.rows]
        self.offsets = np.cumsum([0, *counts])
        self.fingerprint = codec.fingerprint()
        path = Path(folder) / f"latents-{self.fingerprint[:16]}.f16"
        if not path.is_file() or path.stat().st_size != self.offsets[-1] * codec.spec.channels * 2:
            self._measure(path)
        values = np.fromfile(path, np.float16).reshape(-1, codec.spec.channels)
        self._clean = torch.from_numpy(values)  # (all frames, C)

    def _measure(self, path: Path) -> None:
        with disk.file_whole(path) as partial, partial.open("wb") as f:
            for i in tqdm(range(len(self.rows)), desc="latents", dynamic_ncols=True):
                f.write(self.encode([self.wav(i)])[0].T.half().contiguous().numpy().tobytes())

    def frames(self, i: int) -> int:
        """Latent frames of row i."""
        return int(self.offsets[i + 1] - self.offsets[i])

    def clean(self, i: int, begin: int = 0, end: int | None = None) -> Tensor:
        """Latents (C, T) float32 of row i between two latent frames."""
        at = int(self.offsets[i])
        end = self.frames(i) if end is None else end
        return self._clean[at + begin : at + end].T.float()

    def wav(self, i: int, begin: int = 0, end: int | None = None) -> np.ndarray:
        """Samples of row i between two latent frames, a whole number of hops."""
        end = self.frames(i) if end is None else end
        wav = self.cache.wav(i, begin * self.per, min(end * self.per, self.rows[i]["frames"]))
        return np.pad(wav, (0, (end - begin) * self.per * FRAME - len(wav)))

    def encode(self, wavs: Sequence[np.ndarray]) -> list[Tensor]:
        """Latents (C, T) of each sound (S,), in float32 whatever the precision around is."""
        with torch.autocast(self.codec.device.type, enabled=False):
            return [self.codec.encode(torch.from_numpy(wav)[None])[0].cpu() for wav in wavs]

    def source(self, wav: np.ndarray, latents: Tensor) -> Tensor:
        """Latents (C, T) of a sound (S,), and below them what the ASR encoder hears of it, if there is
        one.
        """
        if self.asr_features is None:
            return latents
        return torch.cat([latents, self.asr_features(torch.from_numpy(wav)[None])[0].cpu()])

    def stretch(self, rows: Sequence[int], rng: np.random.Generator, samples: int) -> np.ndarray:
        """So many samples of one of the rows, repeated if it is shorter; of these babble is made."""
        i, hop = int(rng.choice(rows)), self.per * FRAME
        wanted = -(-samples // hop)
        begin = int(rng.integers(0, max(1, self.frames(i) - wanted + 1)))
        return np.resize(self.wav(i, begin, min(begin + wanted, self.frames(i))), samples)


# Examples ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """One row before any decision: latents (C, T), of the prompt (C, P), and the text, normalised.

    A source has the channels of an ASR encoder below its latents. `look` (T, 2) are the bytes [first, last)
    of the text that are spoken around each frame, where known.
    """

    task: str
    target: Tensor
    text: str | None = None
    look: Tensor | None = None
    source: Tensor | None = None
    prompt: Tensor | None = None


class Cut:
    """A stretch of a row between two latent frames: its samples (S,) and clean latents (C, T)."""

    def __init__(self, speech: SpeechLatents, row: int, begin: int, frames: int) -> None:
        self.row, self.wav = row, speech.wav(row, begin, begin + frames)
        self.clean = speech.clean(row, begin, begin + frames)


class Pairs:
    """Speech-to-speech examples of some rows, each a function of row, number and generator.

    A crop has `crop` latent frames, a prompt (a voice, or acoustics) between a third of `prompt` and all of
    it; prompts and second speakers are of `others` too. UsageError if no row is as long as a crop.
    """

    def __init__(
        self,
        speech: SpeechLatents,
        rows: Sequence[int],
        degrader: Degrader,
        crop: int,
        prompt: int,
        others: Sequence[int] = (),
    ) -> None:
        self.speech, self.degrader, self.crop, self.prompt = speech, degrader, crop, prompt
        self.every = [*rows, *others]
        self.rows = [i for i in rows if speech.frames(i) >= crop]
        if not self.rows:
            raise UsageError("no clips hold data.crop_s: lower it")
        self.speakers = {i: str(speech.rows[i]["speaker"]) for i in self.every}
        self.long = [i for i in self.every if speech.frames(i) >= crop]

    def example(self, task: str, i: int, number: int, rng: np.random.Generator) -> Example:
        """Source, target and prompt of a random crop of row i, degraded by the chain of the number."""
        cut = self._cut(i, self.crop, rng)
        pair, used = _MAKE[task](self, cut, number, rng)
        source = self.speech.source(pair.source, self._latents(pair.source, [cut]))
        target = self._latents(pair.target, [cut])
        prompt = None if pair.prompt is None else self._latents(pair.prompt, used)
        return Example(task, target, source=source, prompt=prompt)

    def _cut(self, i: int, frames: int, rng: np.random.Generator) -> Cut:
        frames = min(frames, self.speech.frames(i))
        return Cut(self.speech, i, int(rng.integers(0, self.speech.frames(i) - frames + 1)), frames)

    def _latents(self, wav: np.ndarray, cuts: Sequence[Cut]) -> Tensor:
        """Latents (C, T) of a sound; those of a cut that was not changed are known already."""
        known = next((cut.clean for cut in cuts if np.array_equal(cut.wav, wav)), None)
        return self.speech.encode([wav])[0] if known is None else known

    def another(self, i: int, rng: np.random.Generator) -> Cut:
        """A crop by another speaker than that of row i."""
        others = [j for j in self.long if self.speakers[j] != self.speakers[i]]
        if not others:
            raise UsageError("spk_sep needs clips of two speakers that hold data.crop_s, or a weight of 0")
        return self._cut(int(rng.choice(others)), self.crop, rng)

    def sample(self, i: int, rng: np.random.Generator) -> Cut:
        """A prompt by the speaker of row i, of another row if there is one."""
        same = [j for j in self.every if self.speakers[j] == self.speakers[i] and j != i]
        return self.any_sample(same or [i], rng)

    def any_sample(self, rows: Sequence[int], rng: np.random.Generator) -> Cut:
        """A prompt of one of the rows."""
        frames = int(rng.integers(max(1, self.prompt // 3), self.prompt + 1))
        return self._cut(int(rng.choice(rows)), frames, rng)


Made = tuple[Pair, list[Cut]]  # and the clean stretches its prompt may be


def _enhance(pairs: Pairs, cut: Cut, number: int, rng: np.random.Generator) -> Made:
    return pairs.degrader.enhance(cut.wav, number), []


def _speech(pairs: Pairs, cut: Cut, number: int, rng: np.random.Generator) -> Made:
    return pairs.degrader.isolate(cut.wav, number, background=False), []


def _background(pairs: Pairs, cut: Cut, number: int, rng: np.random.Generator) -> Made:
    return pairs.degrader.isolate(cut.wav, number, background=True), []


def _extract(pairs: Pairs, cut: Cut, number: int, rng: np.random.Generator) -> Made:
    other, voice = pairs.another(cut.row, rng), pairs.sample(cut.row, rng)
    return pairs.degrader.extract(cut.wav, other.wav, voice.wav, number), [voice]


def _match(pairs: Pairs, cut: Cut, number: int, rng: np.random.Generator) -> Made:
    example = pairs.any_sample(pairs.every, rng)
    return pairs.degrader.match(cut.wav, example.wav, number), [example]


_MAKE: dict[str, Callable[[Pairs, Cut, int, np.random.Generator], Made]] = {
    "enhance": _enhance,
    "iso_fg": _speech,
    "iso_bg": _background,
    "spk_sep": _extract,
    "match": _match,
}
PAIRED = tuple(_MAKE)
PROMPTED = ("spk_sep", "match")  # they have a prompt, so they share batches


# Batches ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiffusionBatch:
    """Rows with all that is random about them decided; shapes as in `Conditions`, padding at the right.

    Plain tensors, which a loader can send and place. `clean` (B, T) marks frames given as they are.
    """

    task: Tensor  # (B,) row of the task's embedding
    mask: Tensor  # (B, T) real frames
    x: Tensor  # (B, C, T), zero at padding
    eps: Tensor
    lam: Tensor  # (B,)
    clean: Tensor
    text: Tensor | None = None  # (B, N) ids
    text_mask: Tensor | None = None
    source: Tensor | None = None
    has_source: Tensor | None = None
    prompt: Tensor | None = None
    prompt_mask: Tensor | None = None
    look: Tensor | None = None  # (B, T, 2), (0, 0) where nothing is known or the text is dropped

    @property
    def conditions(self) -> Conditions:
        """What the network is given beside the noisy latents."""
        text = None if self.text is None or self.text_mask is None else Text(self.text, self.text_mask)
        some = self.prompt is not None and self.prompt_mask is not None
        prompt = Latents(self.prompt, self.prompt_mask) if some else None  # type: ignore[arg-type]
        return Conditions(self.task, self.mask, text, self.source, self.has_source, prompt)

    @property
    def frames(self) -> Tensor:
        """Frames (B, T) that the loss is of: noisy and no padding."""
        return self.mask & ~self.clean


def padded(rows: Sequence[Tensor | None], channels: int) -> tuple[Tensor, Tensor]:
    """Latents (C, T) of any lengths as (B, C, T) with their mask (B, T); None is a row of padding."""
    lengths = [0 if row is None else row.shape[1] for row in rows]
    values = torch.zeros(len(rows), channels, max(lengths))
    for value, row in zip(values, rows, strict=True):
        if row is not None:
            value[:, : row.shape[1]] = row
    return values, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def collate(
    examples: Sequence[Example],
    choices: Sequence[Choice],
    lam: Tensor,
    rng: np.random.Generator,
    config: SpeechOpConfig,
) -> DiffusionBatch:
    """Examples, what each of them loses and keeps clean, and their levels (B,), as one batch.

    A condition that no row has is absent. Where a row keeps a segment clean, its source is that too.
    """
    channels, pairs = config.latent.channels, list(zip(examples, choices, strict=True))
    x, mask = padded([e.target for e in examples], channels)
    eps = torch.zeros_like(x)
    for row, example in zip(eps, examples, strict=True):
        size = example.target.shape
        row[:, : size[1]] = torch.from_numpy(rng.standard_normal(tuple(size), np.float32))
    clean = diffusion_speechop.clean_mask(choices, x.shape[2])
    given: dict[str, Tensor] = {}
    if any(e.text for e in examples):
        given["text"], given["text_mask"] = text_ids([None if c.drop_text else e.text for e, c in pairs])
    if any(e.look is not None for e in examples):
        given["look"] = torch.zeros(*mask.shape, 2, dtype=torch.long)
        for row, (e, c) in zip(given["look"], pairs, strict=True):
            if e.look is not None and not c.drop_text:
                row[: len(e.look)] = e.look
    sources = [None if c.drop_source else e.source for e, c in pairs]
    if any(s is not None for s in sources):
        high = channels + config.asr_features.channels
        values, _ = padded([*sources, x[0].new_zeros(high, x.shape[2])], high)
        given["source"] = diffusion_speechop.inpaint_source(values[:-1], x, clean)
        given["has_source"] = torch.tensor([s is not None for s in sources])
    if any(e.prompt is not None for e in examples):
        given["prompt"], given["prompt_mask"] = padded([e.prompt for e in examples], channels)
    task = torch.tensor([config.tasks.index(e.task) for e in examples])
    return DiffusionBatch(task, mask, x, eps, lam, clean, **given)


def texts_of(speech: SpeechLatents, rows: Sequence[int]) -> dict[int, str]:
    """Normalised texts of the rows that have one."""
    found = {i: normalise_text(speech.rows[i].get("text") or "") for i in rows}
    return {i: text for i, text in found.items() if text}


def looks_of(tokens: str | Path, speech: SpeechLatents, texts: dict[int, str]) -> dict[int, Tensor]:
    """`Example.look` of texts whose letters `gpa prepare --align` has timed, by row.

    UsageError for a token folder that has none of them.
    """
    timed = {(row["id"], row["split"]): row for row in TokenSet.open(tokens) if len(row.get("letters", ()))}
    found = {}
    for i, text in texts.items():
        row = timed.get((speech.rows[i]["id"], speech.rows[i]["split"]))
        if row is not None and row["text"] == text:
            scale = speech.frames(i) / len(row["semantic"])
            times = [int(at * scale) for at in row["letters"]]
            pieces = [chr(byte) if byte < 128 else "" for byte in text.lower().encode()]
            spans = piece_spans(pieces, letters_of(text), times, speech.frames(i))
            found[i] = torch.from_numpy(frames_to_pieces(spans, speech.frames(i)))
    if not found:
        raise UsageError(
            f"{tokens}: has no letter times of these clips; make it: {COMMAND} DIR --codec EXPORT --align"
        )
    return found
