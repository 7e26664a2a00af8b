"""Sound in and out: the one front end every path, byte string, stream, array and upload goes through.

Knows files, rates, channels and loudness; knows nothing about tokens or models, and needs no torch.
Shapes: S samples, C channels. Waveforms are float32 (S,), mono, full scale +-1, unless stated otherwise.
The public names below are fetched when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpa.audio.arrays import MAX_CHANNELS, as_wave, check_speech, is_silent
    from gpa.audio.decoding import END_SLACK, MIN_SECONDS, SAMPLE_RATE, AudioLike, blocks, load, seconds
    from gpa.audio.saving import FORMATS, WavStream, pcm16, save, to_bytes, writing

__all__ = ["AudioLike", "END_SLACK", "FORMATS", "MAX_CHANNELS", "MIN_SECONDS", "SAMPLE_RATE", "WavStream"]
__all__ += [
    "as_wave",
    "blocks",
    "check_speech",
    "is_silent",
    "load",
    "pcm16",
    "save",
    "seconds",
    "to_bytes",
    "writing",
]


if not TYPE_CHECKING:  # with it mypy would take any name for one of this module

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module 'gpa.audio' has no attribute {name!r}")
        from gpa.audio import arrays, decoding, saving

        globals()[name] = value = (vars(arrays) | vars(decoding) | vars(saving))[name]
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
