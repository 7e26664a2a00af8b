"""The id space of a model: which ids are text, control tokens, speech codes and speaker codes.

Everything is resolved from `tokenizer.json` by name, so an offset is written nowhere else: callers turn
codes into ids and back through a `Block`. This file knows no text segmentation, no prompt and no tensor.
Source: the tokenizer of the published GPA-0.3B (docs/tokens.md).
"""

import hashlib
import json
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gpa.errors import VocabError


class ControlToken(NamedTuple):
    """A control token's spelling in the tokenizer and what it means in a sequence."""

    token: str
    meaning: str


CONTROL: dict[str, ControlToken] = {
    "pad": ControlToken("<|endoftext|>", "Fills up a batch; never supervised, never generated."),
    "im_end": ControlToken("<|im_end|>", "Ends every completion: the one stop token."),
    "start_glm": ControlToken("<|start_glm_token|>", "Opens linguistic codes of the source speech (12.5/s)."),
    "end_glm": ControlToken("<|end_glm_token|>", "Closes linguistic codes."),
    "start_semantic": ControlToken("<|start_semantic_token|>", "Opens semantic codes of speech (50/s)."),
    "end_semantic": ControlToken("<|end_semantic_token|>", "Closes semantic codes in a prompt."),
    "start_global": ControlToken("<|start_global_token|>", "Opens the speaker codes of a reference voice."),
    "end_global": ControlToken("<|end_global_token|>", "Closes speaker codes."),
    "start_content": ControlToken("<|start_content|>", "Opens text, to be spoken or to be written."),
    "end_content": ControlToken("<|end_content|>", "Closes text, also a generated transcript."),
    "end_instruction": ControlToken("<|end_instruction|>", "Ends the instruction, before the first block."),
}
TASK_TOKEN = "<|task_{}|>"  # heads an instruct sequence of the task; its control name is task_NAME
SEMANTIC_TOKEN = "<|bicodec_semantic_{}|>"
GLOBAL_TOKEN = "<|bicodec_global_{}|>"
AUDIO_TOKEN = "<|audio_{}_{}|>"  # of any other codec: codebook and code

# Published checkpoint (vocab_size 180,445): the linguistic codes have no known name there, so the block
# found by position is compared with these offsets (docs/tokens.md).
PUBLISHED_SIZE = 180_445
PUBLISHED_OFFSETS = {"glm": 151_727, "global": 168_111, "semantic": 172_207}
# Base pieces that stand for no text; a SentencePiece vocabulary starts with them.
_NOT_TEXT = {"<unk>", "<pad>", "<s>", "</s>"}
_TASK_NAME = re.compile(r"<\|(task_\w+)\|>")
_CODE_NAME = re.compile(r"<\|(?:bicodec_)?(semantic|global|audio_\d+)_(0|[1-9]\d{0,8})\|>")
MOST_IDS = 1 << 24


@dataclass(frozen=True)
class Block:
    """A run of ids that stands for the codes 0 .. size - 1."""

    name: str
    offset: int
    size: int

    @property
    def span(self) -> range:
        """The ids of this block."""
        return range(self.offset, self.offset + self.size)

    def __contains__(self, token_id: object) -> bool:
        return token_id in self.span

    def ids(self, codes: Iterable[Any]) -> list[int]:
        """Codes (T,) of any integer type to ids; VocabError for one outside 0 .. size - 1."""
        return [code + self.offset for code in self._checked(codes, range(self.size), "code")]

    def codes(self, ids: Iterable[Any]) -> list[int]:
        """Ids (T,) of any integer type to codes; VocabError for an id outside the block."""
        return [token_id - self.offset for token_id in self._checked(ids, self.span, "id")]

    def _checked(self, values: Iterable[Any], legal: range, what: str) -> list[int]:
        try:
            # index() and not int(): a float code is a bug upstream and must not be rounded away
            found = [operator.index(value) for value in values]
        except TypeError as error:
            raise VocabError(f"{self.name} {what}s must be one flat sequence of integers: {error}") from error
        for position, value in enumerate(found):
            if value not in legal:
                raise VocabError(
                    f"{self.name} {what} {value} at position {position} is outside "
                    f"{legal.start} .. {legal.stop - 1}"
                )
        return found


