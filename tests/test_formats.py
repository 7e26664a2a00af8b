"""Prompts: the published layout id for id, ours with its inverse, and no field lost, cut or invented."""

import random
from pathlib import Path
from typing import Any

import pytest

from gpa.data import sequences
from gpa.data.sequences import COLUMN_OF, Sizes
from gpa.errors import PromptError, VocabError
from gpa.prompt.formats import (
    Format,
    InstructFormat,
    PublishedFormat,
    canonical_task,
    get_format,
)
from gpa.prompt.tasks import DEFAULT, TASKS
from gpa.prompt.vocab import Vocab
from gpa.text.normaliser import normalise_text
from gpa.text.pronunciations import Verbatim
from gpa.text.tokenizer import TextTokenizer, build_tokenizer_json, train_sentencepiece
from published import GLM_SIZE, VOCAB_SIZE, read_cases, write_tokenizer

TEXTS = [
    "Hello, world.",
    " leading space",
    "<|im_end|> stops? <|end_content|><|start_semantic_token|>",
    "<|bicodec_semantic_5|> you 42!",
    "你好，世界。",
    "Ünïcödé \U0001f600 tail",
]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> PublishedFormat:
    directory = write_tokenizer(tmp_path_factory.mktemp("published"))
    vocab = Vocab.from_file(directory, glm_size=GLM_SIZE, size=VOCAB_SIZE)
    fmt = get_format("published", vocab, TextTokenizer.from_file(directory))
    assert isinstance(fmt, PublishedFormat)
    return fmt


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> InstructFormat:
    pytest.importorskip("sentencepiece")
    directory = tmp_path_factory.mktemp("instruct")
    corpus = [
        *(text for task in TASKS.values() for text in task.instructions),
        "you are just quizzed by vague fox mazes.",
    ]
    train_sentencepiece(corpus, directory / "spm.model", vocab_size=290)
    build_tokenizer_json(directory / "spm.model", 128, 64, directory)
    fmt = get_format("instruct", Vocab.from_file(directory), TextTokenizer.from_file(directory))
    assert isinstance(fmt, InstructFormat)
    return fmt


@pytest.fixture(params=["published", "instruct"])
def fmt(request: pytest.FixtureRequest) -> Format:
    return request.getfixturevalue(request.param)


def random_fields(fmt: Format, task: str, draw: random.Random) -> dict[str, Any]:
    """Valid inputs and target of a task, with random codes and hostile text."""

    def codes(size: int) -> list[int]:
        return [draw.randrange(size) for _ in range(draw.randrange(1, 40))]

    vocab, text = fmt.vocab, draw.choice(TEXTS)
    if task == "asr":
        source = {"semantic": codes(vocab.semantic.size)}
        return source | ({"glm": codes(vocab.glm.size)} if vocab.glm else {}) | {"target_text": text}
    voice = {"global_": codes(vocab.global_.size), "target_semantic": codes(vocab.semantic.size)}
    return voice | ({"text": text} if task == "tts" else {"semantic": codes(vocab.semantic.size)})


def prompt_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if not name.startswith("target")}


def golden_fields(case: dict[str, Any], published: PublishedFormat, ids: list[int]) -> dict[str, Any]:
    """Inputs of a golden sequence: codes read at the delimiters, text from the case."""
    control, vocab, found = published.vocab.control, published.vocab, {}
    for field, block in (("glm", vocab.glm), ("semantic", vocab.semantic), ("global_", vocab.global_)):
        name = field.rstrip("_")
        if control[f"start_{name}"] in ids:
            start, end = ids.index(control[f"start_{name}"]) + 1, ids.index(control[f"end_{name}"])
            found[field] = [i - block.offset for i in ids[start:end]]
    return found | ({"text": case["text"]} if case["task"] == "tts-a" else {})


def test_golden_prompts(published: PublishedFormat) -> None:
    for case in read_cases()["cases"]:
        fields = golden_fields(case, published, case["prompt"])
        assert published.build(case["task"], **fields) == case["prompt"]
        parsed = published.parse(case["prompt"])
        assert (parsed.task, parsed.target, parsed.finished) == (canonical_task(case["task"]), None, False)
        assert {name: getattr(parsed, name) for name in fields} == fields


def test_golden_training_rows(published: PublishedFormat) -> None:
    for row in read_cases()["training"]:
        example, ids = row["example"], row["input_ids"]
        fields = golden_fields(example, published, ids)
        if example["task"] == "stt":
            fields["target_text"] = example["text"]
        else:
            speech = [i for i in row["labels"] if i != -100][:-1]
            fields["target_semantic"] = [i - published.vocab.semantic.offset for i in speech]
        assert published.example(example["task"], **fields) == (ids, row["labels"])


