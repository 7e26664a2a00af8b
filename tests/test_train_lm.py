"""Rows, losses and learning of the language-model family."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from gpa import config
from gpa.codec import load_codec, trained
from gpa.codec.bicodec import BiCodecConfig, BiCodecModel
from gpa.codec.feature_encoder import load_features
from gpa.data.alignment import piece_spans
from gpa.data.rows import LMBatch, Noise, Row, RowBuilder, collate, pack
from gpa.errors import CheckpointError, UsageError
from gpa.lab import merge
from gpa.models.gpa.modeling_gpa import alignment_loss, new_backbone
from gpa.prompt.tasks import DEFAULT, IGNORE, TASKS
from gpa.text.edit_distance import without_punctuation
from gpa.text.letters import letters_of
from gpa.text.lexicon import words_of
from gpa.text.normaliser import normalise_text
from gpa.text.pronunciations import Pronunciations
from gpa.train.arguments import TrainArgs
from gpa.train.families.lm import LMFamily, LMRecipe
from gpa.train.loop import train
from gpa.train.optim import OptimArgs
from training import CODEC, LM, lm_tree, plain, write_encoder, write_tokens

pytest.importorskip("sentencepiece")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def family(folder: Path) -> LMFamily:
    return LMFamily(config.build(LMRecipe, lm_tree(folder)))


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained codec of as many codes."""
    torch.manual_seed(0)
    model = BiCodecModel(BiCodecConfig.from_dict(CODEC))
    root = tmp_path_factory.mktemp("codec")
    features = load_features(write_encoder(root / "encoder"), "whisper")
    trained.write(model, {}, root / "export", features)
    return root / "export"


