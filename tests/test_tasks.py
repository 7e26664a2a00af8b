"""The task seam: a fourth task, defined on a page of docs/, is prepared, trained, generated and kept."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from conftest import speechlike
from gpa import GPA, audio, config
from gpa.data import token_folder
from gpa.data.checks import Case, Limits, no_text
from gpa.data.manifest import Clip, ManifestRow
from gpa.data.row_plan import Budget, RowPlan
from gpa.errors import CheckpointError, PromptError, UsageError, VocabError
from gpa.models.gpa.configuration_gpa import VERSION, GPAConfig
from gpa.models.gpa.extend_gpa import extend
from gpa.models.gpa.verify_gpa import verify
from gpa.prompt import tasks
from gpa.prompt.formats import get_format
from gpa.prompt.tasks import ASR, DEFAULT, TASKS, TTS, VC, Layout, Length, Task
from gpa.prompt.vocab import Vocab
from gpa.text.tokenizer import TextTokenizer, build_tokenizer_json, train_sentencepiece
from gpa.train.families.lm import LMFamily, LMRecipe
from tiny_model import SIZES, write_keen_model

PAGE = Path(__file__).parents[1] / "docs" / "add-a-task.md"
BLOCKS = re.findall(
    r"^```(python|yaml)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
TEXTS = ("hello there, how are you?", "how are you?", "you there, hello!")
SAID = ("HH AH L OW | DH EH R | HH AW | AA R | Y UW", "HH AW | AA R | Y UW", "Y UW | DH EH R | HH AH L OW")


class Page:
    """The page's code, run block by block in one namespace."""

    def __init__(self, replaced: dict[str, str]) -> None:
        self.names: dict[str, Any] = {}
        self.code = [source for language, source in BLOCKS if language == "python"]
        (self.recipe,) = (yaml.safe_load(source) for language, source in BLOCKS if language == "yaml")
        for old, new in replaced.items():
            assert any(old in source for source in self.code), old
            self.code = [source.replace(old, new) for source in self.code]

    def run(self, *numbers: int) -> None:
        for n in numbers:
            exec(compile(self.code[n], f"{PAGE.name}, block {n}", "exec"), self.names)


@pytest.fixture(scope="module")
def page(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Step 1 of the page has run: the table has the task `phonemes`."""
    keen = write_keen_model(tiny, tmp_path_factory.mktemp("keen") / "tiny")
    made = Page({'"gpa-mini"': repr(str(keen))})
    made.names["keen"] = keen
    made.run(0)
    yield made
    for name in set(TASKS) - set(DEFAULT):
        del TASKS[name]


@pytest.fixture(scope="module")
def site(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three clips, where the page's steps 2 and 3 have run: `start`, `tokens`, `run/export`."""
    folder, rows = tmp_path_factory.mktemp("site"), []
    (folder / "corpus").mkdir()
    for n, text in enumerate(TEXTS):
        audio.save(folder / "corpus" / f"{n}.wav", speechlike(1.2 + 0.4 * n, seed=n), 16_000)
        rows.append({"id": str(n), "path": f"{n}.wav", "text": text, "speaker": "s", "licence": "CC0-1.0"})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "corpus" / "manifest.jsonl").write_text(lines, encoding="utf-8")
    page.recipe["train"] |= {"threads": 1, "save_every": 200, "eval_every": 200}
    page.recipe["optim"]["lr"] = 1e-2  # the tiny network learns fast
    (folder / "recipe.yaml").write_text(yaml.safe_dump(page.recipe), encoding="utf-8")
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        page.run(1, 2)
    torch.set_num_threads(before)
    return folder


def transcript(model: GPA, clip: Path) -> str | None:
    """What the page's last block prints."""
    prompt = model.prompt("phonemes", audio=clip, voice=clip)
    return model.format.parse_completion("phonemes", model.generate(prompt, task="phonemes")).target_text


# A fourth task ----------------------------------------------------------------------------------------------


