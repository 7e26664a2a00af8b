"""The text seam: strings to bytes, bytes to states, and how long speech of a text should be.

Both encoders read the same ids, ByT5's, and return states (B, N, Dt); the model knows no other kind of text.

    B batch   N text positions   Dt width of the text states
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gpa import hub
from gpa.errors import UsageError
from gpa.models.speechop.layers_speechop import EPS, Block, Text, frames_of

if TYPE_CHECKING:
    from gpa.models.speechop.configuration_speechop import SpeechOpConfig, TextEncoder

PAD, END, FIRST_BYTE = 0, 1, 3  # ByT5's ids; 2 is its unknown, which bytes never need
SIZE = FIRST_BYTE + 256


def text_ids(texts: Sequence[str | None], device: torch.device | str = "cpu") -> Text:
    """Lower-cased UTF-8 bytes with an end token, right-padded; None and "" become the null text."""
    rows = [[byte + FIRST_BYTE for byte in text.lower().encode()] + [END] if text else [] for text in texts]
    longest = max([1, *map(len, rows)])
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], device=device)
    counts = torch.tensor([len(row) for row in rows], device=device)
    return Text(ids, torch.arange(longest, device=device) < counts[:, None])


class ByteEncoder(nn.Module):
    """A small encoder that trains with the model: an embedding per byte and transformer blocks."""

    def __init__(self, sizes: TextEncoder) -> None:
        super().__init__()
        self.head_width = sizes.width // sizes.heads
        self.embed = nn.Embedding(SIZE, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes.stack, adaptive=False) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.width, eps=EPS)

    def forward(self, text: Text) -> Text:
        """Ids (B, N) to states (B, N, Dt)."""
        frames = frames_of(text.mask, self.head_width)
        x = self.embed(text.values)
        for block in self.blocks:
            x = block(x, frames)
        return Text(self.norm(x), text.mask)


class ByT5Encoder(nn.Module):
    """The encoder of ByT5, frozen: states for a model whose config says `text.kind: byt5`.

    It lives outside the model, whose checkpoints do not repeat its weights.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ByT5Encoder:
        """From a local directory of google/byt5-base or another T5 encoder."""
        from transformers import T5Config, T5EncoderModel

        from gpa.codec.feature_encoder import library_config, library_model

        file = Path(folder) / "config.json"
        config = library_config(T5Config, hub.read_json(file), str(file))
        return cls(library_model(T5EncoderModel, config, Path(folder)))

    def train(self, mode: bool = True) -> ByT5Encoder:
        """Stays in evaluation mode: it is frozen, dropout included."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, text: Text) -> Text:
        """Ids (B, N) to states (B, N, Dt)."""
        states: Tensor = self.encoder(
            input_ids=text.values, attention_mask=text.mask.long()
        ).last_hidden_state
        return Text(states, text.mask)


# Length of speech: there is no duration model -------------------------------------------


def speaking_rate(units: int, frames: int, config: SpeechOpConfig) -> float:
    """Units of text per second of a reference of so many latent frames."""
    if units < 1 or frames < 1:
        raise UsageError(f"{units} {config.tts.unit} in {frames} frames have no speaking rate")
    return units * config.latent.frame_rate / frames


def target_frames(units: int, config: SpeechOpConfig, rate: float | None = None) -> int:
    """Latent frames of speech: frame rate * units / rate, at least one; without a rate the configured one.

    Units are phonemes or characters, as `config.tts.unit` says; the caller counts them.
    """
    return max(1, round(config.latent.frame_rate * units / (rate or config.tts.default_rate)))
