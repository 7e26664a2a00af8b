"""Audio to tokens or latents and back: `load_codec` finds out what a directory holds and loads it.

Importing this package loads neither torch nor transformers; loading a codec does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpa import hub
from gpa.errors import CheckpointError, UsageError

__all__ = ["KINDS", "codec_kind", "load_codec"]


def _bicodec(path: Path, options: dict[str, Any]) -> Any:
    from gpa.codec import trained
    from gpa.codec.bicodec import BiCodec
    from gpa.codec.ctc import CTCNetwork

    encoder, ctc = options.pop("encoder", ""), options.pop("ctc", "")
    whole = (path / "config.yaml").is_file() or (path / trained.ENCODER).is_dir()
    given = encoder or not whole
    codec = trained.load(path, encoder) if given else BiCodec.from_pretrained(path, **options)
    if ctc:
        codec.ctc = CTCNetwork.from_pretrained(ctc).to(codec.device)
    return codec


def _glm4voice(path: Path, options: dict[str, Any]) -> Any:
    from gpa.codec.glm4voice import GLM4VoiceTokenizer

    return GLM4VoiceTokenizer.from_pretrained(path, **options)


def _hf(path: Path, options: dict[str, Any]) -> Any:
    from gpa.codec.hf import HFCodec

    return HFCodec.from_pretrained(path, **options)


def _latent(path: Path, options: dict[str, Any]) -> Any:
    from gpa.codec.kl import KLCodec

    return KLCodec.from_pretrained(path, **options)


KINDS: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    "bicodec": _bicodec,
    "dac": _hf,
    "encodec": _hf,
    "glm4voice": _glm4voice,
    "latent": _latent,
    "mimi": _hf,
}


def load_codec(
    path: str | os.PathLike,
    kind: str | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
    **options: Any,
) -> Any:
    """Load the codec of a directory or repository.

    It is a `TokenCodec`; for kind latent a `LatentCodec`, for glm4voice an encoder only.

    `kind` is one of KINDS and is otherwise read from the config file (`codec_kind`); one that contradicts the
    config is refused. `options` that are set go to the class: `device`; `n_codebooks` and `bandwidth` for
    transformers codecs; `encoder`, the folder of the feature encoder of a BiCodec's export without one, and
    `ctc`, that of its letters.
    Raises CheckpointError, or UsageError for an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(f"codec kind {kind!r}: choose one of {', '.join(KINDS)}")
    folder = hub.resolve(path, revision, offline)
    found = codec_kind(folder)
    if kind not in (None, found):
        raise CheckpointError(f"{folder} holds a {found} codec, not {kind}")
    return KINDS[found](folder, {name: value for name, value in options.items() if value not in (None, "")})


def codec_kind(path: str | os.PathLike) -> str:
    """Which of KINDS a local directory or original EnCodec `.th` file holds; CheckpointError if none."""
    folder = Path(path)
    if folder.suffix == ".th":
        return "encodec"
    if (folder / "config.yaml").is_file():  # only the published BiCodec uses YAML
        return "bicodec"
    config = hub.read_json(folder / "config.json")
    model_type = config.get("model_type")
    if "speaker_encoder" in config or model_type == "bicodec":
        return "bicodec"
    if "quantize_vocab_size" in config:  # says model_type "whisper"
        return "glm4voice"
    if isinstance(model_type, str) and model_type in KINDS:
        return model_type
    raise CheckpointError(
        f"{folder / 'config.json'}: model_type {model_type!r:.80} is none of {', '.join(KINDS)}"
    )
