"""Text to ids and back: the text tokenizer of any model, and SentencePiece for our own.

A `TextTokenizer` knows the base vocabulary only. The added tokens (control, speech, speaker) are removed
before it is built, so whatever a user types stays text.
"""

import io
import json
import operator
import shutil
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from tokenizers import Tokenizer

from gpa import disk
from gpa.errors import MissingExtraError, PromptError, VocabError
from gpa.prompt.tasks import DEFAULT
from gpa.prompt.vocab import CONTROL, TASK_TOKEN, code_names, read_tokenizer_json

FILES = ("tokenizer.json", "tokenizer_config.json")


class TextTokenizer:
    """Text to base ids and back, built from a `tokenizer.json` without its added tokens."""

    def __init__(self, spec: dict[str, Any]) -> None:
        plain = {**spec, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        try:
            self._tokenizer = Tokenizer.from_str(json.dumps(plain))
        except Exception as error:
            raise VocabError(f"tokenizer.json: no tokenizer that this library reads ({error})") from error
        self.size = self._tokenizer.get_vocab_size()

    @classmethod
    def from_file(cls, path: str | Path) -> "TextTokenizer":
        """From a `tokenizer.json` or the checkpoint directory that holds one."""
        return cls(read_tokenizer_json(path))

    def encode(self, text: str) -> list[int]:
        """Ids of the text as it stands (leading spaces kept), all below `size`; "" gives []."""
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:
            raise PromptError(f"text cannot be encoded, {error}: {text!r:.80}") from error

    def pieces(self, text: str) -> list[str]:
        """The spelling of each id of `encode(text)`, a word's first with SentencePiece's leading U+2581."""
        return self._tokenizer.encode(text, add_special_tokens=False).tokens

    @cached_property
    def spellings(self) -> dict[int, str]:
        """What each base id spells, leading spaces included, without ids of bytes and of unknown text."""
        table = self._tokenizer.get_vocab()
        plain = {
            i: piece for piece, i in table.items() if not (piece.startswith("<") and piece.endswith(">"))
        }
        return {i: piece.replace("\u2581", " ").replace("\u0120", " ").lower() for i, piece in plain.items()}

    @cached_property
    def alphabet(self) -> frozenset[str]:
        """The characters that its pieces spell; others are known as bytes alone."""
        return frozenset("".join(self.spellings.values()))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of base ids; an unfinished UTF-8 character becomes U+FFFD; VocabError for other ids."""
        found = [operator.index(token_id) for token_id in ids]
        strange = [token_id for token_id in found if not 0 <= token_id < self.size]
        if strange:
            raise VocabError(f"id {strange[0]} is no text; text ids are 0 .. {self.size - 1}")
        return self._tokenizer.decode(found, skip_special_tokens=False)


def train_sentencepiece(
    texts: Iterable[str], model_path: str | Path, vocab_size: int = 512, *, at_most: bool = False
) -> None:
    """Train a unigram SentencePiece model with byte fallback on normalised texts; writes `model_path`.

    `at_most` takes fewer pieces where the texts hold no more; otherwise VocabError if they cannot fill the
    vocabulary. MissingExtraError without sentencepiece.
    """
    sentencepiece = _sentencepiece()
    model = io.BytesIO()  # a failed training leaves no file behind
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=not at_most,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,  # as the tokenizer.json made of it, which keeps all spaces
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise VocabError(f"sentencepiece could not learn {vocab_size} pieces: {error}") from error
    disk.write_bytes(Path(model_path), model.getvalue())


def _sentencepiece() -> ModuleType:
    try:
        import sentencepiece
    except ImportError as error:
        raise MissingExtraError("sentencepiece", "train") from error
    return sentencepiece


def build_tokenizer_json(
    spm_model_path: str | Path,
    n_semantic: int,
    n_global_values: int,
    path: str | Path,
    tasks: Iterable[str] = DEFAULT,
    n_codebooks: int = 1,
) -> Path:
    """Write `tokenizer.json` and `tokenizer_config.json` of a model of ours into a directory.

    `path` is the directory or the `tokenizer.json` inside it; the file's path is returned. Ids: the
    SentencePiece pieces (text ids equal sentencepiece's), the control tokens, those of the `tasks` among
    them, `n_global_values` speaker codes, `n_semantic` semantic codes of each codebook. transformers'
    `AutoTokenizer.from_pretrained` reads the result.
    """
    spm = _sentencepiece().SentencePieceProcessor(model_file=str(spm_model_path))
    pieces = [(spm.id_to_piece(i), spm.get_score(i)) for i in range(spm.get_piece_size())]
    # Blocks of glm codes belong to the published layout; ours reads speech from semantic codes alone.
    names = [c.token for name, c in CONTROL.items() if not name.endswith("_glm")]
    names[-1:-1] = [TASK_TOKEN.format(task) for task in sorted(tasks)]
    names += code_names(n_codebooks, n_semantic, n_global_values)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": len(pieces) + i, "content": name, **flags} for i, name in enumerate(names)],
        # SentencePiece's dummy prefix: one space, also before text that starts with a space.
        "normalizer": _sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, _replace(" ", "▁")),
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": _sequence(
            "decoders",
            _replace("▁", " "),
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ),
        "model": {"type": "Unigram", "unk_id": spm.unk_id(), "vocab": pieces, "byte_fallback": True},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": CONTROL["im_end"].token,
        "pad_token": CONTROL["pad"].token,
        "clean_up_tokenization_spaces": False,
    }
    path = Path(path)
    directory = path.parent if path.suffix == ".json" else path
    for name, content in zip(FILES, (spec, config), strict=True):
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        disk.write_text(directory / name, text)
    return directory / "tokenizer.json"


def copy_tokenizer(source: Path, out: Path) -> None:
    """Both files of the tokenizer of one folder into another; FileNotFoundError if it has none."""
    with disk.room(out):
        for name in FILES:
            shutil.copy(source / name, out / name)


def _replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _sequence(field: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", field: list(steps)}
