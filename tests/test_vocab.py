"""The id space: resolved by name, inverse both ways, and every damaged tokenizer refused."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpa.errors import VocabError
from gpa.prompt.vocab import CONTROL, PUBLISHED_SIZE, Block, Vocab
from published import GLM_SIZE, VOCAB_SIZE, read_cases, tokenizer_json, write_tokenizer

Tokens = dict[str, int]


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Vocab:
    directory = write_tokenizer(tmp_path_factory.mktemp("published"))
    return Vocab.from_file(directory, glm_size=GLM_SIZE, size=VOCAB_SIZE)


def small_tokens() -> tuple[Tokens, Tokens]:
    """Ten letters, the stop token, 6 glm, 4 global and 8 semantic codes; all and added tokens."""
    base = {letter: i for i, letter in enumerate("abcdefghij")}
    names = ["<|im_end|>", *(f"<|g_{i}|>" for i in range(6)), *(f"<|bicodec_global_{i}|>" for i in range(4))]
    names += [f"<|bicodec_semantic_{i}|>" for i in range(8)]
    added = {name: 10 + i for i, name in enumerate(names)}
    return {**base, **added}, added


def published_tokens() -> tuple[Tokens, Tokens]:
    """The published layout at full size with invented names where they are unknown."""
    added = {f"<|unknown_{i}|>": 151_643 + i for i in range(84)}
    added["<|im_end|>"] = added.pop("<|unknown_2|>")
    for name, count in (
        ("<|x_{}|>", 16_384),
        ("<|bicodec_global_{}|>", 4096),
        ("<|bicodec_semantic_{}|>", 8192),
    ):
        added |= {name.format(i): 151_643 + len(added) + i for i in range(count)}
    added |= {f"<|later_{i}|>": 151_643 + len(added) + i for i in range(46)}
    return {**{f"t{i}": i for i in range(151_643)}, **added}, added


def test_replica_offsets(vocab: Vocab) -> None:
    cases = read_cases()
    assert vocab.glm is not None
    assert vocab.glm.offset == cases["offsets"]["glm_semantic_token_offset"]
    assert vocab.global_.offset == cases["offsets"]["global_token_offset"]
    assert vocab.semantic.offset == cases["offsets"]["semantic_token_offset"]
    assert (vocab.glm.size, vocab.global_.size, vocab.semantic.size) == (64, 4096, 256)
    assert (vocab.text.offset, vocab.text_size, vocab.size) == (0, 300, cases["vocab_size"])
    assert vocab.stop == 302 != vocab.control["pad"]
    assert all(cases["specials"][CONTROL[name].token] == i for name, i in vocab.control.items())


def test_published_offsets_are_found_and_checked() -> None:
    tokens, added = published_tokens()
    vocab = Vocab.from_tokenizer(tokens, added, glm_size=16_384)
    assert vocab.size == PUBLISHED_SIZE
    assert [b.offset for b in vocab.blocks] == [0, 151_727, 168_111, 172_207]
    with pytest.raises(VocabError, match="published model has 151727"):
        Vocab.from_tokenizer(tokens, added, glm_size=16_384, glm_offset=151_726)


def test_codes_and_ids_are_inverse(vocab: Vocab) -> None:
    draw = random.Random(0)
    for block in vocab.blocks:
        codes = [draw.randrange(block.size) for _ in range(200)]
        ids = block.ids(codes)
        assert block.codes(ids) == codes
        assert block.ids(np.asarray(codes, np.int64)) == ids
        assert all(i in block and sum(i in other for other in vocab.blocks) == 1 for i in ids)
        assert not any(i in block for i in vocab.control.values())


@pytest.mark.parametrize(
    "codes", [[-1], [8], [0, 1, 8], [0.0], ["1"], [[0, 1]], np.zeros((1, 3), np.int64), 3]
)
def test_bad_codes_are_refused(codes: object) -> None:
    with pytest.raises(VocabError, match="semantic code"):
        Block("semantic", 20, 8).ids(codes)  # type: ignore[arg-type]


@pytest.mark.parametrize("token_id", [19, 28, -1])
def test_foreign_ids_are_refused(token_id: int) -> None:
    with pytest.raises(VocabError, match="20 .. 27"):
        Block("semantic", 20, 8).codes([20, token_id])


def _swap(tokens: Tokens, a: str, b: str) -> None:
    tokens[a], tokens[b] = tokens[b], tokens[a]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("<|bicodec_semantic_3|>"), "semantic_3|> is missing"),
        (lambda t: t.pop("<|bicodec_global_0|>"), "no <|bicodec_global_0"),
        (lambda t: _swap(t, "<|bicodec_global_1|>", "<|bicodec_global_2|>"), "global_1|> is id 19"),
        (lambda t: t.update({"<|bicodec_semantic_8|>": 99}), "semantic_8|> is id 99, id 29 expected"),
        (lambda t: t.pop("<|im_end|>"), "the stop token"),
        (lambda t: t.update({"<|im_end|>": 13}), "share an id"),
        (lambda t: t.pop("c"), "gap"),
        (
            lambda t: _swap(t, "<|g_0|>", "<|im_end|>"),
            "glm (11 .. 16) and <|im_end|> (11 .. 11) overlap",
        ),
        (lambda t: _swap(t, "<|g_4|>", "<|g_5|>"), "code 4 is <|g_5|>"),
    ],
)
def test_damaged_tokenizers_are_refused(damage: Callable[[Tokens], None], message: str) -> None:
    tokens, added = small_tokens()
    Vocab.from_tokenizer(tokens, added, glm_size=6)
    damage(tokens)
    added = {token: tokens[token] for token in tokens if token.startswith("<|")}
    with pytest.raises(VocabError) as caught:
        Vocab.from_tokenizer(tokens, added, glm_size=6)
    assert message in str(caught.value)


@pytest.mark.parametrize("glm_size", [5, 7, 30])
def test_wrong_glm_size_is_refused(glm_size: int) -> None:
    tokens, added = small_tokens()
    with pytest.raises(VocabError, match="glm|id "):
        Vocab.from_tokenizer(tokens, added, glm_size=glm_size)


def test_construction_refuses_overlap_and_overflow() -> None:
    def build(**changes: Block | int) -> Vocab:
        parts = {"semantic": Block("semantic", 20, 8), "global_": Block("global", 12, 8), "size": 30}
        return Vocab(text=Block("text", 0, 10), glm=None, control={"im_end": 10}, **(parts | changes))  # type: ignore[arg-type]

    build()
    for change in (
        {"semantic": Block("semantic", 19, 8)},
        {"global_": Block("global", 9, 8)},
        {"global_": Block("global", 10, 2)},  # meets the stop token
        {"semantic": Block("semantic", 20, 11)},
        {"semantic": Block("semantic", 20, 0)},
        {"size": 27},
    ):
        with pytest.raises(VocabError):
            build(**change)


def test_size_may_exceed_the_tokens_but_not_fall_short() -> None:
    tokens, added = small_tokens()
    assert Vocab.from_tokenizer(tokens, added, size=64).size == 64
    assert Vocab.from_tokenizer(tokens, added).size == len(tokens)
    with pytest.raises(VocabError, match="do not fit"):
        Vocab.from_tokenizer(tokens, added, size=len(tokens) - 1)


def test_fingerprint_tells_vocabularies_apart(vocab: Vocab, tmp_path: Path) -> None:
    same = Vocab.from_file(write_tokenizer(tmp_path), glm_size=GLM_SIZE, size=VOCAB_SIZE)
    assert same.fingerprint() == vocab.fingerprint() and len(vocab.fingerprint()) == 64
    tokens, added = small_tokens()
    prints = {
        Vocab.from_tokenizer(tokens, added).fingerprint(),
        Vocab.from_tokenizer(tokens, added, glm_size=6).fingerprint(),
        Vocab.from_tokenizer(tokens, added, size=64).fingerprint(),
    }
    _swap(tokens, "a", "b")  # the same layout, another text tokenizer
    assert len(prints | {Vocab.from_tokenizer(tokens, added).fingerprint()}) == 4


def test_unreadable_files_name_the_path(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(VocabError, match="tokenizer.json.*no such file"):
        Vocab.from_file(path)
    for content in ("version https://git-lfs", "[]", "{}", json.dumps({"model": {}, "added_tokens": []})):
        path.write_text(content)
        with pytest.raises(VocabError, match="tokenizer.json"):
            Vocab.from_file(path)


def test_base_piece_and_added_token_must_agree(tmp_path: Path) -> None:
    spec = json.loads(tokenizer_json())
    spec["added_tokens"].append({**spec["added_tokens"][0], "content": "the", "id": 9})
    spec["model"]["vocab"]["the"] = 299
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(spec))
    with pytest.raises(VocabError, match="the has id 299"):
        Vocab.from_file(path)
