"""Sizes of SpeechOp by name: settings laid over the paper's, which are the defaults of SpeechOpConfig."""

from __future__ import annotations

from typing import Any


def _tier(
    latent: dict[str, int], dit: tuple[int, ...], encoder: tuple[int, ...], text: tuple[int, ...]
) -> dict:
    """Settings of one size (docs/speechop.md); stacks are (layers, width, heads, ffn)."""
    names = ("layers", "width", "heads", "ffn")
    kind = {"kind": "bytes", "positions": "both"}
    return {
        "latent": latent,
        "dit": dict(zip(names, dit, strict=True)),
        "encoder": dict(zip(names, encoder, strict=True)),
        "text": {**dict(zip(names, text, strict=True)), **kind},
        "tts": {"default_rate": 14.0, "unit": "characters"},
    }


# FFNs of 8/3 widths, which give the sizes that are estimated, about 0.4 and 26 M parameters;
# mini, 7 M, is as large as fits into 24 MB in float16 beside its codec.
SIZES: dict[str, dict[str, Any]] = {
    "toy": _tier({"channels": 8}, (3, 64, 4, 171), (1, 64, 4, 171), (0, 64, 4, 171)),
    "mini": _tier(
        {"channels": 64, "sample_rate": 16000, "hop": 640},
        (6, 224, 4, 597),
        (2, 128, 4, 341),
        (2, 128, 4, 341),
    ),
    "small": _tier(
        {"channels": 32, "sample_rate": 16000, "hop": 320},
        (10, 320, 5, 853),
        (4, 256, 4, 683),
        (4, 256, 4, 683),
    ),
    "paper": {},
}