def rows_of(family: LMFamily, task: str, count: int = 40) -> list[tuple[int, Row]]:
    rng = np.random.default_rng(0)
    clips = range(len(family.train_rows.clips))
    return [(i, family.train_rows.row(task, i, rng)) for i in clips for _ in range(count // len(clips))]


@pytest.mark.parametrize("task", DEFAULT)
def test_rows_are_inference_prompts_and_their_completions(family: LMFamily, task: str) -> None:
    """The prefix without labels is what `build` gives at inference; labels cover the completion, no more."""
    fmt = family.train_rows.fmt
    seen = set()
    for i, row in rows_of(family, task, 400):
        clip = plain(family.train_rows.clips[i])
        prompt = row.ids[row.labels == IGNORE].tolist()
        assert (row.labels[: len(prompt)] == IGNORE).all()  # a prefix
        parsed = fmt.parse(prompt)
        assert parsed.task == task and parsed.target is None and not parsed.finished
        fields = {"text": parsed.text, "semantic": parsed.semantic, "global_": parsed.global_}
        assert fmt.build(task, instruction=parsed.instruction, **fields) == prompt  # type: ignore[arg-type]
        seen.add(parsed.instruction)
        if task == "asr":
            words = without_punctuation(clip["text"]).split()
            completion = fmt.completion(task, text=" ".join(words))
            assert parsed.semantic in (clip["semantic"], *clip.get("copies", ()))
        else:
            completion = fmt.completion(task, semantic=clip["semantic"])
            voices = [
                c["global"] for c in map(plain, family.train_rows.clips) if c["speaker"] == clip["speaker"]
            ]
            assert parsed.global_ in voices
        assert row.labels[len(prompt) :].tolist() == row.ids[len(prompt) :].tolist() == completion
        assert completion[-1] == family.vocab.stop
        if task == "tts":
            assert parsed.text == normalise_text(clip["text"])
    assert TASKS[task].instructions[0] in seen and len(seen) == len(TASKS[task].instructions)


@pytest.mark.parametrize("task", DEFAULT)
def test_lengths_are_not_less_than_the_rows(family: LMFamily, task: str) -> None:
    for i, row in rows_of(family, task):
        assert len(row.ids) <= family.train_rows.length(task, i)


def test_conversion_hears_the_other_readings(family: LMFamily) -> None:
    sources = [
        family.train_rows.fmt.parse(row.ids.tolist()).semantic for i, row in rows_of(family, "vc") if i == 0
    ]
    clip = plain(family.train_rows.clips[0])
    assert {tuple(s or ()) for s in sources} == {tuple(clip["semantic"]), *map(tuple, clip["copies"])}


def test_speech_without_its_text_is_the_wordless_prompt(folder: Path) -> None:
    tree = lm_tree(folder, data={"tokens": str(folder), "drop_text": 0.5})
    family = LMFamily(config.build(LMRecipe, tree))
    fmt = family.train_rows.fmt
    kinds = set()
    for i, row in rows_of(family, "tts"):
        parsed = fmt.parse(row.ids.tolist())
        assert parsed.target == plain(family.train_rows.clips[i])["semantic"] and parsed.finished
        if parsed.text is None:
            voice = parsed.global_
            assert voice is not None
            prompt = fmt.wordless(voice, parsed.instruction)
            assert row.ids[row.labels == IGNORE].tolist() == prompt
        kinds.add(parsed.text is None)
    assert kinds == {True, False}
    published: Any = SimpleNamespace(name="published", text_tokenizer=None)
    with pytest.raises(UsageError, match="drop_text needs the instruct format"):
        RowBuilder([], published, Noise(drop_text=0.1))


def test_speech_is_asked_for_by_the_sounds_of_a_dictionary(folder: Path, tmp_path: Path) -> None:
    """A share of texts and a tenth of words stay spelt, held-out ones do not; no row is too long."""
    clips = LMFamily(config.build(LMRecipe, lm_tree(folder))).train_rows.clips
    words = {word: "K AE1 T AH0 L AO2 G" for clip in clips for word in words_of(clip["text"])}
    said = Pronunciations(words)
    (tmp_path / "said").write_bytes(said.content())
    data = {"tokens": str(folder), "pronunciations": str(tmp_path / "said"), "spelt": 0.4}
    family = LMFamily(config.build(LMRecipe, lm_tree(folder, data=data)))
    fmt, kinds = family.train_rows.fmt, set()
    for i, row in rows_of(family, "tts", 80):
        clip, parsed = plain(family.train_rows.clips[i]), fmt.parse(row.ids.tolist())
        assert parsed.target == clip["semantic"] and parsed.text is not None
        prompt = row.ids[row.labels == IGNORE].tolist()
        again = fmt.build("tts", text=parsed.text, global_=parsed.global_, instruction=parsed.instruction)
        assert again == prompt and len(row.ids) <= family.train_rows.length("tts", i)
        sounds = parsed.text.count('K"&T@LOG')
        kinds.add((sounds > 0, sounds < len(words_of(clip["text"]))))
    assert kinds >= {(True, False), (False, True), (True, True)}
    rng = np.random.default_rng(0)
    held = fmt.parse(family.dev.row("tts", 0, rng).ids.tolist()).text
    assert held == said.respelt(normalise_text(family.dev.clips[0]["text"])).text
    published: Any = SimpleNamespace(name="published", text_tokenizer=None)
    with pytest.raises(UsageError, match="pronunciations needs the instruct format"):
        RowBuilder([], published, dictionary=said)


def piece_of(family: LMFamily, row: Row, position: int) -> str:
    return family.text.decode([int(row.ids[position])])


def test_speech_ids_look_at_the_pieces_spoken_then(family: LMFamily) -> None:
    for i, row in rows_of(family, "tts"):
        clip = plain(family.train_rows.clips[i])
        pieces = family.text.pieces(clip["text"])
        spans = piece_spans(pieces, letters_of(clip["text"]), clip["letters"], len(clip["semantic"]))
        begin = int((row.labels != IGNORE).argmax())
        content = row.ids.tolist().index(family.vocab.control["start_content"]) + 1
        for t in range(len(clip["semantic"])):
            low, high = row.look[begin - 1 + t]  # the position that predicts frame t
            assert content <= low < high <= content + len(pieces)
            for n, (first, last) in enumerate(spans):
                if first <= t < last:
                    assert low <= content + n < high
        assert not row.look[: begin - 1].any() and not row.look[begin - 1 + len(clip["semantic"]) :].any()


def test_written_pieces_look_at_the_frames_where_they_are_spoken(family: LMFamily) -> None:
    for i, row in rows_of(family, "asr"):
        clip = plain(family.train_rows.clips[i])
        text = without_punctuation(clip["text"])
        spans = piece_spans(
            family.text.pieces(text), letters_of(text), clip["letters"], len(clip["semantic"])
        )
        begin = int((row.labels != IGNORE).argmax())
        content = row.ids.tolist().index(family.vocab.control["start_semantic"]) + 1
        got = row.look[begin - 1 : begin - 1 + len(spans)] - content
        assert (got[:, 0] <= spans[:, 0]).all() and (got[:, 0] >= spans[:, 0] - 1).all()
        assert (got[:, 1] >= np.minimum(spans[:, 1], len(clip["semantic"]))).all()
        assert row.look.max() <= begin


def test_a_batch_is_a_function_of_seed_and_step(family: LMFamily, folder: Path) -> None:
    other = LMFamily(config.build(LMRecipe, lm_tree(folder)))
    batches = {step: other.batch(step) for step in (5, 0, 3)}
    for step in range(6):
        batch = family.batch(step)
        assert batch.ids.numel() <= 300
        for name in ("ids", "labels", "task", "positions", "look") if step in batches else ():
            assert torch.equal(getattr(batch, name), getattr(batches[step], name))


def test_padding_changes_no_loss(family: LMFamily) -> None:
    torch.manual_seed(0)
    module = family.build().eval()
    rng = np.random.default_rng(0)
    rows = [family.train_rows.row("tts", i, rng) for i in (0, 1)]
    together = family._collate(rows)
    with torch.no_grad():
        logits = module(together.ids).logits
        for n, row in enumerate(rows):
            alone = module(torch.from_numpy(row.ids)[None]).logits[0]
            torch.testing.assert_close(logits[n, : len(row.ids)], alone, atol=1e-5, rtol=1e-4)


def packed_and_padded(family: LMFamily) -> tuple[LMBatch, LMBatch, list[Row]]:
    rng = np.random.default_rng(0)
    rows = [family.train_rows.row(task, i, rng) for task in DEFAULT for i in (0, 1, 2)]
    pad = family.vocab.control["pad"]
    return collate(pack(rows, 200), pad), collate([[row] for row in rows], pad), rows


def test_packing_keeps_every_row_whole(family: LMFamily) -> None:
    packed, padded, rows = packed_and_padded(family)
    assert packed.real == padded.real == sum(len(row.ids) for row in rows)
    assert 1 < len(packed.ids) < len(rows) and packed.ids.shape[1] <= max(200, *(len(r.ids) for r in rows))
    assert packed.ids.numel() < padded.ids.numel()  # what it is for
    found = []
    for ids, labels, positions in zip(packed.ids, packed.labels, packed.positions, strict=True):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        for begin, end in zip(starts, starts[1:], strict=False):
            found.append((ids[begin:end].tolist(), labels[begin:end].tolist()))
    pad = family.vocab.control["pad"]
    for row in rows:  # one row a stretch, padding only after a sequence's last
        mine = [
            (ids, labels)
            for ids, labels in found
            if ids[: len(row.ids)] == row.ids.tolist() and labels[: len(row.ids)] == row.labels.tolist()
        ]
        assert mine and set(mine[0][0][len(row.ids) :]) <= {pad}
    assert len(found) == len(rows)


@pytest.mark.parametrize("attention", ["segments", "sdpa", "eager"])
def test_packed_loss_is_padded_loss(family: LMFamily, attention: str) -> None:
    """Gradients too: no row sees another, positions start again, supervision is the same."""
    packed, padded, _ = packed_and_padded(family)
    torch.manual_seed(0)
    module = family.build().eval()
    module.set_attn_implementation(attention)  # type: ignore[operator]
    results = []
    for batch in (packed, padded):
        module.zero_grad()
        value, parts = family._loss(module, batch)
        value.backward()
        grads = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        results.append((parts, grads))
    (parts, grads), (slow_parts, slow_grads) = results
    for name in (*DEFAULT, "alignment", *(f"tokens/{task}" for task in DEFAULT)):
        assert parts[name] == pytest.approx(slow_parts[name], rel=1e-5), name
    torch.testing.assert_close(grads, slow_grads, atol=1e-6, rtol=1e-3)


def test_attention_by_segments_is_the_librarys(family: LMFamily) -> None:
    """The slow twin is a dense mask."""
    packed, _, _ = packed_and_padded(family)
    torch.manual_seed(0)
    module, logits = family.build().eval(), []
    for name in ("segments", "sdpa"):
        module.set_attn_implementation(name)  # type: ignore[operator]
        logits.append(module(packed.ids, position_ids=packed.positions, use_cache=False).logits)
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-4)


def slow_alignment(model: Qwen3ForCausalLM, batch: LMBatch, layer: int) -> float:
    """Read the attention weights that the library computes, head 0, and sum them over each span."""
    model.set_attn_implementation("eager")
    attention = model(batch.ids, output_attentions=True, use_cache=False).attentions[layer][:, 0]
    losses = []
    for b, row in enumerate(batch.look.tolist()):
        for position, (low, high) in enumerate(row):
            if high > low:
                losses.append(-attention[b, position, low:high].sum().log())
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_alignment_loss_is_the_librarys_attention(family: LMFamily, layer: int) -> None:
    torch.manual_seed(1)
    model = new_backbone({**lm_tree(Path())["model"], "initializer_range": 0.3}, family.vocab).eval()
    rng = np.random.default_rng(0)
    rows = [family.train_rows.row(task, i, rng) for task in DEFAULT for i in (0, 2)]
    batch = family._collate(rows)
    hidden = model.model(batch.ids, use_cache=False, output_hidden_states=True).hidden_states
    with torch.no_grad():
        fast = float(alignment_loss(model, hidden[layer], batch.positions, batch.look, layer))
        assert fast == pytest.approx(slow_alignment(model, batch, layer), rel=1e-4)
        assert alignment_loss(model, hidden[layer], batch.positions, torch.zeros_like(batch.look), layer) == 0


def test_the_loss_is_the_weighted_sum_of_its_parts(family: LMFamily) -> None:
    torch.manual_seed(0)
    module = family.build().eval()
    rng = np.random.default_rng(0)
    rows = [family.train_rows.row(task, 1, rng) for task in DEFAULT]
    value, parts = family._loss(module, family._collate(rows))
    counts = {row.task: int((row.labels != IGNORE).sum()) for row in rows}
    weights = family.recipe.weights
    expected = weights.alignment * parts["alignment"]
    for row in rows:
        logits = module(torch.from_numpy(row.ids)[None]).logits[0, :-1].log_softmax(-1)
        labels = torch.from_numpy(row.labels[1:])
        at = (labels != IGNORE).nonzero().flatten()
        mean = float(-logits[at, labels[at]].detach().mean())
        assert parts[row.task] == pytest.approx(mean, rel=1e-4)
        share = counts[row.task] / sum(counts.values())
        expected += family.recipe.tasks[row.task].weight * mean * share**0.5
    assert float(value.detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_three_rows_are_learnt_and_generated(family: LMFamily, folder: Path, tmp_path: Path) -> None:
    """One row of each task, learnt by heart, comes back by transformers' greedy generation."""
    rng = np.random.default_rng(0)
    rows = [family.train_rows.row(task, i, rng) for i, task in enumerate(DEFAULT)]

    class Fixed(LMFamily):
        def batch(self, step: int) -> Any:
            return self._collate(rows)

        def evaluate(self, module: torch.nn.Module) -> dict[str, float]:
            return {}

    tree = lm_tree(folder)
    tree["model"] = {**tree["model"], "hidden_size": 64, "intermediate_size": 128}
    args = TrainArgs(steps=250, save_every=250, eval_every=250, log_every=50, threads=1)
    before = torch.get_num_threads()
    recipe = config.build(LMRecipe, tree)
    train(Fixed(recipe), args, OptimArgs(lr=5e-3, warmup=20), tmp_path, progress=False)
    torch.set_num_threads(before)
    model = Qwen3ForCausalLM.from_pretrained(tmp_path / "export").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    for row in rows:
        prompt = torch.from_numpy(row.ids[row.labels == IGNORE])[None]
        mask = torch.ones_like(prompt)
        out = model.generate(prompt, attention_mask=mask, do_sample=False, max_new_tokens=80)  # type: ignore[operator]
        completion = row.ids[row.labels != IGNORE].tolist()
        assert out[0, prompt.shape[1] :].tolist() == completion, row.task
        assert tokenizer.convert_ids_to_tokens(completion[-1]) == "<|im_end|>"


def test_noise_changes_what_is_seen_and_not_what_is_asked(folder: Path, family: LMFamily) -> None:
    tree = lm_tree(folder)
    tree["data"] |= {"noise": 0.3, "text_noise": 0.4}
    noisy, vocab = LMFamily(config.build(LMRecipe, tree)), family.vocab
    for task in DEFAULT:
        changed = {"semantic": 0, "text": 0}
        speech = 0
        for i in range(len(family.train_rows.clips)):
            a = family.train_rows.row(task, i, np.random.default_rng(i))
            b = noisy.train_rows.row(task, i, np.random.default_rng(i))
            assert (a.labels == b.labels).all() and (a.look == b.look).all()
            at = a.ids != b.ids
            for block in (vocab.semantic, vocab.text):
                mine = [n for n in np.flatnonzero(at) if a.ids[n] in block]
                assert all(b.ids[n] in block for n in mine)
                changed[block.name] += len(mine)
                if block is vocab.text:  # what recognition wrote, not its instruction or what is to be said
                    assert all(a.labels[n] != IGNORE for n in mine)
            assert at.sum() == sum(
                a.ids[n] in vocab.semantic or a.ids[n] in vocab.text for n in np.flatnonzero(at)
            )
            speech += sum(i in vocab.semantic for i in a.ids)
        assert 0.2 < changed["semantic"] / speech < 0.4
        assert (changed["text"] > 0) == (task == "asr")
    assert noisy.dev.noise == Noise()  # held-out rows are as they are


def test_noise_may_stay_near(folder: Path, codec: Path) -> None:
    """`noise_near`: an id is seen as one of the codes whose vectors are nearest, never as another or itself;
    the embeddings of a new network begin where the vectors are.
    """
    tree = lm_tree(folder) | {"codec": str(codec)}
    tree["data"] |= {"noise": 0.5, "noise_near": 3}
    noisy = LMFamily(config.build(LMRecipe, tree))
    vectors = load_codec(codec).code_vectors()
    places = torch.cdist(vectors, vectors).argsort(1).argsort(1)  # of code b among the nearest to a
    block, seen = noisy.vocab.semantic, set()
    plain_rows = LMFamily(config.build(LMRecipe, lm_tree(folder))).train_rows
    for i in range(len(noisy.train_rows.clips)):
        a, b = (rows.row("asr", i, np.random.default_rng(i)) for rows in (plain_rows, noisy.train_rows))
        for old, new in zip(a.ids, b.ids, strict=True):
            if old in block and old != new:
                seen.add(int(places[old - block.offset, new - block.offset]))
    assert seen == {1, 2, 3}
    rows = noisy.build().model.embed_tokens.weight[block.offset : block.offset + block.size]  # type: ignore[union-attr, index]
    first = torch.cdist(rows, rows).fill_diagonal_(9).argmin(1)
    assert places[torch.arange(len(first)), first].median() <= 3
    for wrong, changes in (({"noise_near": 3}, {"codec": ""}), ({"noise_near": 27}, {})):
        with pytest.raises(UsageError, match="noise_near"):
            LMFamily(config.build(LMRecipe, {**tree, "data": tree["data"] | wrong, **changes}))


def test_the_mean_of_two_exports(family: LMFamily, tmp_path: Path) -> None:
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(family.build())
        family.export(networks[-1], tmp_path / str(seed))
    merge.main([str(tmp_path / "0"), str(tmp_path / "1"), "--share", "0.25", "-o", str(tmp_path / "mean")])
    mean = Qwen3ForCausalLM.from_pretrained(tmp_path / "mean").state_dict()
    for name, tensor in networks[0].state_dict().items():
        torch.testing.assert_close(mean[name], 0.75 * tensor + 0.25 * networks[1].state_dict()[name])
    assert AutoTokenizer.from_pretrained(tmp_path / "mean").vocab_size > 0
    with pytest.raises(UsageError, match="--share 2"):
        merge.average(tmp_path / "0", tmp_path / "1", 2.0, tmp_path / "no")
    other = new_backbone({**LM, "intermediate_size": 32}, family.vocab)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="not a network like"):
        merge.average(tmp_path / "0", tmp_path / "other", 0.5, tmp_path / "no")