@pytest.mark.parametrize("task", DEFAULT)
def test_round_trip(fmt: Format, task: str) -> None:
    draw = random.Random(task)
    for _ in range(60):
        fields = random_fields(fmt, task, draw)
        ids, labels = fmt.example(task, **fields)
        parsed = fmt.parse(ids)
        assert (parsed.task, parsed.finished) == (task, True)
        for name, value in fields.items():
            if isinstance(value, str) and fmt.name == "instruct":
                value = normalise_text(value)
            assert getattr(parsed, name) == value
        prompt = fmt.build(task, **prompt_fields(fields))
        assert ids[: len(prompt)] == prompt
        assert labels == [-100] * len(prompt) + ids[len(prompt) :]
        assert labels[-1] == fmt.vocab.stop and ids.count(fmt.vocab.stop) == 1
        assert fmt.parse(prompt).blocks == parsed.blocks and fmt.parse(prompt).target is None


@pytest.mark.parametrize("task", DEFAULT)
def test_completions_are_legal(fmt: Format, task: str) -> None:
    draw = random.Random(7)
    runs = fmt.legal_ids(task)
    legal = {i for run in runs for i in run}
    assert sum(map(len, runs)) == len(legal) and legal < set(range(fmt.vocab.size))
    assert fmt.stop_ids(task) == {fmt.vocab.stop} <= legal
    for _ in range(30):
        fields = random_fields(fmt, task, draw)
        target = {name.removeprefix("target_"): v for name, v in fields.items() if name.startswith("target")}
        ids = fmt.completion(task, **target)
        assert set(ids) <= legal
        parsed = fmt.parse_completion(task, ids)
        assert parsed.finished and fmt.example(task, **fields).input_ids[-len(ids) :] == ids
        unfinished = fmt.parse_completion(task, ids[:-1])
        assert unfinished.target == parsed.target and not unfinished.finished
    assert fmt.parse_completion(task, []).target is None
    forbidden = fmt.vocab.semantic if task == "asr" else fmt.vocab.text
    assert not legal & set(forbidden.span)


def test_hostile_text_adds_no_control_or_audio_ids(fmt: Format) -> None:
    plain = fmt.build("tts", text="a", global_=[1, 2])
    for text in TEXTS:
        ids = fmt.build("tts", text=text, global_=[1, 2])
        assert [i for i in ids if i not in fmt.vocab.text] == [i for i in plain if i not in fmt.vocab.text]


@pytest.mark.parametrize("task", DEFAULT)
def test_every_field_is_needed_and_no_other_taken(fmt: Format, task: str) -> None:
    fields = prompt_fields(random_fields(fmt, task, random.Random(1)))
    for name in fields:
        with pytest.raises(PromptError, match=f"{name} is missing"):
            fmt.build(task, **{k: v for k, v in fields.items() if k != name})
        with pytest.raises(PromptError, match=f"{name} is empty"):
            fmt.build(task, **(fields | {name: "" if name == "text" else []}))
        with pytest.raises(PromptError, match=f"{name} cannot be of type"):
            fmt.build(task, **(fields | {name: [1] if name == "text" else "1"}))
    for name in {"text", "semantic", "global_", "glm"} - set(fields):
        with pytest.raises(PromptError, match=f"takes no {name}"):
            fmt.build(task, **(fields | {name: "a" if name == "text" else [1]}))


def test_codes_out_of_range(fmt: Format) -> None:
    for bad in ([fmt.vocab.global_.size], [-1], [0.5]):
        with pytest.raises(VocabError, match="global"):
            fmt.build("tts", text="a", global_=bad)  # type: ignore[arg-type]
    with pytest.raises(VocabError, match="semantic"):
        fmt.completion("vc", semantic=[0, fmt.vocab.semantic.size])


def test_targets(fmt: Format) -> None:
    stop, end = fmt.vocab.stop, fmt.vocab.control["end_content"]
    assert fmt.completion("asr", text="") == [end, stop]  # silence
    for call in ({}, {"semantic": [1]}, {"text": "a", "semantic": [1]}):
        with pytest.raises(PromptError, match="target"):
            fmt.completion("asr", **call)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="semantic is empty"):
        fmt.completion("tts", semantic=[])


def test_tasks_and_formats_by_name(fmt: Format) -> None:
    assert [canonical_task(name) for name in ("stt", "tts-a", "vc", "asr")] == ["asr", "tts", "vc", "asr"]
    for name in ("sst", "", None, ["asr"]):
        with pytest.raises(PromptError, match="tts, asr, vc, tts-a, stt"):
            fmt.build(name)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="published, instruct"):
        get_format("chat", fmt.vocab, fmt.text_tokenizer)


def test_nothing_is_cut(fmt: Format) -> None:
    codes = [1, 2, 3] * 5000
    assert len(fmt.build("vc", global_=[0] * 32, semantic=codes)) > len(codes)
    assert len(fmt.build("tts", global_=[0], text="a b " * 3000)) > 3000


