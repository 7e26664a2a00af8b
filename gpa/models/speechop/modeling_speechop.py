"""The network: a diffusion transformer over latent frames, with text, source audio, task and speech prompt.

SpeechOp, arXiv 2509.14298. `condition` computes what does not change during sampling, `denoise` one velocity
and `forward` both. Knows no schedule beyond the range of the log-SNR, no sampler, no codec.

    B batch   C latent channels   H channels of the ASR encoder, or 0   T target frames   P prompt frames   L
    = P + T N text positions   D width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpa.errors import UsageError
from gpa.models.speechop.layers_speechop import (
    EPS,
    Block,
    LevelEmbedding,
    PlaceEmbedding,
    Text,
    TextKeys,
    frames_of,
    relative_positions,
    text_keys,
)
from gpa.models.speechop.text_speechop import ByteEncoder
from gpa.nn.convnext import AdaLayerNorm

if TYPE_CHECKING:
    from gpa.models.speechop.configuration_speechop import SpeechOpConfig


class Latents(NamedTuple):
    """Clean latents (B, C, P) and which of their frames are real (B, P); the padding may stand anywhere."""

    values: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Conditions:
    """What a batch is conditioned on; every null is explicit.

    `task` (B,) int64, `mask` (B, T) bool the real target frames. `text` None, or a row without real
    positions, is the null text. `source` (B, C + H, T) None, or a row False in `has_source` (B,), is the
    null source; below its latents stands what an ASR encoder of H channels hears, if the model has one.
    `prompt` None, or a row without real frames, is the null prompt.
    """

    task: Tensor
    mask: Tensor
    text: Text | None = None
    source: Tensor | None = None
    has_source: Tensor | None = None
    prompt: Latents | None = None


class Context(NamedTuple):
    """Conditions as the DiT reads them, computed once for all steps of sampling."""

    task: Tensor  # (B, D)
    prompt: Tensor  # (B, C, P), P may be 0
    mask: Tensor  # (B, L) real frames
    source: Tensor  # (B, L, D), added to the frames
    text: tuple[TextKeys, ...]  # one a layer
    text_mask: Tensor  # (B, 1 + N), the null text's slot first


class AudioEncoder(nn.Module):
    """Source latents, and what an ASR encoder hears, to features of each frame; driven by the task alone,
    without a noise level.
    """

    def __init__(self, config: SpeechOpConfig) -> None:
        super().__init__()
        sizes = config.encoder
        self.head_width = sizes.width // sizes.heads
        self.task = nn.Embedding(len(config.tasks.names), sizes.width)
        self.into = nn.Linear(config.latent.channels, sizes.width)
        self.listen: nn.Linear | None = None
        if config.asr_features.channels:
            self.listen = nn.Linear(config.asr_features.channels, sizes.width, bias=False)
            nn.init.zeros_(self.listen.weight)  # a network without an ASR encoder can go on with one
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.width, eps=EPS)

    def forward(self, source: Tensor, mask: Tensor, task: Tensor) -> Tensor:
        """source (B, C + H, L), mask (B, L), task (B,) -> (B, L, De)."""
        frames, cond = frames_of(mask, self.head_width), F.silu(self.task(task))
        source = source.transpose(1, 2)
        if self.listen is None:
            x = self.into(source)
        else:
            latents, heard = source.tensor_split([self.into.in_features], 2)
            x = self.into(latents) + self.listen(F.layer_norm(heard, heard.shape[2:]))
        for block in self.blocks:
            x = block(x, frames, cond)
        return self.norm(x)


class SpeechOpModel(nn.Module):
    """The multi-task diffusion transformer. With text of kind bytes it reads ids, of kind byt5 states."""

    def __init__(self, config: SpeechOpConfig) -> None:
        super().__init__()
        self.config = config
        sizes, channels = config.dit, config.latent.channels
        self.head_width = sizes.width // sizes.heads
        self.into = nn.Linear(channels, sizes.width)
        self.clean = nn.Embedding(2, sizes.width)  # 0 noisy frame, 1 clean frame
        self.level = LevelEmbedding(sizes.width, config.schedule.lambda_max)
        self.task = nn.Embedding(len(config.tasks.names), sizes.width)
        own_text = config.text.kind == "bytes"
        self.text_encoder: ByteEncoder | None = ByteEncoder(config.text) if own_text else None
        self.text_into = nn.Linear(config.text.width, sizes.width)
        placed = config.text.positions != "none"
        self.place: PlaceEmbedding | None = PlaceEmbedding(sizes.width) if placed else None
        self.encoder = AudioEncoder(config)
        self.encoder_into = nn.Linear(config.encoder.width, sizes.width)
        learned = config.null.source == "learned"
        self.null_source = nn.Parameter(torch.zeros(sizes.width)) if learned else None
        self.blocks = nn.ModuleList(Block(sizes, text=True) for _ in range(sizes.layers))
        self.norm = AdaLayerNorm(sizes.width, sizes.width)
        self.out = nn.Linear(sizes.width, channels)
        nn.init.zeros_(self.out.weight)  # the first prediction is v = 0: no worse than knowing nothing
        nn.init.zeros_(self.out.bias)
        for embedding in (self.clean, self.task, self.encoder.task):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, z: Tensor, lam: Tensor, conditions: Conditions, clean: Tensor | None = None) -> Tensor:
        """Velocity (B, C, T) of noisy latents z at log-SNRs lam (B,); clean (B, T) marks known frames."""
        return self.denoise(z, lam, self.condition(conditions), clean)

    # What is constant during sampling -----------------------------------------------------------------------

    def condition(self, given: Conditions) -> Context:
        """Text keys, source features and task embeddings of a batch."""
        rows = len(given.task)
        prompt = given.prompt or self._no_prompt(rows)
        mask = torch.cat([prompt.mask, given.mask], 1)
        text, text_mask = self._text(given.text, rows)
        return Context(
            task=self.task(given.task),
            prompt=prompt.values,
            mask=mask,
            source=self._source(given, prompt, mask),
            text=text,
            text_mask=text_mask,
        )

    def _no_prompt(self, rows: int) -> Latents:
        weight = self.into.weight
        values = weight.new_zeros(rows, self.config.latent.channels, 0)
        return Latents(values, torch.zeros(rows, 0, dtype=torch.bool, device=weight.device))

    def _text(self, text: Text | None, rows: int) -> tuple[tuple[TextKeys, ...], Tensor]:
        """Keys and values of every layer, and the mask over slot and text."""
        weight = self.into.weight
        if text is None:
            states = weight.new_zeros(rows, 0, self.config.dit.width)
            mask = torch.zeros(rows, 0, dtype=torch.bool, device=weight.device)
        else:
            states, mask = self.text_into(self._states(text)), text.mask
        place = None if self.place is None else self.place(relative_positions(mask))
        keys = tuple(text_keys(block, states, place) for block in self.blocks)
        return keys, F.pad(mask, (1, 0), value=True)

    def _states(self, text: Text) -> Tensor:
        if text.values.is_floating_point():
            return text.values
        if self.text_encoder is None:
            raise UsageError("this model reads states of ByT5, not ids: encode the text with ByT5Encoder")
        return self.text_encoder(text).values

    def _source(self, given: Conditions, prompt: Latents, mask: Tensor) -> Tensor:
        """What is added to the frames (B, L, D): features of prompt and source, or the null source."""
        null = self.into.weight.new_zeros(self.config.dit.width)
        null = null if self.null_source is None else self.null_source
        if given.source is None:
            return null.expand(*mask.shape, -1)
        unheard = given.source.shape[1] - prompt.values.shape[1]  # of a prompt latents are enough
        source = torch.cat([F.pad(prompt.values, (0, 0, 0, unheard)), given.source], 2)
        features = self.encoder_into(self.encoder(source, mask, given.task))
        if given.has_source is None:
            return features
        return torch.where(given.has_source[:, None, None], features, null)

    # One evaluation -----------------------------------------------------------------------------------------

    def denoise(self, z: Tensor, lam: Tensor, context: Context, clean: Tensor | None = None) -> Tensor:
        """Velocity (B, C, T) of the target frames, zero at padding (arguments as `forward`)."""
        latents = torch.cat([context.prompt, z], 2)  # (B, C, L)
        prompt = context.prompt.shape[2]
        if clean is None:
            clean = torch.zeros(len(z), z.shape[2], dtype=torch.bool, device=z.device)
        marker = F.pad(clean, (prompt, 0), value=True).long()
        frames = frames_of(context.mask, self.head_width)
        cond = F.silu(self.level(lam) + context.task)
        frame_places = self.place if self.config.text.positions == "both" else None
        place = None if frame_places is None else frame_places(frames.relative)
        x = self.into(latents.transpose(1, 2)) + self.clean(marker) + context.source
        for block, keys in zip(self.blocks, context.text, strict=True):
            x = block(x, frames, cond, keys, context.text_mask, place)
        v = self.out(self.norm(x, cond)) * context.mask[..., None]
        return v[:, prompt:].transpose(1, 2)
