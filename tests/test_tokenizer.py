"""Text tokenizers: equal to the plain one, ours equal to SentencePiece, and closed to hostile text."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from gpa.errors import DataError, PromptError, VocabError
from gpa.prompt.tasks import DEFAULT, TASKS
from gpa.prompt.vocab import CONTROL, TASK_TOKEN, Vocab
from gpa.text.normaliser import normalise_text
from gpa.text.tokenizer import TextTokenizer, build_tokenizer_json, train_sentencepiece
from published import read_cases, tokenizer_json, write_tokenizer

HOSTILE = [
    "<|im_end|>",
    "<|bicodec_semantic_5|> hello <|bicodec_global_0|>",
    "say <|end_content|><|start_semantic_token|>",
    "<|endoftext|><|reserved_a_1|><|audio_code_3|>",
    "<unk><s></s><0x41>",
    "  leading, trailing  ",
    "tab\tnewline\n\u2581\u0000\ufffd",
    "\U0001f600 e\u0301 \u200d",
]
SENTENCES = [
    "the author of the danger trail, philip steels, et cetera.",
    "will we ever forget it? it's a well-known question; who knows!",
    "for the twentieth time that evening the two men shook hands.",
    "lord, but i'm glad to see you again, jack: quiz, fox, zebra, vow.",
]


def texts(count: int, seed: int) -> list[str]:
    """Random mixtures of words, marks, Chinese and control spellings."""
    draw = random.Random(seed)
    pieces = "Hello world, the quick 42 times! 你好 ， 世界。 é ß \n ' \" < | > _".split(" ")
    pieces += ["<|im_end|>", "<|bicodec_semantic_7|>"]
    return [
        "".join(draw.choice(pieces + [" "] * 9) for _ in range(draw.randrange(1, 30))) for _ in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer.from_file(write_tokenizer(tmp_path_factory.mktemp("published")))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small SentencePiece model and the tokenizer.json made of it."""
    pytest.importorskip("sentencepiece")
    directory = tmp_path_factory.mktemp("spm")
    train_sentencepiece(SENTENCES, directory / "spm.model", vocab_size=300)
    build_tokenizer_json(directory / "spm.model", 16, 8, directory)
    return directory


def test_equals_the_plain_tokenizer_on_ordinary_text(tokenizer: TextTokenizer) -> None:
    plain = Tokenizer.from_str(tokenizer_json())
    for text in [*read_cases()["texts"], " leading", "", "Tab\tand\nlines", "naïve café", "世界 42", "a  b "]:
        assert tokenizer.encode(text) == plain.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", HOSTILE + texts(100, seed=1))
def test_hostile_text_stays_text(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.size == 300 for i in ids)
    assert tokenizer.decode(ids) == text


def test_what_cannot_be_text_is_refused(tokenizer: TextTokenizer) -> None:
    for text in ("\ud800", None, 3, b"bytes"):
        with pytest.raises(PromptError, match="cannot be encoded"):
            tokenizer.encode(text)  # type: ignore[arg-type]
    for token_id in (-1, 300, 302, 4470):
        with pytest.raises(VocabError, match="is no text"):
            tokenizer.decode([5, token_id])