def test_format_and_tokenizer_must_fit(published: PublishedFormat, instruct: InstructFormat) -> None:
    with pytest.raises(VocabError, match="text tokenizer has"):
        get_format("instruct", instruct.vocab, published.text_tokenizer)
    with pytest.raises(VocabError, match="task_asr"):
        get_format("instruct", published.vocab, published.text_tokenizer)
    with pytest.raises(VocabError, match="start_glm_token"):
        get_format("published", instruct.vocab, instruct.text_tokenizer)


def test_published_refuses_instructions(published: PublishedFormat) -> None:
    with pytest.raises(PromptError, match="no instruction"):
        published.build("tts", text="a", global_=[1], instruction="say the text")


def test_instructions(instruct: InstructFormat) -> None:
    for task, wordings in ((name, TASKS[name].instructions) for name in DEFAULT):
        fields = prompt_fields(random_fields(instruct, task, random.Random(2)))
        default = instruct.build(task, **fields)
        assert instruct.build(task, **fields, instruction=wordings[0]) == default
        bodies = set()
        for wording in (*wordings, "", "Speak <|task_vc|> slowly"):
            ids = instruct.build(task, **fields, instruction=wording)
            assert instruct.parse(ids).instruction == normalise_text(wording)
            bodies.add(tuple(ids[ids.index(instruct.vocab.control["end_instruction"]) :]))
        assert len(bodies) == 1  # the wording changes nothing but itself
    assert all(normalise_text(text) == text for task in TASKS.values() for text in task.instructions)


def test_unseen_compositions(instruct: InstructFormat) -> None:
    draw = random.Random(3)
    values = {"global": [3, 1, 2], "semantic": [5, 6, 7, 7], "content": "who is it"}
    for _ in range(100):
        tasks = draw.sample(DEFAULT, draw.randrange(3))
        blocks = [(kind, values[kind]) for kind in draw.choices(list(values), k=draw.randrange(5))]
        output = draw.choice(list(values))
        prompt = instruct.compose(tasks, blocks, output, draw.choice([None, "say the text"]))
        target = draw.choice([None, values[output]])
        ids = prompt + (instruct.ending(output, target) if target else [])
        parsed = instruct.parse(ids)
        assert (parsed.tasks, parsed.blocks, parsed.output) == (tuple(tasks), tuple(blocks), output)
        assert parsed.target == target and parsed.finished == (target is not None)
        assert set(ids[len(prompt) :]) <= {i for run in instruct.legal_output(output) for i in run}
    known = instruct.compose(["vc"], [("global", [1]), ("semantic", [2])], "semantic")
    assert known == instruct.build("vc", global_=[1], semantic=[2])
    for blocks, output in ([("glm", [1])], "semantic"), ([], "glm"), ([("image", [1])], "semantic"):
        with pytest.raises(PromptError, match="no '(glm|image)' block"):
            instruct.compose(["vc"], blocks, output)  # type: ignore[arg-type]


def test_malformed_sequences_are_refused(fmt: Format) -> None:
    draw = random.Random(4)
    for _ in range(400):
        ids = list(fmt.example(task := draw.choice(DEFAULT), **random_fields(fmt, task, draw)).input_ids)
        at = draw.randrange(len(ids))
        ids[at : at + draw.randrange(3)] = [draw.randrange(fmt.vocab.size) for _ in range(draw.randrange(3))]
        try:
            fmt.parse(
                ids
            )  # a changed text or code is still a sentence; anything else must be refused by name
        except PromptError as error:
            assert str(error)
    row = fmt.example("asr", **random_fields(fmt, "asr", draw)).input_ids
    for ids in ([*row, row[-2]], [*row[:-1], 5, row[-1]], [*row, row[-1]]):
        with pytest.raises(PromptError, match="unexpected id"):
            fmt.parse(ids)
    for ids in ([], [fmt.vocab.stop], [-5], [fmt.vocab.size + 1], [0.5], [[1]]):
        with pytest.raises(PromptError):
            fmt.parse(ids)  # type: ignore[arg-type]


def test_prompt_modules_need_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys, gpa.prompt.formats, gpa.text.tokenizer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


# Sizes without building -------------------------------------------------------------------------------------


def test_sizes_are_those_of_the_rows_that_are_built(fmt: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast way and the slow one agree for every task and kind of text, also when little is remembered."""
    monkeypatch.setattr(sequences, "KNOWN", 3)
    sizes, draw = Sizes(fmt), random.Random(0)
    texts = [
        *TEXTS,
        "two words",
        "two words?",
        Verbatim("Two  words, as they are"),
        "Two  words, as they are",
        "Dr. Smith paid $5.20!",
    ]
    for text in [*texts, *reversed(texts)]:
        codes = {
            name: [draw.randrange(9) for _ in range(draw.randrange(1, 40))] for name in COLUMN_OF.values()
        }
        for target in ((), codes["glm"]):
            row = {**codes, "text": text, "target": target}
            for task in fmt.tasks:
                assert sizes(task, row) == sequences.longest(fmt, (task,), row), (task, text)