@dataclass(frozen=True)
class Vocab:
    """One id space; construction refuses overlapping blocks and ids beyond `size`.

    `text` holds the ids that plain text may use, `control` the named control tokens that exist, `size` the
    number of rows of the embedding, `tokens_digest` a hash of every token's spelling and id. The `semantic`
    block holds the `n_codebooks` of a codec one after another. Without a block of speaker codes a voice is
    an acoustic prompt, of semantic codes.
    """

    text: Block
    semantic: Block
    global_: Block | None
    glm: Block | None
    control: Mapping[str, int]
    size: int
    tokens_digest: str = ""
    n_codebooks: int = 1

    def __post_init__(self) -> None:
        spans = [(block.span, block.name) for block in self.blocks]
        spans += [
            (range(token_id, token_id + 1), control_token(name)) for name, token_id in self.control.items()
        ]
        spans.sort(key=lambda entry: entry[0].start)
        for (low, low_name), (high, high_name) in zip(spans, spans[1:], strict=False):
            if high.start < low.stop:
                raise VocabError(f"ids of {low_name} ({_show(low)}) and {high_name} ({_show(high)}) overlap")
        for span, name in spans:
            if not span or span.start < 0 or span.stop > self.size:
                raise VocabError(f"ids of {name} ({_show(span)}) do not fit a vocabulary of {self.size}")
        if "im_end" not in self.control:
            raise VocabError(f"the tokenizer has no {CONTROL['im_end'].token}, the stop token of every task")
        if self.size == PUBLISHED_SIZE:
            self._check_published()

    def _check_published(self) -> None:
        for block in self.blocks:
            expected = PUBLISHED_OFFSETS.get(block.name, block.offset)
            if block.offset != expected:
                raise VocabError(
                    f"{block.name} ids start at {block.offset}; the published model has {expected}"
                )

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks that exist, text first."""
        return tuple(b for b in (self.text, self.glm, self.global_, self.semantic) if b is not None)

    @property
    def codebooks(self) -> tuple[range, ...]:
        """The ids of each codebook of speech."""
        size = self.semantic.size // self.n_codebooks
        return tuple(self.semantic.span[k * size : (k + 1) * size] for k in range(self.n_codebooks))

    @property
    def stop(self) -> int:
        """The id that ends every completion, `<|im_end|>` (not the tokenizer's eos)."""
        return self.control["im_end"]

    @property
    def text_size(self) -> int:
        """Number of base ids: every id below it belongs to the text tokenizer."""
        return self.text.offset + self.text.size

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the id space, to be stored with checkpoints and token caches."""
        layout: dict[str, Any] = {
            "blocks": {block.name: [block.offset, block.size] for block in self.blocks},
            "control": dict(self.control),
            "size": self.size,
            "tokens": self.tokens_digest,
        }
        return _digest(layout | ({"codebooks": self.n_codebooks} if self.n_codebooks > 1 else {}))

    @classmethod
    def from_tokenizer(
        cls,
        tokens: Mapping[str, int],
        added: Mapping[str, int],
        *,
        glm_size: int | None = None,
        glm_offset: int | None = None,
        size: int | None = None,
    ) -> "Vocab":
        """Resolve the id space by name.

        `tokens` maps every token, base and added, to its id; `added` the added ones only. `glm_size` is the
        GLM tokenizer's codebook size (None: the model has no such block); its ids end just before the first
        global id unless `glm_offset` says otherwise. `size` is the model's `vocab_size`, which may exceed
        the number of tokens. VocabError on any gap, overlap or missing name.
        """
        if len(set(tokens.values())) != len(tokens):
            raise VocabError("two tokens of the tokenizer share an id")
        n_codebooks, semantic, global_ = _speech(tokens)
        glm = None
        if glm_size is not None:
            if global_ is None:
                raise VocabError(f"linguistic codes go with {GLOBAL_TOKEN.format(0)}, which is not there")
            offset = global_.offset - glm_size if glm_offset is None else glm_offset
            glm = Block("glm", offset, glm_size)
            _check_unnamed(glm, added, by_position=glm_offset is None)
        control = {name: tokens[c.token] for name, c in CONTROL.items() if c.token in tokens}
        control |= {m[1]: i for token, i in tokens.items() if (m := _TASK_NAME.fullmatch(token))}
        return cls(
            text=_text_block(tokens, added),
            semantic=semantic,
            global_=global_,
            glm=glm,
            control=control,
            size=max(tokens.values()) + 1 if size is None else size,
            tokens_digest=_digest(sorted(tokens.items(), key=operator.itemgetter(1))),
            n_codebooks=n_codebooks,
        )

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        glm_size: int | None = None,
        glm_offset: int | None = None,
        size: int | None = None,
    ) -> "Vocab":
        """The id space of a `tokenizer.json`, or of the checkpoint directory that holds one."""
        spec = read_tokenizer_json(path)
        base, added = spec["model"]["vocab"], {t["content"]: t["id"] for t in spec["added_tokens"]}
        if isinstance(base, list):  # Unigram: [[piece, score], ...] in the order of ids
            base = {piece: token_id for token_id, (piece, _) in enumerate(base)}
        for token in base.keys() & added.keys():
            if base[token] != added[token]:
                raise VocabError(
                    f"{token} has id {base[token]} as base piece and {added[token]} as added token"
                )
        return cls.from_tokenizer(
            {**base, **added}, added, glm_size=glm_size, glm_offset=glm_offset, size=size
        )


def control_token(name: str) -> str:
    """The spelling of a control token by its name: one of CONTROL, or task_NAME."""
    return CONTROL[name].token if name in CONTROL else TASK_TOKEN.format(name.removeprefix("task_"))


def read_tokenizer_json(path: str | Path) -> dict[str, Any]:
    """The parsed `tokenizer.json` at a path or in a directory; VocabError if it is missing or broken."""
    from gpa.config import read_json, shown  # here: an id space needs no reader of settings

    path = Path(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.exists():
        raise VocabError(f"{path}: no such file; a checkpoint, or a folder of `gpa prepare`, has it")
    spec = read_json(path, VocabError)
    model, added = spec.get("model"), spec.get("added_tokens")
    if not isinstance(model, dict) or "vocab" not in model or not isinstance(added, list):
        raise VocabError(f"{path}: no Hugging Face tokenizer (model.vocab and added_tokens are needed)")
    for piece, token_id in _entries(model["vocab"], added):
        if not isinstance(piece, str) or type(token_id) is not int or not 0 <= token_id < MOST_IDS:
            raise VocabError(f"{path}: {shown(piece)} with id {shown(token_id)} is no token")
    return spec


def _entries(base: Any, added: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Spellings and ids as a file has them, whatever they are."""
    yield from ((t.get("content"), t.get("id")) if isinstance(t, dict) else (t, None) for t in added)
    if isinstance(base, dict):
        yield from base.items()
    elif isinstance(base, list):  # Unigram: [[piece, score], ...] in the order of ids
        yield from ((p[0] if isinstance(p, list) and len(p) == 2 else None, n) for n, p in enumerate(base))
    else:
        yield base, None


def _show(span: range) -> str:
    return f"{span.start} .. {span.stop - 1}"


def _digest(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def code_names(n_codebooks: int, codebook_size: int, n_global_values: int) -> list[str]:
    """Names of a codec's tokens in the order of their ids: speaker codes, then speech, book by book.

    BiCodec has one codebook and speaker codes, and names of its own.
    """
    speaker = [GLOBAL_TOKEN.format(code) for code in range(n_global_values)]
    if n_global_values and n_codebooks == 1:
        return speaker + [SEMANTIC_TOKEN.format(code) for code in range(codebook_size)]
    books = range(n_codebooks)
    return speaker + [AUDIO_TOKEN.format(k, code) for k in books for code in range(codebook_size)]


def _speech(tokens: Mapping[str, int]) -> tuple[int, Block, Block | None]:
    """How many codebooks speech has, the block of all of them, and that of speaker codes if there is one."""
    if AUDIO_TOKEN.format(0, 0) not in tokens:
        return 1, _code_block(tokens, "semantic", SEMANTIC_TOKEN), _code_block(tokens, "global", GLOBAL_TOKEN)
    books: list[Block] = []
    while (first := AUDIO_TOKEN.format(len(books), 0)) in tokens:
        book = _code_block(tokens, f"audio_{len(books)}", f"<|audio_{len(books)}_{{}}|>")
        if books and (book.size, book.offset) != (books[0].size, books[-1].span.stop):
            raise VocabError(
                f"{first} and its codebook are ids {_show(book.span)}: {books[0].size} ids from "
                f"{books[-1].span.stop} on are expected"
            )
        books.append(book)
    speech = Block("semantic", books[0].offset, sum(book.size for book in books))
    known = GLOBAL_TOKEN.format(0) in tokens
    return len(books), speech, _code_block(tokens, "global", GLOBAL_TOKEN) if known else None


def _code_block(tokens: Mapping[str, int], name: str, token: str) -> Block:
    """The block of a name's tokens: codes 0 .. n - 1 without a gap, ids in the same order."""
    matches = ((_CODE_NAME.fullmatch(found), token_id) for found, token_id in tokens.items())
    ids = {int(m[2]): token_id for m, token_id in matches if m and m[1] == name}
    if 0 not in ids:
        raise VocabError(f"the tokenizer has no {token.format(0)}: it is not that of a GPA model")
    for code in range(len(ids)):
        if ids.get(code) != ids[0] + code:
            state = "missing" if code not in ids else f"id {ids[code]}"
            raise VocabError(f"{token.format(code)} is {state}, id {ids[0] + code} expected")
    return Block(name, ids[0], len(ids))


def _text_block(tokens: Mapping[str, int], added: Mapping[str, int]) -> Block:
    """Ids of plain text: the base vocabulary without the leading pieces that stand for no text."""
    ids = sorted(i for token, i in tokens.items() if token not in added and token not in _NOT_TEXT)
    if not ids or ids[-1] - ids[0] + 1 != len(ids):
        raise VocabError("the tokenizer's base vocabulary is empty or its ids have a gap")
    return Block("text", ids[0], len(ids))


def _check_unnamed(glm: Block, added: Mapping[str, int], by_position: bool) -> None:
    """The GLM block must hold added tokens only and, found by position, must start where a numbering does."""
    names = {token_id: token for token, token_id in added.items()}
    for token_id in glm.span:
        if token_id not in names:
            raise VocabError(f"id {token_id} of the glm block is no added token: wrong quantize_vocab_size?")
    numbered = re.fullmatch(r"(.*?)\d+(\D*)", names[glm.offset])
    if not (by_position and numbered):
        return
    stem, tail = numbered.groups()
    for code, token_id in enumerate(glm.span):
        if names[token_id] != f"{stem}{code}{tail}":
            raise VocabError(
                f"glm ids found by position ({_show(glm.span)}): code {code} is {names[token_id]}, not "
                f"{stem}{code}{tail}; check quantize_vocab_size, or pass glm_offset if this order is meant"
            )
