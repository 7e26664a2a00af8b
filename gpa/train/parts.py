"""What lies beside a trained language model in its checkpoint: found before training, joined after it.

Ids mean something to the codec alone that made them. A prepared folder names the model whose codec did, so
that no recipe has to; fingerprints tell whether it still is that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gpa.codec import codec_kind, load_codec
from gpa.data import token_folder
from gpa.errors import CheckpointError
from gpa.models.gpa import checkpoint_gpa as files
from gpa.models.gpa.configuration_gpa import GPAConfig
from gpa.prompt.vocab import Vocab

if TYPE_CHECKING:
    from torch import Tensor

    from gpa.codec.base import LinguisticTokenizer, TokenCodec
    from gpa.models.gpa.outputs_gpa import Voice

CPU = torch.device("cpu")
REMEDY = (
    "name the codec by codec=DIR (a checkpoint, or its codec/), or train the bare network by export=network"
)


@dataclass(frozen=True)
class CheckpointParts:
    """Where codec, settings and voices come from: a checkpoint, a codec's folder, or a codec export."""

    folder: Path

    @classmethod
    def find(cls, tokens: Path, init: Path | None, codec: str) -> CheckpointParts:
        """The parts of `codec`, else of `init` if it has any, else of what made `tokens`.

        CheckpointError, with the remedy, if there is none or it did not make these ids.
        """
        about = token_folder.read_about(tokens)
        found = cls._search(tokens, init, codec, about)
        model, glm = found.load()
        if about.get("fingerprints"):
            given = {"codec": model.fingerprint(), **({"glm": glm.fingerprint()} if glm else {})}
            _check(tokens, found.folder, given, about["fingerprints"])
        vocab, spec = Vocab.from_file(tokens), model.spec
        sizes = (vocab.semantic.size, vocab.global_.size if vocab.global_ else 0)
        if sizes != (spec.pattern.n_ids, spec.global_size):
            raise CheckpointError(
                f"{found.folder}: {spec.pattern.n_ids} codes and {spec.global_size} speaker codes, "
                f"{tokens} has {sizes[0]} and {sizes[1]}: {REMEDY}"
            )
        return found

    @classmethod
    def _search(
        cls, tokens: Path, init: Path | None, codec: str, about: Mapping[str, Any]
    ) -> CheckpointParts:
        if codec:
            return cls(_codec_folder(codec))
        if init is not None and _has_codec(init):
            return cls(init)
        name = str(about.get("model", ""))
        if not name:
            raise CheckpointError(f"{tokens}: does not say whose codec made its ids: {REMEDY}")
        try:
            return cls(_codec_folder(name))
        except CheckpointError as error:
            raise CheckpointError(
                f"{tokens}: made by {name}, which is not there: {REMEDY} ({error})"
            ) from error

    def load(self) -> tuple[TokenCodec, LinguisticTokenizer | None]:
        """Codec, and GLM tokenizer if there is one, on the CPU."""
        if _has_codec(self.folder):
            return files.load_parts(self.folder, CPU)
        return load_codec(self.folder), None

    @property
    def settings(self) -> GPAConfig | None:
        """Settings of the checkpoint; None where there is only a codec."""
        return GPAConfig.read(self.folder) if _has_codec(self.folder) else None

    @property
    def voices(self) -> dict[str, Voice]:
        """The checkpoint's voices by name."""
        return files.load_voices(self.folder)


def _has_codec(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in (files.CODEC, files.PUBLISHED_CODEC))


def _codec_folder(name: str) -> Path:
    """A checkpoint by path, shipped name or repository id, or a folder that holds a codec alone."""
    folder = Path(name).expanduser()
    if folder.is_dir() and not _has_codec(folder) and not _has_codec(folder / files.NESTED):
        try:
            codec_kind(folder)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: no codec, and no checkpoint with one") from error
        return folder
    return files.find(name)


def _check(tokens: Path, folder: Path, given: Mapping[str, str], made: Mapping[str, str]) -> None:
    for part in ("codec", "glm"):
        if part in made and made[part] != given.get(part):
            raise CheckpointError(
                f"{folder}: its {part} is not the one that made the ids of {tokens} (fingerprint "
                f"{given.get(part, 'none')[:12]}, {made[part][:12]} expected): {REMEDY}"
            )


def code_vectors(parts: CheckpointParts | None, codec: str, codes: int) -> Tensor | None:
    """What each of so many codes stands for, (V, D), by the codec of `parts` or else in a folder.

    None if neither says; CheckpointError for a codec of other codes.
    """
    if parts is None and codec:
        parts = CheckpointParts(_codec_folder(codec))
    vectors = parts.load()[0].code_vectors() if parts is not None else None
    if vectors is not None and len(vectors) != codes:
        raise CheckpointError(f"{codec}: {len(vectors)} codes, the rows were made with {codes}")
    return vectors