def test_the_page_trains_and_writes_phonemes(
    page: Page, site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The real loop has learnt three clips by heart; the last block prints the first one's sounds."""
    monkeypatch.chdir(site)
    page.run(3)
    assert capsys.readouterr().out.strip() == SAID[0]
    found = [transcript(page.names["model"], site / "corpus" / f"{n}.wav") for n in range(3)]
    assert found == list(SAID)


def test_a_checkpoint_keeps_its_tasks(site: Path, tmp_path: Path) -> None:
    """gpa.json names them; saved and loaded it gives the same ids, and the old tasks' prompts are built."""
    model = GPA.from_pretrained(site / "run" / "export", device="cpu")
    assert model.config.tasks == (*DEFAULT, "phonemes") == tuple(model.format.tasks)
    copy = GPA.from_pretrained(model.save_pretrained(tmp_path / "copy"), device="cpu")
    assert json.loads((tmp_path / "copy" / "gpa.json").read_text())["tasks"] == [*DEFAULT, "phonemes"]
    clip = site / "corpus" / "1.wav"
    prompt = copy.prompt("phonemes", audio=clip, voice=clip)
    assert prompt == model.prompt("phonemes", audio=clip, voice=clip)
    assert copy.generate(prompt, task="phonemes") == model.generate(prompt, task="phonemes")
    parsed = copy.format.parse(prompt)
    assert parsed.task == "phonemes" and [kind for kind, _ in parsed.blocks] == ["semantic", "global"]
    assert parsed.instruction == "speech to phonemes"
    assert copy.format.parse(copy.prompt("tts", text="you", voice=clip)).task == "tts"
    assert {
        case["task"] for case in json.loads((copy.path / "golden" / "cases.json").read_text())["cases"]
    } == {
        *DEFAULT,
        "phonemes",
    }


def test_extending_changes_no_old_output(page: Page, site: Path) -> None:
    """The old tasks' ids of the extended checkpoint are those of the original, before anything is trained."""
    old, new = (GPA.from_pretrained(path, device="cpu") for path in (page.names["keen"], site / "start"))
    assert new.vocab.size == old.vocab.size + 1 == new.vocab.control["task_phonemes"] + 1
    prompt = old.prompt("asr", audio=site / "corpus" / "0.wav")
    assert new.prompt("asr", audio=site / "corpus" / "0.wav") == prompt
    assert new.generate(prompt, task="asr") == old.generate(prompt, task="asr")
    with pytest.raises(UsageError, match="it has these tasks"):
        extend(site / "start", site / "again", ["phonemes"])


def test_rows_hold_what_the_task_says(page: Page, site: Path) -> None:
    """Own layout, own wordings, target by its function, lengths that suffice."""
    tree = {**page.recipe, "data": {"tokens": str(site / "tokens")}, "init": str(site / "start")}
    family = LMFamily(config.build(LMRecipe, tree))
    assert [(task, share) for task, _, share in family.items] == [("phonemes", 1.0)] * 3
    seen = set()
    for n in range(20):
        row = family.train_rows.row("phonemes", n % 3, np.random.default_rng(n))
        parsed = family.train_rows.fmt.parse(row.ids.tolist())
        assert parsed.target == SAID[n % 3] and parsed.finished and parsed.task == "phonemes"
        assert len(row.ids) <= family.train_rows.length("phonemes", n % 3)
        seen.add(parsed.instruction)
    assert seen == set(TASKS["phonemes"].instructions)
    lengths = token_folder.TokenSet.open(site / "tokens").lengths
    assert all(lengths[i] >= family.train_rows.length("phonemes", i) for i in range(3))


def test_a_row_serves_what_it_can(site: Path) -> None:
    """A clip's own task alone; without one all of the recipe's that its text allows."""

    def items(clips: list[dict[str, Any]], recipe: LMRecipe) -> list[tuple[str, int, float]]:
        shares = {name: args.share or 0.0 for name, args in recipe.tasks.items()}
        rows = SimpleNamespace(clips=clips, length=lambda task, i: 1)
        return RowPlan(rows, Budget(10, 100, 0, shares)).items  # type: ignore[arg-type]

    tree = {
        "data": {"tokens": "tokens"},
        "model": {},
        "tasks": {"stt": {}, "vc": {}, "phonemes": {"share": 0.5}},
    }
    recipe = config.build(LMRecipe, tree)
    clips = [
        {"text": "you"},
        {"text": ""},
        {"text": "you", "task": "phonemes"},
        {"text": "you", "task": "tts"},
    ]
    found = [("asr", 0, 1.0), ("vc", 0, 0.4), ("vc", 1, 0.4), ("phonemes", 0, 0.5), ("phonemes", 2, 0.5)]
    assert items(clips, recipe) == found
    assert (
        config.build(LMRecipe, yaml.safe_load(config.dump(recipe))) == recipe
    )  # and what it resolves to is kept


# What is refused, and by which words ------------------------------------------------------------------------


def test_only_the_tokens_of_its_own_tasks_are_needed(page: Page, tmp_path: Path) -> None:
    train_sentencepiece([*TEXTS, *SAID] * 4, tmp_path / "spm.model", 290)
    build_tokenizer_json(tmp_path / "spm.model", 16, 4, tmp_path, ["phonemes"])
    vocab, text = Vocab.from_file(tmp_path), TextTokenizer.from_file(tmp_path)
    assert {name for name in vocab.control if name.startswith("task_")} == {"task_phonemes"}
    fmt = get_format("instruct", vocab, text, ["phonemes"])
    assert fmt.parse(fmt.build("phonemes", semantic=[1], global_=[2])).task == "phonemes"
    with pytest.raises(VocabError, match="needs <.task_asr.>, <.task_tts.>, <.task_vc.> for tts, asr, vc"):
        get_format("instruct", vocab, text)
    with pytest.raises(PromptError, match="unknown task 'tts'; valid tasks: phonemes"):
        fmt.build("tts", text="you", global_=[1])
    with pytest.raises(PromptError, match="phonemes: no layout in the published format"):
        get_format("published", vocab, text, ["phonemes"])


def test_shipped_and_older_checkpoints_have_the_three(page: Page) -> None:
    """A fourth entry of the table adds nothing to a checkpoint that does not name it."""
    old = GPAConfig.from_dict({"version": VERSION, "format": "instruct"})
    assert old.tasks == tuple(old.sampling) == DEFAULT
    assert (old.sampling["asr"].temperature, old.sampling["tts"].temperature) == (0.0, 0.2)
    shipped = json.loads((Path(tasks.__file__).parents[1] / "assets/gpa-mini/gpa.json").read_text())
    assert shipped["tasks"] == list(DEFAULT)
    model = GPA.from_pretrained("gpa-mini", device="cpu")
    assert tuple(model.format.tasks) == DEFAULT and "task_phonemes" not in model.vocab.control
    with pytest.raises(PromptError, match="unknown task 'phonemes'; valid tasks: tts, asr, vc"):
        model.prompt("phonemes", audio="no.wav")


def test_unknown_tasks_of_a_checkpoint_are_refused_with_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"unknown tasks \['song'\]; known: tts, asr, vc"):
        GPAConfig.from_dict({"version": VERSION, "tasks": ["tts", "song"]})
    with pytest.raises(CheckpointError, match=r"sampling: unknown tasks \['vc'\]; known: tts"):
        GPAConfig.from_dict({"version": VERSION, "tasks": ["tts"], "sampling": {"vc": {}}})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"song": {}}, "unknown task 'song'; valid tasks: tts, asr, vc"),
        ({"tts": {"share": -1}}, "share=-1.0.*at least 0"),
        ({"tts": {"shares": 1}}, r"tasks.tts: unknown keys \['shares'\]; known: \['share', 'weight'\]"),
        ({"tts": {"share": 0}}, "no task has a share"),
        ({}, "no task has a share"),
    ],
)
def test_bad_tasks_of_a_recipe_are_errors(given: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, PromptError), match=message):
        config.build(LMRecipe, {"data": {"tokens": "tokens"}, "model": {}, "tasks": given})


