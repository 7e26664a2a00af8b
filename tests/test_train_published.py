"""Training rows and networks of the published format: the golden rows through the code that makes batches."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpa import config, hub
from gpa.data import token_folder
from gpa.data.rows import Noise, RowBuilder
from gpa.engine.network import Network
from gpa.errors import CheckpointError, UsageError
from gpa.models.gpa import GPA, checkpoint_gpa
from gpa.prompt.formats import canonical_task
from gpa.prompt.tasks import IGNORE
from gpa.train.families.lm import LMFamily, LMRecipe
from published import GLM_SIZE, VOCAB_SIZE, read_cases, write_prepared
from training import LM

pytest.importorskip("datasets")
CASES = read_cases()["training"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prepared(tmp_path_factory.mktemp("prepared"))


def family(tokens: Path, **changes: Any) -> LMFamily:
    data = {"tokens": str(tokens), "max_ids": 1500, "batch_ids": 4500}
    tree: dict[str, Any] = {"kind": "gpa", "format": "published", "data": data, "model": LM}
    tree["tasks"] = {"tts": {}, "asr": {}, "vc": {"share": 1.0}}
    tree["export"] = "network"  # the rows here come without a codec
    return LMFamily(config.build(LMRecipe, {**tree, "weights": {"alignment": 0.0}, **changes}))


@pytest.mark.parametrize("n", range(len(CASES)))
def test_rows_are_the_golden_ones(folder: Path, n: int) -> None:
    """Ids and labels, whatever the random numbers: one wording, and the voice that the row names."""
    rows = family(folder).train_rows
    for seed in range(5):
        row = rows.row(canonical_task(CASES[n]["example"]["task"]), n, np.random.default_rng(seed))
        assert row.ids.tolist() == CASES[n]["input_ids"] and row.labels.tolist() == CASES[n]["labels"]
    assert rows.length(row.task, n) == len(row.ids)


def test_a_batch_holds_them_and_supervises_their_completions(folder: Path) -> None:
    batch = family(folder).batch(0)
    found = {tuple(ids[at].tolist()) for ids, at in zip(batch.labels, batch.labels != IGNORE, strict=True)}
    assert found == {tuple(i for i in case["labels"] if i != IGNORE) for case in CASES}
    assert (batch.labels[batch.labels != IGNORE] == batch.ids[batch.labels != IGNORE]).all()


@pytest.mark.parametrize("size", [VOCAB_SIZE, 4800])
def test_the_folder_tells_the_whole_id_space(tmp_path: Path, size: int) -> None:
    """The block of linguistic codes, which tokenizer.json does not name, and rows that pad the embedding."""
    folder = write_prepared(tmp_path, size=size)
    vocab = token_folder.read_vocab(folder)
    assert vocab.size == size and vocab.glm is not None
    assert (vocab.glm.offset, vocab.glm.size) == (
        read_cases()["offsets"]["glm_semantic_token_offset"],
        GLM_SIZE,
    )
    assert family(folder).build().get_parameter("model.embed_tokens.weight").shape[0] == size
    with pytest.raises(UsageError, match=f"model.vocab_size is 17, the tokens have {size} ids"):
        family(folder, model={**LM, "vocab_size": 17}).build()


def test_another_tokenizer_in_a_prepared_folder_is_refused(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|reserved_b_0|>", "<|reserved_c_0|>"))
    with pytest.raises(CheckpointError, match="tokenizer.json is not the one"):
        family(folder)


def test_what_does_not_suit_the_format_is_refused_with_the_setting(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="prepared for the published format.*set format=published"):
        family(folder, format="instruct")
    with pytest.raises(UsageError, match="weights.alignment=0.3.*set weights.alignment=0"):
        family(folder, weights={})
    _without_layout(write_prepared(tmp_path))
    with pytest.raises(UsageError, match="no linguistic .GLM. codes.*gpa prepare .* --model PUBLISHED"):
        family(tmp_path)


def test_rehearsal_needs_the_same_tokenizer_and_no_other_layout(folder: Path, tmp_path: Path) -> None:
    """Codes are stored, not ids: a folder that is padded otherwise rehearses as well."""
    padded = write_prepared(tmp_path / "padded", size=4800)
    data = {"tokens": str(folder), "max_ids": 1500, "batch_ids": 4500}
    both = family(folder, data={**data, "replay": str(padded)})
    assert len(both.train_rows.clips) == 2 * len(CASES)
    for n, case in enumerate(CASES):
        row = both.train_rows.row(canonical_task(case["example"]["task"]), 3 + n, np.random.default_rng(0))
        assert row.ids.tolist() == case["input_ids"]
    path = _without_layout(padded) / "tokenizer.json"
    path.write_text(path.read_text().replace("<|reserved_b_0|>", "<|reserved_c_0|>"))
    with pytest.raises(CheckpointError, match="ids are not those"):
        family(folder, data={**data, "replay": str(padded)})


def _without_layout(folder: Path) -> Path:
    """A prepared folder that says nothing of its vocabulary but what tokenizer.json names."""
    path = folder / "prepared.json"
    about = json.loads(path.read_text())
    del about["vocabulary"]
    path.write_text(json.dumps(about))
    return folder


def test_noise_reaches_both_kinds_of_codes(folder: Path) -> None:
    clean, noisy = (family(folder, data={"tokens": str(folder), "noise": n}).train_rows for n in (0.0, 0.5))
    vocab = clean.fmt.vocab
    a, b = (rows.row("asr", 0, np.random.default_rng(0)) for rows in (clean, noisy))
    changed = np.flatnonzero(a.ids != b.ids)
    assert (a.labels == b.labels).all()
    for block in (vocab.glm, vocab.semantic):
        assert block is not None
        mine = [n for n in range(len(a.ids)) if int(a.ids[n]) in block]
        assert 0.3 < np.isin(mine, changed).mean() < 0.7 and all(int(b.ids[n]) in block for n in mine)
    assert all(int(a.ids[n]) in vocab.semantic or int(a.ids[n]) in vocab.glm for n in changed)  # type: ignore[operator]


def test_a_speaker_nobody_named_keeps_the_clips_own_voice(folder: Path) -> None:
    rows = [{**row, "task": ""} for row in token_folder.TokenSet.open(folder)][:2]
    fmt = family(folder).train_rows.fmt
    for named, voices in (("", 1), ("anna", 2)):
        clips = [{**row, "speaker": named, "global": np.full(32, n)} for n, row in enumerate(rows)]
        builder, rng = RowBuilder(clips, fmt, Noise()), np.random.default_rng(0)
        heard = {tuple(fmt.parse(builder.row("tts", 0, rng).ids.tolist()).global_ or ()) for _ in range(20)}
        assert len(heard) == voices


# Starting from published weights ----------------------------------------------------------------------------


def test_a_published_checkpoint_is_known_by_its_files(replica: Path, tmp_path: Path) -> None:
    """No gpa.json says what it was made with; what it holds does, and so does a copy in our own layout."""
    model = GPA.from_pretrained(replica, device="cpu")
    expected = {k: v for k, v in model.processor.fingerprints().items() if k != "vocabulary"}
    assert checkpoint_gpa.fingerprints(replica) == expected and set(expected) == {"codec", "glm", "tokenizer"}
    saved = model.save_pretrained(tmp_path / "saved")
    assert {k: v for k, v in checkpoint_gpa.fingerprints(saved).items() if k != "vocabulary"} == expected


def test_ids_of_another_codec_than_the_published_one_are_refused(replica: Path, tmp_path: Path) -> None:
    folder = write_prepared(tmp_path)
    about = hub.read_json(folder / token_folder.PREPARED)
    for part in ("codec", "glm", "tokenizer"):
        about["fingerprints"] |= {**checkpoint_gpa.fingerprints(replica), part: "0" * 64}
        token_folder.write_json(folder / token_folder.PREPARED, about)
        with pytest.raises(CheckpointError, match=f"made with another {part}"):
            family(folder, init=str(replica), model={}).build()
    about["fingerprints"] |= checkpoint_gpa.fingerprints(replica)
    token_folder.write_json(folder / token_folder.PREPARED, about)
    shutil.copytree(replica, tmp_path / "first" / checkpoint_gpa.NESTED)  # the layout of the first revision
    built = family(folder, init=str(tmp_path / "first"), model={}).build()
    network, _ = Network.load(replica)
    assert all(torch.equal(p, network.state_dict()[name]) for name, p in built.named_parameters())
