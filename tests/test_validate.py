"""Validation by generation: what is learnt by heart comes back, nothing illegal does, training goes on."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpa import config
from gpa.data import sequences
from gpa.data.rows import Row, collate
from gpa.engine.request import Completion, Request, Rules, Sampling
from gpa.engine.scheduler import Engine
from gpa.errors import UsageError
from gpa.evals import wer
from gpa.models.gpa.budgets_gpa import Budgets
from gpa.models.gpa.modeling_gpa import Backbone, inference_network, new_backbone
from gpa.prompt.formats import get_format
from gpa.prompt.vocab import Vocab
from gpa.text.edit_distance import edits, words
from gpa.text.tokenizer import TextTokenizer
from gpa.train import checkpoint
from gpa.train.arguments import TrainArgs
from gpa.train.families import validation as validate
from gpa.train.families.lm import LMFamily, LMRecipe
from gpa.train.families.validation import Validation
from gpa.train.loop import train
from published import GLM_SIZE, VOCAB_SIZE, write_tokenizer
from training import LM, lm_tree, story, write_tokens

pytestmark = pytest.mark.usefixtures("threads_kept")
pytest.importorskip("sentencepiece")
ASKED = {"rows": 1, "frame_rate": 25}
NAMES = {"asr_wer", "asr_stop", "tts_roundtrip_wer", "tts_stop"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens"))


def family_of(folder: Path, **changes: Any) -> LMFamily:
    return LMFamily(config.build(LMRecipe, lm_tree(folder, **changes)))


def by_heart(family: LMFamily, clips: Sequence[dict[str, Any]], steps: int) -> Backbone:
    """A small network that has learnt to write and to speak these clips."""
    fmt, rows = family.dev.fmt, []
    for clip in clips:
        for task in ("asr", "tts"):
            ids, labels = map(np.array, sequences.example(fmt, task, clip))
            rows.append(Row(task, ids, labels, np.zeros((len(ids), 2), np.int64)))
    batch = collate([[row] for row in rows], family.vocab.control["pad"])
    torch.manual_seed(0)
    module = family.build()
    assert isinstance(module, Backbone)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        value, _ = family._loss(module, batch)
        value.backward()
        optimizer.step()
    return module.eval()


def test_what_is_learnt_by_heart_comes_back(folder: Path) -> None:
    torch.set_num_threads(1)
    family = family_of(folder, weights={"alignment": 0.0})
    clip = dict(family.train_rows.clips[3])
    other = {**clip, "text": "glad to see you", "semantic": clip["semantic"][::-1]}
    network = inference_network(by_heart(family, [clip, other], 60))
    validation = Validation(
        {0: clip, 1: other}, Budgets(family.dev.fmt, 25.0), dict.fromkeys(("asr", "tts"), Sampling())
    )
    assert validation(network) == {"asr_wer": 0, "asr_stop": 1, "tts_roundtrip_wer": 0, "tts_stop": 1}
    swapped = {0: {**clip, "text": "glad to say you"}, 1: {**other, "semantic": other["semantic"][:-1]}}
    assert Validation(swapped, validation.budgets, validation.sampling)(network)["asr_wer"] > 0


def test_an_untrained_network_gives_legal_ids_within_bounds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = family_of(folder, validate={**ASKED, "speech": {"temperature": 1.0}})
    made: list[tuple[Rules, Completion]] = []

    class Watched(Engine):
        def generate(self, requests: Sequence[Request]) -> list[Completion]:
            done = super().generate(requests)
            made.extend(zip((request.rules for request in requests), done, strict=True))
            return done

    monkeypatch.setattr(validate, "Engine", Watched)
    torch.manual_seed(0)
    module = family.build()
    assert family.validation is not None and isinstance(module, Backbone)
    network = inference_network(module)
    found = family.validation(network)
    assert found.keys() == NAMES
    assert 0 <= found["asr_stop"] <= 1 and 0 <= found["tts_stop"] <= 1
    longest = max(rules.max_new for rules, _ in made)
    assert 0 < found["asr_wer"] <= longest and 0 < found["tts_roundtrip_wer"] <= longest
    assert len(made) == 3  # recognition, speech, recognition of that speech
    for rules, done in made:
        assert rules.legal is not None and 0 < len(done.ids) <= rules.max_new
        assert all(any(i in run for run in rules.legal) for i in done.ids)
    with torch.autocast("cpu", torch.bfloat16):  # training may compute in less than inference does
        assert family.validation(network) == found
    assert [done.ids for _, done in made[3:]] == [done.ids for _, done in made[:3]]
    family.validation.rows = {i + 1: clip for i, clip in family.validation.rows.items()}
    family.validation(network)
    assert made[7][1].ids != made[1][1].ids  # other seeds, other speech


def test_speech_that_fills_the_context_is_not_heard(folder: Path) -> None:
    changes = {"model": {**lm_tree(folder)["model"], "max_position_embeddings": 96}, "data": {"max_ids": 90}}
    changes["data"] = {**lm_tree(folder)["data"], **changes["data"]}
    family = family_of(folder, **changes)
    torch.manual_seed(0)
    module = family.build()
    clip = dict(family.dev.clips[0])
    clip["semantic"] = [1] * 120
    network = inference_network(module)  # type: ignore[arg-type]
    found = Validation({0: clip}, Budgets(family.dev.fmt, 25.0))(network)
    assert found["asr_wer"] == 1 and found["asr_stop"] == 0


def test_the_published_format_has_no_round_trip(tmp_path: Path) -> None:
    """Its recognition also reads linguistic codes, which speaking does not make."""
    write_tokenizer(tmp_path)
    vocab = Vocab.from_file(tmp_path, glm_size=GLM_SIZE, size=VOCAB_SIZE)
    fmt = get_format("published", vocab, TextTokenizer.from_file(tmp_path))
    torch.manual_seed(0)
    network = inference_network(new_backbone(LM, vocab))
    clip = {"text": "Hello!", "semantic": [1, 2, 3], "glm": [4], "global": [0] * 32}
    found = Validation({0: clip}, Budgets(fmt, 50.0))(network)
    assert found.keys() == {"asr_wer", "asr_stop", "tts_stop"}


def test_the_network_is_left_as_it_was(folder: Path) -> None:
    family = family_of(folder, validate=ASKED)
    module = family.build().train()
    module.get_submodule("lm_head").eval()
    modes = [part.training for part in module.modules()]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    random_state = torch.get_rng_state()
    assert family.evaluate(module).keys() >= NAMES
    assert [part.training for part in module.modules()] == modes and len(set(modes)) == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def run(folder: Path, where: Path, *, best: str = "", **changes: Any) -> Path:
    tree = lm_tree(folder, **changes)
    tree["train"] |= {"steps": 4, "eval_every": 2, "ema": 0.5, "best": best}
    recipe = config.build(LMRecipe, tree)
    checkpoint.claim(where, recipe)
    train(LMFamily(recipe), recipe.train, recipe.optim, where, progress=False)
    return where


def test_training_does_not_notice_and_a_resumed_run_tells_the_same(folder: Path, tmp_path: Path) -> None:
    """Averaged weights are what is generated from; the best by round trip are kept."""
    off = run(folder, tmp_path / "off")
    name = "eval/tts_roundtrip_wer"
    on = run(folder, tmp_path / "on", validate=ASKED, best=name)
    new = {f"eval/{one}" for one in NAMES}
    assert [{k: v for k, v in row.items() if k not in new} for row in story(on)] == story(off)
    found = [row for row in story(on) if new <= row.keys()]
    assert [row["step"] for row in found] == [2, 4]
    last = [torch.load(path / "checkpoints" / "step-00000004.pt", weights_only=True) for path in (off, on)]
    assert all(torch.equal(t, last[1]["module"][key]) for key, t in last[0]["module"].items())
    kept = torch.load(on / "checkpoints" / "best.pt", weights_only=True)
    assert round(kept["metric"][name], 6) == min(row[name] for row in found)
    for path in (on / "checkpoints").glob("step-00000004.pt"):
        path.unlink()
    assert run(folder, on, validate=ASKED, best=name) == on
    assert [row for row in story(on) if new <= row.keys()] == found


def test_rows_are_chosen_once_and_a_larger_count_adds(folder: Path) -> None:
    family = family_of(folder)
    dev = family.train_rows  # five clips
    chosen = [
        validate.prepare(validate.ValidateArgs(n, 25.0), dev, 640, tokens=str(folder)) for n in (1, 3, 99)
    ]
    one, three, many = (list(found.rows) for found in chosen if found is not None)
    assert three[:1] == one and many[:3] == three and sorted(many) == list(range(len(dev.clips)))
    with pytest.raises(UsageError, match="validate.rows=1: none of 5 held-out rows fits data.max_ids=10"):
        validate.prepare(validate.ValidateArgs(1, 25.0), dev, 10, tokens=str(folder))


def test_the_rate_of_ids_is_the_prepared_folders(folder: Path) -> None:
    assert validate._frame_rate(folder) == 25.0
    made = family_of(folder, validate={"rows": 1}).validation
    assert made is not None and made.budgets.frame_rate == 25.0


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="validate.rows"):
        validate.ValidateArgs(rows=-1)
    with pytest.raises(UsageError, match="there the highest is best"):
        TrainArgs(best="eval/tts_stop")


def test_word_errors_are_those_of_the_evaluation() -> None:
    pytest.importorskip("jiwer")
    draw = random.Random(0)
    for _ in range(100):
        said, heard = ([draw.choice("abc") for _ in range(draw.randrange(1, 9))] for _ in range(2))
        assert edits(said, heard) == wer.word_edits(" ".join(said), " ".join(heard)).errors
    assert edits([], ["a"]) == edits(["a"], []) == 1 and edits([], []) == 0
    assert words("It's 'well-known', Jack: 你好!") == ["it's", "well", "known", "jack", "你", "好"]