def test_validation_by_generation_says_which_task_it_lacks(page: Page, site: Path) -> None:
    tree = {**page.recipe, "data": {"tokens": str(site / "tokens")}, "validate": {"rows": 1}}
    with pytest.raises(UsageError, match="validate.rows measures asr and tts: tasks has no asr"):
        LMFamily(config.build(LMRecipe, {**tree, "init": str(site / "start")}))


TEXT_OUT = {"instruct": Layout(("semantic",), "start_content", "content")}
FIT = {"inputs": ("audio",), "layouts": TEXT_OUT, "instructions": ("sing",), "length": Length(25, 16)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a song"}, "letters, digits and _"),
        ({"inputs": ("sound",)}, r"unknown inputs \['sound'\]; known: audio, source, text, voice"),
        ({"length": None}, "length is needed by"),
        ({"inputs": ("text",)}, "length is per second of speech, and not for"),
        ({"instructions": ()}, "an instruction are needed"),
        ({"layouts": {**TEXT_OUT, **{"published": TTS.layouts["published"]}}}, "layouts of one output"),
        ({"name": "asr"}, "asr stands in the table already"),
        ({"aliases": ("stt",)}, "stt stands in the table already"),
    ],
)
def test_a_task_that_contradicts_itself_or_the_table_is_refused(change: dict[str, Any], message: str) -> None:
    before = dict(TASKS)
    with pytest.raises(PromptError, match=message):
        tasks.add(Task(**{"name": "song", **FIT, **change}))  # type: ignore[arg-type]
    assert before == TASKS


