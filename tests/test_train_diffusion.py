"""The SpeechOp family: what batches hold, what the loss counts, that it learns and resumes, its exports."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpa import config
from gpa.codec.kl import KLCodec, LatentConfig, LatentModel
from gpa.data import diffusion_rows as data
from gpa.data import feature_cache
from gpa.data.augment import DegradeArgs, Degrader
from gpa.data.diffusion_rows import DiffusionBatch, Example, Pairs, SpeechLatents, collate
from gpa.errors import CheckpointError, UsageError
from gpa.models.speechop import diffusion_speechop as diffusion
from gpa.models.speechop.configuration_speechop import SpeechOpConfig
from gpa.models.speechop.diffusion_speechop import Choice
from gpa.models.speechop.layers_speechop import CrossAttention
from gpa.models.speechop.modeling_speechop import SpeechOpModel
from gpa.text.letters import letters_of
from gpa.text.normaliser import normalise_text
from gpa.train import metrics
from gpa.train.families.base import Loss
from gpa.train.families.diffusion import DiffusionFamily, DiffusionRecipe
from gpa.train.loop import train
from training import LATENT, story, write_encoder, write_manifest, write_rows

STACK = {"layers": 1, "width": 16, "heads": 2, "ffn": 24, "dropout": 0.1}
MODEL: dict[str, Any] = {
    "dit": STACK,
    "encoder": STACK,
    "text": {**STACK, "kind": "bytes", "positions": "both"},
    "loss": {"normalise_peak": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a feature cache and a latent codec of random weights."""
    root = tmp_path_factory.mktemp("data")
    manifest, encoder = write_manifest(root), write_encoder(root / "encoder")
    feature_cache.main([str(manifest), "--encoder", str(encoder), "-o", str(root / "cache")])
    write_codec(root / "codec")
    return root


def write_codec(path: Path, seed: int = 0, **changes: Any) -> KLCodec:
    torch.manual_seed(seed)
    codec = KLCodec(LatentModel(config.build(LatentConfig, {**LATENT, **changes})))
    codec.save_pretrained(path)
    return codec


def tree_of(folder: Path, data: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    cut = {"batch_frames": 200, "crop_s": 0.8, "prompt_s": 0.6, "dev_clips": 1}
    tree = {
        "kind": "speechop",
        "data": {"cache": str(folder / "cache"), **cut, **(data or {})},
        "codec": str(folder / "codec"),
        "model": MODEL,
        "train": {"steps": 4, "save_every": 2, "eval_every": 2, "log_every": 1, "threads": 1, "ema": 0.5},
        "optim": {"name": "muon", "lr": 3e-3, "warmup": 2},
    }
    return {**tree, **changes}


def family(folder: Path, data: dict[str, Any] | None = None, **changes: Any) -> DiffusionFamily:
    return DiffusionFamily(config.build(DiffusionRecipe, tree_of(folder, data, **changes)))


def module_of(made: DiffusionFamily) -> SpeechOpModel:
    """The initial network, with nothing zero, so that every path shows in the output."""
    torch.manual_seed(0)
    module = made.build()
    assert isinstance(module, SpeechOpModel)
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


def loss_of(made: DiffusionFamily, module: SpeechOpModel, *batches: DiffusionBatch) -> Loss:
    with torch.no_grad():
        return next(made.losses(module, batches, 0))


def equal(a: DiffusionBatch, b: DiffusionBatch) -> bool:
    """Whether two batches have the same tensors in the same places."""
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)]
    return all(x is y or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)


# Batches ---------------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_its_number(folder: Path) -> None:
    first, second = family(folder), family(folder)
    with torch.autocast("cpu", torch.bfloat16):  # as in the loop, or outside it in a worker
        batch = first.batch(5)
    first.batch(0)
    again, other = second.batch(5), second.batch(6)
    assert len(batch) == len(again) > 1
    assert all(map(equal, batch, again)) and not all(map(equal, batch, other))


