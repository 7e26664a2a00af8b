"""What stands before the network: audio becomes latents at a standard level, transcripts the text of windows.

Knows the codec, the config and how audio is cut; no plans and no sampling.

    S samples   C latent channels   H channels of the ASR encoder, or 0   T latent frames
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gpa import audio as sound
from gpa.errors import AudioWarning, UsageError
from gpa.models.speechop.text_speechop import speaking_rate
from gpa.models.speechop.windows_speechop import Cut, Windows, join_words, quietest, share, standard_gain
from gpa.models.speechop.words_speechop import LEAST, Recogniser, recognised, spoken, units

if TYPE_CHECKING:
    from gpa.audio import AudioLike
    from gpa.codec.kl import KLCodec
    from gpa.models.speechop.asr_features_speechop import ASRFeatures
    from gpa.models.speechop.configuration_speechop import SpeechOpConfig

ASR = "asr"  # the transcript that means: recognise it
PROMPT = (2.0, 3.0)  # seconds; samples are cut at a quiet place between them, training had 1 to 3
RATES = 2.0  # a measured speaking rate beyond this factor of the usual one is taken for a mistake

Listener = Callable[[], Recogniser]  # a recogniser, loaded when it is needed


class Heard(NamedTuple):
    """Audio as the model takes it: wav (S,) as it came, its gain to the standard level, latents (1, C, T)."""

    wav: np.ndarray
    gain: float
    latents: Tensor


class Guide(NamedTuple):
    """The text of every window, "" where none guides, their strength, and the whole text."""

    texts: list[str]
    gamma: float
    whole: str

    def silenced(self) -> Guide:
        """As many windows, without text."""
        return Guide([""] * len(self.texts), 0.0, "")


@dataclass(frozen=True)
class Front:
    """Audio and text made ready for one model."""

    codec: KLCodec
    config: SpeechOpConfig
    windows: Windows
    asr_features: ASRFeatures | None = None

    @property
    def rate(self) -> float:
        """Latent frames per second."""
        return self.codec.spec.frame_rate

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.codec.spec.sample_rate

    # Sound ------------------------------------------------------------------------------------------------

    def hear(self, audio: AudioLike, name: str) -> Heard:
        """Audio of any kind; AudioWarning if it is silent or clipped."""
        wav = sound.load(audio, self.sample_rate)
        sound.check_speech(wav, self.sample_rate, name=name, stacklevel=4)
        return self.encode(wav, standard_gain(wav, self.sample_rate))

    def sample(self, audio: AudioLike, name: str) -> tuple[Heard, np.ndarray]:
        """The beginning of a voice or of acoustics, as long as a prompt is, and the whole sample."""
        wav = sound.load(audio, self.sample_rate)
        sound.check_speech(wav, self.sample_rate, name=name, stacklevel=4)
        begin = wav[: quietest(wav, self.sample_rate, *PROMPT)]
        return self.encode(begin, standard_gain(wav, self.sample_rate)), wav

    def encode(self, wav: np.ndarray, gain: float) -> Heard:
        """A waveform (S,) brought to the standard level by its gain."""
        return Heard(wav, gain, self.codec.encode(_levelled(wav, gain)))

    def source(self, heard: Heard) -> Tensor:
        """What the network is given of a source (1, C + H, T): its latents, and what the ASR encoder
        hears.
        """
        if self.asr_features is None:
            return heard.latents
        return torch.cat([heard.latents, self.asr_features(_levelled(heard.wav, heard.gain))], 1)

    def nothing(self, seconds: float | None) -> Heard:
        """Silence for so long, where there is no source; UsageError without a length."""
        if seconds is None or not 0 < seconds < math.inf:
            raise UsageError(f"seconds={seconds}: without a source, say how long the result is")
        samples = max(1, round(seconds * self.sample_rate))
        frames = -(-samples // self.codec.spec.hop_length)
        silence = self.codec.model.mean.new_zeros(1, self.codec.spec.channels, frames)
        return Heard(np.zeros(samples, np.float32), 1.0, silence)

    def decode(self, z: Tensor, gain: float = 1.0, samples: int | None = None) -> np.ndarray:
        """Wav (S,) of latents (1, C, T), back at the level that the gain was for."""
        wav = self.codec.decode(z)[0, :samples].float().cpu().numpy()
        return wav / np.float32(gain)

    def cuts(self, frames: int) -> list[Cut]:
        """The windows that so many latent frames are made in."""
        return self.windows.cut(frames, self.rate)

    def spans(self, frames: int) -> list[tuple[float, float]]:
        """The same in seconds."""
        return [(start / self.rate, stop / self.rate) for start, stop in self.cuts(frames)]

    # Text -------------------------------------------------------------------------------------------------

    def guide(
        self,
        heard: Heard,
        transcript: str | Sequence[str] | None,
        gamma: float | None,
        listener: Listener,
    ) -> Guide:
        """The text of every window of a recording; PromptError for text that does not fit.

        At gamma 0 there is none, and nothing is recognised.
        """
        strength = self.strength(gamma, transcript)
        spans, whole = self.spans(heard.latents.shape[2]), None
        if transcript is None:
            texts = [""] * len(spans)
        elif transcript == ASR:
            texts = self._recognised(heard, spans, listener) if strength else [""] * len(spans)
        elif isinstance(transcript, str):
            whole = spoken(transcript, seconds=len(heard.wav) / self.sample_rate)
            texts = self.divided(whole, heard, spans) if strength else []
        else:
            texts = _listed(transcript, spans)
        if strength == 0:
            return Guide([""] * len(spans), 0.0, "")
        return Guide(texts, strength, whole or join_words(texts))

    def strength(self, gamma: float | None, transcript: str | Sequence[str] | None) -> float:
        """The gamma asked for, else the configured one; UsageError if it is no strength."""
        defaults = self.config.compose
        if gamma is None:
            return defaults.gamma_asr if transcript == ASR else defaults.gamma
        if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or not 0 <= gamma < math.inf:
            raise UsageError(f"gamma={gamma!r}: a number from 0 on is needed; 0 is no guidance by text")
        return float(gamma)

    def divided(self, text: str, heard: Heard, spans: Sequence[tuple[float, float]]) -> list[str]:
        """A text by windows: whole in a single one, else by speaking time, with a warning."""
        if len(spans) == 1:
            return [text]
        edges = ", ".join(f"{begin:.1f}-{end:.1f}" for begin, end in spans)
        warnings.warn(
            f"the transcript of {len(heard.wav) / self.sample_rate:.1f} s is shared out by speaking time "
            f"over windows at {edges} s, which is a guess: give a list with the text of each to be sure",
            AudioWarning,
            stacklevel=5,
        )
        return share(text, spans, heard.wav, self.sample_rate)

    def _recognised(
        self, heard: Heard, spans: Sequence[tuple[float, float]], listener: Listener
    ) -> list[str]:
        recogniser, rate = listener(), self.sample_rate
        return [
            recognised(
                recogniser,
                heard.wav[round(begin * rate) : round(end * rate)],
                rate,
                f"{begin:.1f} to {end:.1f} s",
            )
            for begin, end in spans
        ]

    def words_in(
        self,
        wav: np.ndarray,
        span: tuple[float, float],
        text: str | None,
        listener: Listener,
        name: str = "the voice",
    ) -> str:
        """What a span (seconds) of wav (S,) says, out of a text for all of it, or recognised if that is None.

        "" says nothing; so does what is too short to say anything.
        """
        begin, end = (round(at * self.sample_rate) for at in span)
        if text is None:
            part = wav[begin:end]
            brief = len(part) < LEAST * self.sample_rate
            return "" if brief else recognised(listener(), part, self.sample_rate, name)
        if not text.strip():
            return ""
        words = spoken(text, f"the text of {name}", len(wav) / self.sample_rate)
        return share(words, [span], wav, self.sample_rate)[0]

    def speaking(self, text: str, frames: int) -> float:
        """Units of text a second of a reference, the usual rate without one or where it cannot be right."""
        usual = self.config.tts.default_rate
        if not text or frames < 1:
            return usual
        rate = speaking_rate(units(text, self.config), frames, self.config)
        return rate if usual / RATES <= rate <= usual * RATES else usual


def _levelled(wav: np.ndarray, gain: float) -> Tensor:
    """Samples (1, S) float32 at the standard level."""
    return torch.from_numpy((wav * gain).astype(np.float32))[None]


def _listed(transcript: Sequence[str], spans: Sequence[tuple[float, float]]) -> list[str]:
    """One text a window as given."""
    if len(transcript) != len(spans):
        edges = ", ".join(f"{begin:.1f}-{end:.1f}" for begin, end in spans)
        raise UsageError(
            f"{len(transcript)} transcripts for {len(spans)} windows: one each is needed, for the seconds "
            f"{edges}; an empty one leaves a window unguided"
        )
    return [
        spoken(text, f"transcript {i + 1}", end - begin) if text else ""
        for i, (text, (begin, end)) in enumerate(zip(transcript, spans, strict=True))
    ]