def test_the_table_says_what_a_task_does() -> None:
    kinds = {name: (t.writes, t.reads_speech, t.uses_text, t.converts) for name, t in TASKS.items()}
    assert kinds["tts"] == (False, False, True, False) and kinds["asr"] == (True, True, True, False)
    assert kinds["vc"] == (False, True, False, True) and ASR.length and ASR.length.text_ids(2.0) == 66


# Sizes and rows of the old tasks, and of a model that has none of them --------------------------------------


def test_lengths_are_what_they_were(tiny: Path) -> None:
    """Recognition: 16 ids and 25 a second. Conversion: 1/4 of the source to a second more than 5/4 of it."""
    budgets = GPA.from_pretrained(tiny, device="cpu").processor
    for n in (1, 7, 100, 333):
        assert budgets.span(ASR, n) == (0, 16 + int(25 * (n / budgets.frame_rate)))
        assert budgets.span(VC, n) == (n // 4, int(1.25 * n + budgets.frame_rate))
    with pytest.raises(PromptError, match="tts reads no speech"):
        budgets.span(TTS, 10)


@pytest.mark.parametrize(
    ("task", "text", "bad"),
    [("", "", False), ("", "?!", True), ("", "you", False), ("asr", "", True), ("vc", "?!", False)]
    + [("phonemes", "", True), ("phonemes", "you", False)],
)
def test_a_row_without_a_text_its_task_needs_is_dropped(page: Page, task: str, text: str, bad: bool) -> None:
    row = ManifestRow("1", Clip("1.wav"), text=text, task=task)
    assert bool(no_text(Case(row, text, None, ()), Limits())) == bad  # type: ignore[arg-type]


def test_a_model_of_one_task(page: Page, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From random weights the checkpoint has the recipe's task alone, and says so when asked for another."""
    monkeypatch.chdir(site)
    tree = {**page.recipe, "init": "", "model": SIZES, "train": {"steps": 1, "threads": 1}}
    recipe = config.build(LMRecipe, tree)
    family = LMFamily(recipe)
    family.export(family.build(), tmp_path / "run" / "export")
    model = GPA.from_pretrained(tmp_path / "run" / "export", device="cpu")
    assert model.config.tasks == ("phonemes",) == tuple(model.config.sampling)
    cases = json.loads((model.path / "golden" / "cases.json").read_text())["cases"]
    assert {case["task"] for case in cases} == {"phonemes"}
    assert all(stage.ok for stage in verify(model))
    for ask in (lambda: model.tts("you", voice="corpus/0.wav"), lambda: model.asr("corpus/0.wav")):
        with pytest.raises(PromptError, match="unknown task '(tts|asr)'; valid tasks: phonemes"):
            ask()