def test_numbers_of_chains_do_not_repeat(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = family(folder, {"share_tts": 0.0}), []
    example = made.pairs.example
    monkeypatch.setattr(
        made.pairs, "example", lambda task, i, n, rng: seen.append(n) or example(task, i, n, rng)
    )
    for step in range(3):
        made.batch(step)
    assert seen == list(range(3 * made.pairs_a_step)) and made.pairs_a_step == 10


def test_clean_latents_are_made_once_and_those_of_the_codec(folder: Path) -> None:
    codec = KLCodec.from_pretrained(folder / "codec")
    speech = SpeechLatents(folder / "cache", codec)
    (file,) = (folder / "cache").glob(f"latents-{codec.fingerprint()[:16]}.f16")
    stamp = file.stat().st_mtime_ns
    assert SpeechLatents(folder / "cache", codec).frames(1) == speech.frames(1)
    assert file.stat().st_mtime_ns == stamp
    wanted = codec.encode(torch.from_numpy(speech.cache.wav(1))[None])[0]
    torch.testing.assert_close(speech.clean(1), wanted, atol=2e-3, rtol=2e-3)
    assert torch.equal(speech.clean(1, 3, 9), speech.clean(1)[:, 3:9])
    np.testing.assert_array_equal(speech.wav(1, 3, 9), speech.wav(1)[3 * 640 : 9 * 640])


def test_tts_rows_are_whole_texted_clips(folder: Path) -> None:
    made = family(folder, {"share_tts": 1.0})
    (batch,) = made.batch(0)
    assert set(made.texts) == {0, 1, 2, 4} and made.texts[1] == "it's a test, yes!"
    assert batch.source is batch.prompt is batch.has_source is None
    lengths = sorted(batch.mask.sum(1).tolist())
    assert set(lengths) <= {made.speech.frames(i) for i in made.tts}
    assert not any(name.startswith("encoder") for name in trained(made))
    assert any(name.startswith("encoder") for name in trained(family(folder)))


def trained(made: DiffusionFamily) -> set[str]:
    module = made.build()
    chosen = {id(p) for p in made.parameters(module)["model"]}
    return {name for name, p in module.named_parameters() if id(p) in chosen}


def test_rows_lose_and_keep_what_was_chosen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nulls and clean segments of every row are those that `choose` drew for it."""
    made, drawn = family(folder, model={**MODEL, "drop": {"text": 0.5, "source": 0.5}}), []
    choose = diffusion.choose
    monkeypatch.setattr(diffusion, "choose", lambda *args: drawn.append(choose(*args)) or drawn[-1])
    for step in range(4):
        drawn.clear()
        rows = iter(drawn)
        for batch in made.batch(step):
            for n, choice in zip(range(len(batch.task)), rows):  # noqa: B905 (the rows go on)
                marked = batch.clean[n].nonzero().flatten().tolist()
                assert marked == list(range(choice.start, choice.stop))
                assert not (batch.clean[n] & ~batch.mask[n]).any()
                if made.config.tasks.names[batch.task[n]] == "tts":
                    assert batch.text_mask is not None and batch.text_mask[n].any() == (not choice.drop_text)
                else:
                    assert batch.text is None
                    has = batch.has_source is not None and bool(batch.has_source[n])
                    assert has == (not choice.drop_source)


def test_the_source_under_a_clean_segment_is_clean() -> None:
    sizes = config.build(SpeechOpConfig, {**MODEL, "latent": {"channels": 2}})
    rows = [Example("enhance", torch.randn(2, n), source=torch.randn(2, n)) for n in (6, 9)]
    choices = [Choice(False, False, 0, 4), Choice(False, True, 0, 0)]
    batch = collate(rows, choices, torch.zeros(2), np.random.default_rng(0), sizes)
    assert batch.source is not None and batch.has_source is not None
    assert torch.equal(batch.source[0, :, :4], rows[0].target[:, :4])
    assert torch.equal(batch.source[0, :, 4:6], rows[0].source[:, 4:])  # type: ignore[index]
    assert batch.has_source.tolist() == [True, False] and batch.text is batch.prompt is None
    assert not batch.x[0, :, 6:].any() and not batch.eps[0, :, 6:].any()


@pytest.mark.parametrize("task", data.PAIRED)
def test_pairs_are_latents_of_their_sounds(task: str, folder: Path) -> None:
    speech = SpeechLatents(folder / "cache", KLCodec.from_pretrained(folder / "codec"))
    pairs = Pairs(speech, [0, 1, 2, 3, 4], Degrader(DegradeArgs(), 0), crop=20, prompt=15)
    one, again, other = (pairs.example(task, 1, n, np.random.default_rng(3)) for n in (7, 7, 8))
    assert (
        one.source is not None
        and again.source is not None
        and one.target.shape == one.source.shape == (4, 20)
    )
    assert torch.equal(one.source, again.source) and torch.equal(one.target, again.target)
    assert (one.prompt is not None) == (task in data.PROMPTED) and one.text is None
    assert not torch.equal(one.source, other.source) or not torch.equal(one.target, other.target)
    begin = int(np.random.default_rng(3).integers(0, speech.frames(1) - 20 + 1))
    if task in ("enhance", "match"):  # of the others the sound may have been turned down
        clean = one.source if task == "match" else one.target
        assert torch.equal(clean, speech.clean(1, begin, begin + 20))
    if one.prompt is not None:
        assert 5 <= one.prompt.shape[1] <= 15


# Loss ------------------------------------------------------------------------------------------------------


def shortened(batch: DiffusionBatch, n: int) -> DiffusionBatch:
    """Row n alone, without padding."""
    frames = int(batch.mask[n].sum())
    alone: dict[str, Any] = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if value is not None:
            value = value[n : n + 1]
            if field.name in ("mask", "clean", "x", "eps", "source"):
                value = value[..., :frames]
        alone[field.name] = value
    if batch.text is not None and batch.text_mask is not None:
        count = max(1, int(batch.text_mask[n].sum()))
        alone |= {"text": alone["text"][:, :count], "text_mask": alone["text_mask"][:, :count]}
    if batch.prompt is not None and batch.prompt_mask is not None:
        count = int(batch.prompt_mask[n].sum())
        alone |= {"prompt": alone["prompt"][..., :count], "prompt_mask": alone["prompt_mask"][:, :count]}
    return DiffusionBatch(**alone)


def test_padding_does_not_count(folder: Path) -> None:
    """The loss of a batch is the mean of its rows alone, by their noisy frames."""
    made = family(folder, {"batch_frames": 300})
    module = module_of(made)
    for batch in made.batch(1):
        rows = [shortened(batch, n) for n in range(len(batch.task))]
        values = torch.stack([loss_of(made, module, row).value for row in rows])
        frames = batch.frames.sum(1)
        found = loss_of(made, module, batch)
        torch.testing.assert_close(found.value, (values * frames).sum() / frames.sum(), rtol=1e-4, atol=1e-6)
        assert found.metrics["positions"] == batch.mask.numel() >= found.metrics["tokens"]
    both = [loss_of(made, module, batch) for batch in made.batch(1)]
    counts = [sum(n for key, n in loss.metrics.items() if key.startswith("tokens/")) for loss in both]
    mean = sum(loss.value.item() * n for loss, n in zip(both, counts, strict=True)) / sum(counts)
    assert loss_of(made, module, *made.batch(1)).value.item() == pytest.approx(mean, rel=1e-4)


def test_clean_frames_do_not_count(folder: Path) -> None:
    made = family(folder, {"share_tts": 1.0})
    module = module_of(made)
    (batch,) = made.batch(0)
    eps = torch.where(batch.clean[:, None], torch.full_like(batch.eps, 9.0), batch.eps)
    assert batch.clean.any()
    same = loss_of(made, module, dataclasses.replace(batch, eps=eps)).value
    assert torch.equal(same, loss_of(made, module, batch).value)


def test_one_batch_can_be_overfitted(folder: Path, tmp_path: Path) -> None:
    made = family(
        folder, train={"steps": 60, "save_every": 60, "eval_every": 60, "log_every": 1, "threads": 1}
    )
    first = made.batch(0)

    class OneBatch(Some):
        def batch(self, step: int) -> Any:
            return first

    optim = dataclasses.replace(made.recipe.optim, lr=2e-2)
    train(OneBatch(made), made.recipe.train, optim, tmp_path, progress=False)  # type: ignore[arg-type]
    rows = metrics.read(tmp_path / "metrics.jsonl")
    for name in ("loss/tts", "loss/enhance"):
        values = [row[name] for row in rows if name in row]
        assert np.mean(values[-5:]) < 0.7 * values[0], name


# Alignment -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timed(folder: Path) -> Path:
    """A token folder of the same clips, a letter every two ids."""
    rows = [json.loads(line) for line in (folder / "cache" / "index.jsonl").read_text().splitlines()]
    made = []
    for row in rows:
        text = normalise_text(row.get("text") or "")
        times = (2 * np.arange(len(letters_of(text)))).tolist()
        found = {"text": text, "letters": times, "semantic": [0] * (2 * len(times) + 2), "global": [0]}
        made.append({"id": row["id"], "split": row["split"], **found})
    return write_rows(folder / "tokens", made)


def test_a_head_is_shown_the_letters_of_each_frame(folder: Path, timed: Path) -> None:
    made = family(folder, {"tokens": str(timed), "share_tts": 1.0}, alignment=0.5, alignment_layer=0)
    module = module_of(made)
    (batch,) = made.batch(0)
    assert batch.look is not None and batch.text_mask is not None and batch.look.shape[:2] == batch.mask.shape
    for n in range(len(batch.task)):
        count = int(batch.text_mask[n].sum())
        look = batch.look[n][batch.mask[n]]
        if count:
            assert (look[:, 0] < look[:, 1]).all() and look.max() <= count and (look[1:] >= look[:-1]).all()
        assert not batch.look[n][~batch.mask[n]].any() and (count or not look.any())
    with_it = loss_of(made, module, batch)
    without = loss_of(family(folder, {"share_tts": 1.0}), module, dataclasses.replace(batch, look=None))
    expected = without.value + 0.5 * with_it.metrics["alignment"]
    torch.testing.assert_close(with_it.value, expected, rtol=1e-5, atol=1e-6)
    assert with_it.metrics["alignment"] > 0


def test_a_taught_head_looks_where_it_is_told(folder: Path, timed: Path, tmp_path: Path) -> None:
    schedule = {"steps": 60, "save_every": 60, "eval_every": 60, "log_every": 1, "threads": 1}
    data = {"tokens": str(timed), "share_tts": 1.0}
    made = family(folder, data, alignment=1.0, alignment_layer=0, train=schedule)
    optim = dataclasses.replace(made.recipe.optim, lr=2e-2)
    train(made, made.recipe.train, optim, tmp_path, progress=False)
    found = [row["alignment"] for row in metrics.read(tmp_path / "metrics.jsonl") if "alignment" in row]
    assert np.mean(found[-5:]) < 0.7 * np.mean(found[:5])


def test_the_first_heads_scores_are_those_of_its_attention(folder: Path) -> None:
    torch.manual_seed(0)
    cross = CrossAttention(8, 2)
    x, place, text = torch.randn(1, 5, 8), torch.randn(1, 5, 8), torch.randn(1, 3, 8)
    mask = torch.tensor([[True, True, False, True]])
    keys = cross.keys(text, None)
    weights = cross.scores(x, place, keys, mask).softmax(-1)
    torch.nn.init.eye_(cross.out.weight)
    made = cross(x, place, keys, mask)[..., :4]
    torch.testing.assert_close(made, weights @ keys.value[:, 0])


def test_alignment_without_times_is_refused(folder: Path, timed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.tokens"):
        family(folder, alignment=0.5)
    with pytest.raises(UsageError, match="alignment_layer=9"):
        family(folder, {"tokens": str(timed)}, alignment=0.5, alignment_layer=9)
    write_rows(tmp_path, [{"id": "x", "split": "train", "text": "", "semantic": [1], "global": [0]}])
    with pytest.raises(UsageError, match="no letter times"):
        family(folder, {"tokens": str(tmp_path)}, alignment=0.5, alignment_layer=0)


# Runs ------------------------------------------------------------------------------------------------------


class Some:
    """A family, of which something is changed."""

    def __init__(self, family: DiffusionFamily) -> None:
        self.family = family

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)


class Interrupted(Exception):
    pass


class Fragile(Some):
    """It fails at its fourth step, as a power cut would."""

    def batch(self, step: int) -> Any:
        if step == 3:
            raise Interrupted
        return self.family.batch(step)


def test_resumed_is_uninterrupted(folder: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    made = family(folder, train={**tree_of(folder)["train"], "precision": "bf16"})
    args, optim = made.recipe.train, made.recipe.optim
    train(made, args, optim, whole, progress=False)
    with pytest.raises(Interrupted):
        train(Fragile(family(folder)), args, optim, cut, progress=False)  # type: ignore[arg-type]
    train(family(folder), args, optim, cut, progress=False)
    assert story(cut) == story(whole)
    held_out = {key for row in story(whole) for key in row if key.startswith("eval/")}
    assert held_out == {"eval/tts", "eval/tts_null", *(f"eval/{task}" for task in data.PAIRED)}
    files = [(run / "export" / "model.safetensors").read_bytes() for run in (whole, cut)]
    assert files[0] == files[1]


def test_held_out_losses_do_not_change_by_themselves(folder: Path) -> None:
    first, second = family(folder), family(folder)
    module = module_of(first)
    with torch.inference_mode():
        assert first.evaluate(module) == first.evaluate(module) == second.evaluate(module)


def test_an_export_is_what_it_was(folder: Path, tmp_path: Path) -> None:
    made = family(folder)
    module = module_of(made)
    made.export(module, tmp_path)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"speechop.json", "model.safetensors", "latent/config.json", "latent/model.safetensors"}
    assert SpeechOpConfig.read(tmp_path) == made.config
    codec = KLCodec.from_pretrained(tmp_path / "latent")
    assert codec.fingerprint() == made.codec.fingerprint() == made.config.about["codec"]
    again = family(folder, model={}, init=str(tmp_path))
    assert again.config == made.config
    state = again.build().state_dict()
    assert all(torch.equal(t, state[name]) for name, t in module.state_dict().items())


def test_stage_two_begins_its_audio_encoder_anew(folder: Path, tmp_path: Path) -> None:
    made = family(folder, {"share_tts": 1.0})
    module = module_of(made)
    made.export(module, tmp_path)
    wider = {"encoder": {"layers": 2, "width": 32}, "tasks": {"weights": {"enhance": 1.0}}}
    after = family(folder, model=wider, init=str(tmp_path), fresh_encoder=True)
    assert after.config.encoder.width == 32 and after.config.encoder.heads == 2 and after.tasks == ["enhance"]
    state, before = after.build().state_dict(), module.state_dict()
    assert torch.equal(state["blocks.0.ffn.inner.rise.weight"], before["blocks.0.ffn.inner.rise.weight"])
    assert state["encoder.into.weight"].shape == (32, 4)
    with pytest.raises(CheckpointError, match="weights do not fit the model"):
        family(folder, model=wider, init=str(tmp_path)).build()
    with pytest.raises(CheckpointError, match="weights do not fit the model"):
        family(folder, model={"dit": {"width": 32}}, init=str(tmp_path), fresh_encoder=True).build()
    for name, changes in (("more", {"channels": 5}), ("other", {"seed": 1})):
        write_codec(tmp_path / name, **changes)
        with pytest.raises(CheckpointError, match="latents of another codec"):
            family(folder, model={}, init=str(tmp_path), codec=str(tmp_path / name))


def test_a_run_may_go_on_with_an_ear(folder: Path, tmp_path: Path) -> None:
    """What is heard comes from the degraded sound; a network without an ASR encoder goes on as it was."""
    before = family(folder)
    module = module_of(before)
    before.export(module, tmp_path)
    heard = {"kind": "whisper", "weights": str(folder / "encoder"), "channels": 32}
    after = family(folder, model={"asr_features": heard}, init=str(tmp_path))
    assert (
        after.asr_features is not None
        and after.config.about["asr_features"] == after.asr_features.fingerprint()
    )
    for old, new in zip(before.batch(3), after.batch(3), strict=True):
        if old.source is None:
            assert new.source is None
            continue
        assert new.source is not None and new.source.shape[1] == 4 + 32
        assert torch.equal(new.source[:, :4], old.source) and new.source[:, 4:].any()
    rng = np.random.default_rng(0)
    one = after.pairs.example("enhance", 1, 3, rng)
    wav = before.pairs.degrader.enhance(after.speech.wav(1, *_crop(after)), 3).source
    assert one.source is not None
    assert torch.equal(one.source[4:], after.asr_features(torch.from_numpy(wav)[None])[0])
    went_on = after.build().eval()
    with torch.inference_mode():
        assert after.evaluate(went_on) == before.evaluate(module)
    after.export(went_on, tmp_path / "after")
    again = family(folder, model={}, init=str(tmp_path / "after"))
    assert again.config == after.config and again.build().state_dict().keys() == went_on.state_dict().keys()
    (tmp_path / "after" / "model.safetensors").unlink()
    before.export(module, tmp_path / "deaf")
    (tmp_path / "deaf" / "model.safetensors").rename(tmp_path / "after" / "model.safetensors")
    with pytest.raises(
        CheckpointError, match="encoder.listen.weight"
    ):  # it has an ASR encoder, its weights do not
        again.build()


def test_an_ear_may_change_with_the_audio_encoder_alone(folder: Path, tmp_path: Path) -> None:
    other = write_encoder(tmp_path / "other", seed=1)
    first, second = (
        {"kind": "whisper", "weights": str(path), "channels": 32} for path in (folder / "encoder", other)
    )
    made = family(folder, model={**MODEL, "asr_features": first})
    made.export(module_of(made), tmp_path / "first")
    init = {"init": str(tmp_path / "first")}
    with pytest.raises(CheckpointError, match="not the ASR encoder"):
        family(folder, model={"asr_features": second}, **init)
    anew = family(folder, model={"asr_features": second}, fresh_encoder=True, **init)
    assert (
        anew.asr_features is not None and anew.config.about["asr_features"] == anew.asr_features.fingerprint()
    )
    anew.build()
    deaf = {"kind": "none", "weights": "", "channels": 0}
    without = family(folder, model={"asr_features": deaf}, fresh_encoder=True, **init)
    assert without.asr_features is None and "asr_features" not in without.config.about


def _crop(made: DiffusionFamily) -> tuple[int, int]:
    """Begin and end of the crop of row 1 that a new generator of seed 0 draws."""
    begin = int(np.random.default_rng(0).integers(0, made.speech.frames(1) - made.crop + 1))
    return begin, begin + made.crop


@pytest.mark.parametrize(
    ("cut", "change", "message"),
    [
        ({}, {"model": {}}, "needs a `size`"),
        ({}, {"model": {"ditt": {}}}, r"model: unknown keys \['ditt'\]"),
        ({}, {"size": "huge"}, "toy, mini, small, paper"),
        ({}, {"size": "toy", "init": "x"}, "not from both"),
        ({}, {"fresh_encoder": True}, "needs an export"),
        ({}, {"model": {**MODEL, "latent": {"hop": 320}}}, "model.latent: {'hop': 320}"),
        ({}, {"model": {**MODEL, "text": {"kind": "byt5"}}}, "model.text.kind"),
        ({}, {"model": {**MODEL, "tasks": {"weights": {"denoise": 1.0}}}}, r"unknown tasks \['denoise'\]"),
        ({}, {"model": {**MODEL, "tasks": {"weights": {"tts": 1.0}}}}, r"no pairs are made for \['tts'\]"),
        ({}, {"model": {**MODEL, "tasks": {"weights": {"match": 0.0}}}}, "all 0"),
        ({"share_tts": 2.0}, {}, "data.share_tts=2.0"),
        ({"crop_s": 0.0}, {}, "data.crop_s=0.0"),
        ({"crop_s": 3.0, "batch_frames": 2000}, {}, "no clips hold data.crop_s"),
        ({"batch_frames": 20}, {}, "no room for a crop"),
        ({"batch_frames": 50}, {}, "do not fit a budget"),
        ({"longest_s": 0.1}, {}, "has a text and lasts at most data.longest_s=0.1"),
        ({"train": ["train-notext"]}, {}, "no clip of train-notext has a text"),
        ({"train": ["nothing"]}, {}, "no clips of nothing"),
    ],
)
def test_unusable_recipes_are_refused(
    cut: dict[str, Any], change: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        family(folder, cut, **change)


def test_one_voice_cannot_be_separated(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in (feature_cache.FEATURES, feature_cache.AUDIO):
        (cache / name).symlink_to(folder / "cache" / name)
    rows = [{**json.loads(line), "speaker": "a"} for line in (folder / "cache" / feature_cache.INDEX).open()]
    (cache / feature_cache.INDEX).write_text("".join(json.dumps(row) + "\n" for row in rows))
    only = {**MODEL, "tasks": {"weights": {"spk_sep": 1.0}}}
    with pytest.raises(UsageError, match="two speakers"):
        family(folder, {"cache": str(cache)}, model=only).batch(0)


def test_sizes_are_laid_under_the_recipe(folder: Path) -> None:
    made = family(folder, size="toy", model={"dit": {"dropout": 0.0}})
    toy = SpeechOpConfig.of_size("toy")
    assert made.config.dit == dataclasses.replace(toy.dit, dropout=0.0) and made.config.encoder == toy.encoder
    assert (made.config.latent.channels, made.config.latent.hop) == (4, 640)


def test_mini_and_its_codec_stay_small() -> None:
    with torch.device("meta"):
        network = SpeechOpModel(SpeechOpConfig.of_size("mini"))
    recipe = config.load_yaml(Path(__file__).parent.parent / "recipes" / "speechop" / "latent.yaml")
    codec = LatentModel(config.build(LatentConfig, recipe["model"]))
    numbers = [sum(t.numel() for t in module.state_dict().values()) for module in (network, codec)]
    assert 2 * sum(numbers) < 24e6