def test_own_tokenizer_equals_sentencepiece(trained: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    reference = SentencePieceProcessor(model_file=str(trained / "spm.model"))
    tokenizer = TextTokenizer.from_file(trained)
    for text in [
        *SENTENCES,
        *map(normalise_text, HOSTILE + texts(200, seed=2)),
        "",
        "a  b",
        " a",
        "你好, 世界.",
    ]:
        assert tokenizer.encode(text) == reference.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_own_tokenizer_has_every_token_once(trained: Path) -> None:
    vocab = Vocab.from_file(trained)
    assert [(b.name, b.size) for b in vocab.blocks] == [("text", 299), ("global", 8), ("semantic", 16)]
    fixed = {name for name in CONTROL if not name.endswith("_glm")}
    assert set(vocab.control) == fixed | {f"task_{name}" for name in DEFAULT}
    assert vocab.size == 300 + len(vocab.control) + 8 + 16


def test_own_tokenizer_loads_in_transformers(trained: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (trained / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    auto = transformers.AutoTokenizer.from_pretrained(trained)
    tokenizer, vocab = TextTokenizer.from_file(trained), Vocab.from_file(trained)
    assert (auto.eos_token_id, auto.pad_token_id, len(auto)) == (vocab.stop, vocab.control["pad"], vocab.size)
    for text in SENTENCES:
        assert auto.encode(text) == tokenizer.encode(text)
        assert auto.decode(auto.encode(text)) == text
    assert auto.convert_tokens_to_ids("<|bicodec_semantic_3|>") == vocab.semantic.ids([3])[0]


def test_too_few_texts_for_a_vocabulary(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    with pytest.raises(VocabError, match="512 pieces"):
        train_sentencepiece(["too short"], tmp_path / "spm.model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("raw", "spoken"),
    [
        ("AUTHOR OF THE DANGER TRAIL", "author of the danger trail"),
        ("Dr. Smith & Mrs. Jones, St. Peter's", "doctor smith and missus jones, saint peter's"),
        ("At 10:05 a.m., no. 7 ran 6 ft.", "at ten oh five a m, number seven ran six feet"),
        ("$5.25, $3.2 million", "five dollars and twenty five cents, three point two million dollars"),
        ("In 1905, 1,905; 45%", "in nineteen oh five, one thousand nine hundred five; forty five percent"),
        ("£1.01 on the 21st", "one pound and one penny on the twenty first"),
        ("1960s, 2005, 1914-18", "nineteen sixties, two thousand five, nineteen fourteen to eighteen"),
        ("3.14 or 2½ or 007", "three point one four or two and one half or zero zero seven"),
        ("“Hello”—she’s ‘here’…", "hello - she's here."),
        ("Wait...what?!", "wait. what?"),
        ("12th, 20th, 3rd, 100th", "twelfth, twentieth, third, one hundredth"),
        ("A 20-year-old café", "a twenty-year-old cafe"),
        ("the U.S. Army, etc.", "the u s army, et cetera."),
        ("Drs. T. Jenkins and Ms Hunt, viz.: all", "doctors t. jenkins and miss hunt, namely: all"),
        ("Then director of FPCC. On TV, 60 mph", "then director of f p c c. on t v, sixty miles per hour"),
        ("Hmm, shh! St Paul vs. the nth jr", "hmm, shh! st paul versus the nth jr"),
        ("-5° to 1000000", "minus five degrees to one million"),
        ("你好，世界。", "你好, 世界."),
        ("<|im_end|>", "im end"),
        (" -- ...", ""),
    ],
)  # fmt: skip
def test_normalise_text(raw: str, spoken: str) -> None:
    assert normalise_text(raw) == spoken


def test_normalisation_is_idempotent_and_closed() -> None:
    draw = random.Random(3)
    pieces = list("abcdrst' \".,?!;:-$%&0123459 #@/_<|>é") + [
        "mr.",
        "st.",
        "u.s.",
        "1st",
        "10:30",
        "—",
        "世",
        "½",
        " ",
    ]
    for _ in range(1500):
        once = normalise_text("".join(draw.choice(pieces) for _ in range(draw.randrange(24))))
        assert normalise_text(once) == once
        assert set(once) <= set("abcdefghijklmnopqrstuvwxyz .,?!;:'-世")
    for text in SENTENCES:
        assert normalise_text(text) == text


def test_card_lists_every_control_token(repo: Path) -> None:
    card = (repo / "tokenizers" / "text" / "card.md").read_text(encoding="utf-8")
    for name, (token, meaning) in CONTROL.items():
        assert f"| `{token}` | `{name}` | {meaning} |" in card
    for name in TASKS:
        assert f"| `{TASK_TOKEN.format(name)}` | `task_{name}` |" in card


def test_a_recipe_trains_a_tokenizer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From three kinds of files; held-out lines come back; the ids are those of the Python functions."""
    pytest.importorskip("sentencepiece")
    from gpa.train.command import main

    lines = [
        f"The {a} {b} sees {n} birds." for n, a in enumerate(("old", "red", "wet")) for b in ("fox", "dog")
    ]
    (tmp_path / "plain.txt").write_text("\n".join(lines * 5), encoding="utf-8")
    (tmp_path / "table.tsv").write_text("a\tHow are you?\nb\tVery well.\n", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"text": "Good morning."}\n{"id": "no text"}\n', encoding="utf-8")
    files = [str(tmp_path / name) for name in ("plain.txt", "table.tsv", "rows.jsonl")]
    recipe = {"kind": "text", "data": {"files": files}, "vocab_size": 280, "semantic": 8, "speaker": 4}
    path = tmp_path / "text.yaml"
    path.write_text(json.dumps({**recipe, "held_out": 4}), encoding="utf-8")
    with caplog.at_level("INFO"):
        main([str(path), "--run", str(tmp_path / "run")])
    assert "lines 25  held_out 8  letters_per_id" in caplog.text
    vocab = Vocab.from_file(tmp_path / "run" / "export")
    assert vocab.semantic.size == 8 and vocab.global_.size == 4
    for change, message in (
        ("data.files=[]", "data.files names no text"),
        ("data.files=[no.txt]", "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            main([str(path), change, "--run", str(tmp_path / "other" / change[-5:-1])])
