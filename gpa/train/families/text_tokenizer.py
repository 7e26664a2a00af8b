"""Training a text tokenizer from a recipe: SentencePiece over lines of text, and the id space around it.

Not a family of the loop: SentencePiece has no steps. The run folder holds the same recipe and export.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpa.data.records import read_sentences
from gpa.errors import DataError, UsageError
from gpa.prompt.tasks import DEFAULT, canonical_task
from gpa.text.normaliser import normalise_text
from gpa.text.tokenizer import TextTokenizer, build_tokenizer_json, train_sentencepiece

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextData:
    """Files of text: JSON lines and tables with a column of text, else each line from its last tab on."""

    files: tuple[str, ...]


@dataclass(frozen=True)
class TextRecipe:
    """A text tokenizer: its pieces, and how many codes the ids behind them stand for."""

    data: TextData
    kind: str = "text"
    vocab_size: int = 512
    semantic: int = 2048  # codes of the codec's codebook
    speaker: int = 256  # values of a global code
    normalise: bool = True  # as the models of this package read text; False: verbatim
    tasks: tuple[str, ...] = DEFAULT  # whose control tokens it has
    held_out: int = 100  # every n-th line is for the report, not for training

    def __post_init__(self) -> None:
        for name in ("vocab_size", "semantic", "speaker"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: at least 1")
        for name in self.tasks:
            canonical_task(name)
        if self.held_out < 2:
            raise UsageError(f"held_out={self.held_out}: every n-th line, at least 2")


def train_text(recipe: TextRecipe, run: Path) -> dict[str, float]:
    """Write run/export (spm.model, tokenizer.json, ...) and return what the held-out lines say.

    DataError for files without text, VocabError where they cannot fill the vocabulary.
    """
    if not recipe.data.files:
        raise DataError("data.files names no text yet: data.files=[book.txt, corpus/manifest.jsonl]")
    lines = list(_lines(recipe))
    train = [line for n, line in enumerate(lines, 1) if n % recipe.held_out]
    held = lines[recipe.held_out - 1 :: recipe.held_out]
    if not train:
        raise DataError(f"{', '.join(recipe.data.files)}: too little text, {len(lines)} lines")
    export = run / "export"
    export.mkdir(parents=True, exist_ok=True)
    train_sentencepiece(train, export / "spm.model", recipe.vocab_size)
    build_tokenizer_json(export / "spm.model", recipe.semantic, recipe.speaker, export, recipe.tasks)
    tokenizer = TextTokenizer.from_file(export)
    wrong = [line for line in held if tokenizer.decode(tokenizer.encode(line)) != line]
    if wrong:
        raise DataError(f"the tokenizer does not give back {wrong[0]!r}; `normalise: true` avoids it")
    letters, ids = sum(map(len, held)), sum(len(tokenizer.encode(line)) for line in held)
    found = {"lines": float(len(train)), "held_out": float(len(held))}
    return {**found, "letters_per_id": letters / ids} if ids else found


def _lines(recipe: TextRecipe) -> Iterator[str]:
    for name in recipe.data.files:
        path = Path(name)
        if not path.is_file():
            raise DataError(f"{path}: no such file; data.files lists texts, transcripts or manifests")
        for text in read_sentences(path):
            text = normalise_text(text) if recipe.normalise else text
            if text.strip():
                yield text
