"""What is learnt of a voice: kept in its file, drawn for it alone, refused elsewhere; and its training."""

import base64
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import speechlike
from gpa import GPA, audio, config
from gpa.codec import bicodec
from gpa.codec.adaptation import LEVEL, RANGE, Adaptation, AdaptedDecoder, intonation
from gpa.codec.bicodec import ADAPTED, BiCodec
from gpa.codec.pitch import yin
from gpa.codec.voice import Voice
from gpa.data import prepare
from gpa.data.checks import Limits
from gpa.errors import CheckpointError, UsageError
from gpa.train import checkpoint
from gpa.train.families import speaker_adaptation as voices
from gpa.train.families.speaker_adaptation import VoiceFamily, VoiceRecipe
from gpa.train.loop import train

pytest.importorskip("datasets")

MINI = Path(__file__).parents[1] / "gpa" / "assets" / "gpa-mini"
KINDS = ("tiny", "mini")  # decoders of ISTFT frames, and of bands and pitch


@pytest.fixture(scope="module")
def models(tiny: Path) -> dict[str, GPA]:
    if not MINI.is_dir():
        pytest.skip("no shipped model")
    return {"tiny": GPA.from_pretrained(tiny, device="cpu"), "mini": GPA.from_pretrained(MINI, device="cpu")}


def module_of(codec: BiCodec, voice: Voice, seed: int = 0, rank: int = 2) -> AdaptedDecoder:
    """Changes of every kind, of a size that is heard and does not break."""
    torch.manual_seed(seed)
    module = AdaptedDecoder(codec.model, torch.tensor(voice.codes), rank)
    with torch.no_grad():
        module.vector += 0.3 * torch.randn_like(module.vector)
        for change in module.changed.values():
            change.b += 0.05 * torch.randn_like(change.b)
    return module


def learnt(codec: BiCodec, voice: Voice, seed: int = 0) -> Voice:
    return replace(voice, adaptation=module_of(codec, voice, seed).adaptation(codec.decoder_fingerprint()))


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapted_voice_is_drawn_as_it_was_learnt_and_kept_to_the_bit(
    models: dict[str, GPA], kind: str, tmp_path: Path
) -> None:
    model = models[kind]
    codec, plain = model.codec, next(iter(model.voices.values()))
    codes = np.arange(30) % codec.spec.codebook_size
    module = module_of(codec, plain)
    voice = replace(plain, adaptation=module.adaptation(codec.decoder_fingerprint()))
    made = codec.decode(codes, voice)
    with torch.inference_mode():
        wanted = codec.model.render(module(torch.from_numpy(codes)[None]))[0].numpy()
    assert np.abs(made - wanted).max() < 0.02 * np.abs(wanted).max()  # float16 files
    assert np.abs(made - codec.decode(codes, plain)).max() > 0.05 * np.abs(made).max()
    voice.save(tmp_path / "eve.json")
    again = Voice.load(tmp_path / "eve.json")
    assert again.adaptation == voice.adaptation
    assert np.array_equal(GPA.from_pretrained(model.path, device="cpu").codec.decode(codes, again), made)
    whole = codec.render(codec.frames(codes, voice))
    # What is rounded off a pitch adds up in the phase of the pulses.
    assert np.abs(codec.decode(codes, voice) - whole).max() < 1e-3 * np.abs(whole).max()


@pytest.mark.parametrize("kind", KINDS)
def test_other_voices_sound_as_before_to_the_bit(models: dict[str, GPA], kind: str) -> None:
    model = models[kind]
    codec, plain = model.codec, next(iter(model.voices.values()))
    codes, print_ = np.arange(12), codec.fingerprint()
    before = codec.decode(codes, plain)
    several = [learnt(codec, plain, seed) for seed in range(ADAPTED + 2)]
    made = [codec.decode(codes, voice) for voice in several]
    assert np.array_equal(codec.decode(codes, plain), before) and codec.fingerprint() == print_
    assert len({wav.tobytes() for wav in made}) == len(several)
    for voice, wav in zip(several, made, strict=True):  # also of those whose copy was given up
        assert np.array_equal(codec.decode(codes, voice), wav)
    assert len(codec._adapted) == ADAPTED


def test_an_adaptation_of_another_decoder_is_left_out_with_a_warning(
    models: dict[str, GPA], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["mini"]
    plain = model.voices["onyx"]
    voice = learnt(model.codec, plain)
    assert model.codec.checked(voice) is voice
    told: list[str] = []
    monkeypatch.setattr(bicodec.logger, "warning", lambda text, *what: told.append(text % what))
    assert voice.adaptation is not None
    strange = replace(voice, adaptation=replace(voice.adaptation, decoder="0" * 64))
    assert model.codec.checked(strange) == replace(plain, adaptation=None)
    assert len(told) == 1 and "another decoder's" in told[0] and "gpa finetune" in told[0]


def test_what_is_no_adaptation_or_does_not_fit_is_refused(models: dict[str, GPA]) -> None:
    mini, tiny = models["mini"], models["tiny"]
    voice = learnt(mini.codec, mini.voices["onyx"])
    assert voice.adaptation is not None
    good = voice.adaptation.to_dict()
    nan = Adaptation.of(torch.full((256,), math.nan), {}).to_dict()
    for change in (
        {"weights": "no base 64!"},
        {"weights": base64.b64encode(b"no tensors").decode()},
        {"weights": nan["weights"]},
        {"pitch": [RANGE[1] + 0.1, 0.0]},
        {"pitch": [1.0, LEVEL + 0.1]},
        {"pitch": [1.0]},
        {"weights": None},
    ):
        with pytest.raises(CheckpointError):
            Adaptation.from_dict({**good, **change}, "eve.json")
    for raw in (None, [], "x"):
        with pytest.raises(CheckpointError, match=r"eve\.json"):
            Adaptation.from_dict(raw, "eve.json")
    foreign = replace(tiny.voices["anna"], adaptation=voice.adaptation)
    with pytest.raises(CheckpointError, match="another codec's"):
        tiny.codec.decode([0, 1, 2], foreign)
    bent = replace(learnt(tiny.codec, tiny.voices["anna"]), name="anna")
    assert bent.adaptation is not None
    with pytest.raises(UsageError, match="takes no change of pitch"):
        tiny.codec.decode([0, 1, 2], replace(bent, adaptation=replace(bent.adaptation, shift=0.1)))


# Pitch ------------------------------------------------------------------------------------------------------


def test_level_and_range_of_pitch_are_found_and_bounded() -> None:
    ours = torch.linspace(-0.2, 0.4, 400)
    gain, shift = intonation(1.2 * ours + 0.3, ours)
    assert gain == pytest.approx(1.2, abs=2e-3) and shift == pytest.approx(0.3, abs=2e-3)
    octaves = torch.cat([1.2 * ours + 0.3, torch.full((60,), 3.0)])  # a tracker that errs now and then
    assert intonation(octaves, ours)[0] < 1.6 and intonation(ours, ours) == (1.0, 0.0)
    assert intonation(9 * ours + 5, ours) == (RANGE[1], LEVEL)
    few = intonation(1.2 * ours[::20] + 0.3, ours[::20])
    assert 1.0 < few[0] < 1.06 and 0 < few[1] < 0.08
    assert intonation(ours[:0], ours) == (1.0, 0.0)


def test_a_shift_of_pitch_is_heard_as_one(models: dict[str, GPA]) -> None:
    model = models["mini"]
    plain = model.voices["onyx"]
    assert (learnt_ := learnt(model.codec, plain).adaptation) is not None
    flat = replace(learnt_, weights=Adaptation.of(speaker(model, plain), {}).weights)
    codes = model.codec.semantic_tokens(MINI / "golden" / "audio_1.wav")
    heights = []
    for shift in (0.0, 0.25):
        wav = model.codec.decode(codes, replace(plain, adaptation=replace(flat, shift=shift)))
        f0, voiced = yin(torch.from_numpy(wav)[None], 320)
        heights.append(float(f0[voiced > 0].median()))
    assert heights[1] / heights[0] == pytest.approx(math.exp(0.25), rel=0.04)


def speaker(model: GPA, voice: Voice) -> torch.Tensor:
    return model.codec.model.speaker_encoder.decode(torch.tensor([voice.codes]))[0]


# Training ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(models: dict[str, GPA], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight "recordings": the codec's own sound in the voice onyx, and their ids."""
    folder, model = tmp_path_factory.mktemp("corpus"), models["mini"]
    source = model.codec.semantic_tokens(MINI / "golden" / "audio_1.wav")
    for n in range(8):
        wav = model.codec.decode(np.roll(source, 5 * n), model.voices["onyx"])
        audio.save(folder / f"{n}.wav", 0.5 * wav / np.abs(wav).max(), 16_000)
    return prepared(folder, 8, MINI)


def prepared(folder: Path, count: int, model: Path) -> Path:
    """A folder's clips as a manifest and ids, the last quarter held out."""
    rows = [
        {"id": str(n), "path": f"{n}.wav", "text": f"number {n} is spoken here.", "speaker": "o"}
        | {"split": "dev" if n >= 0.75 * count else "train", "licence": "CC0-1.0"}
        for n in range(count)
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    limits = Limits(seen_speakers=("dev",))
    prepare.prepare(prepare.Job(folder / "manifest.jsonl", folder / "tokens", model, limits))
    return folder


def recipe(corpus: Path, start: Voice, **train_: object) -> VoiceRecipe:
    start.save(corpus / f"{start.name}.json")
    data = {
        "tokens": str(corpus / "tokens"),
        "manifest": str(corpus / "manifest.jsonl"),
        "crops": 3,
        "crop_ids": 24,
    }
    tree = {"init": str(MINI), "kind": "voice", "data": {**data, "voice": str(corpus / f"{start.name}.json")}}
    steps = {"steps": 6, "eval_every": 3, "save_every": 3, "log_every": 3, "best": "eval/loss", "threads": 1}
    tree |= {"train": {**steps, **train_}, "optim": {"lr": 1e-2, "warmup": 1, "weight_decay": 0.0}}
    return config.build(VoiceRecipe, tree)


def run(made: VoiceRecipe, folder: Path) -> Voice:
    train(VoiceFamily(made), made.train, made.optim, folder, progress=False)
    return Voice.load(folder / "export" / voices.FILE)


@pytest.fixture(scope="module")
def few_crops() -> Iterator[None]:
    """Judged by three crops instead of two dozen."""
    patch = pytest.MonkeyPatch()
    patch.setattr(voices, "HELD_CROPS", 3)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def whole(
    models: dict[str, GPA], corpus: Path, few_crops: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[VoiceRecipe, Path, Voice]:
    """A run from the voice kore on recordings of onyx: its recipe, folder and result."""
    made = recipe(corpus, replace(models["mini"].voices["kore"], name="kore"))
    folder = tmp_path_factory.mktemp("whole")
    return made, folder, run(made, folder)


def test_a_voice_is_learnt_from_recordings(models: dict[str, GPA], whole: Any) -> None:
    made, folder, voice = whole
    family = VoiceFamily(made)
    before = family.unlearnt()
    assert voice.adaptation is not None and voice.timbre is not None
    assert voice.codes == models["mini"].voices["kore"].codes, "the language model knows the voice by these"
    best = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert best["eval/loss"] < 0.9 * before["loss"] and best["eval/pitch"] < before["pitch"]
    wav, ids = voices.recordings(made.data, 16_000)[1][0]  # never learnt from
    real = torch.from_numpy(np.pad(wav, (0, len(ids) * 640 - len(wav))))[None]
    distances = [
        family.distances.mel(torch.from_numpy(models["mini"].codec.decode(ids, v))[None], real).item()
        for v in (replace(voice, timbre=None), family.voice)
    ]
    assert distances[0] < distances[1]


def test_a_resumed_run_is_an_uninterrupted_one(corpus: Path, whole: Any, tmp_path: Path) -> None:
    made, _, voice = whole
    cut = replace(made, train=replace(made.train, max_seconds=1e-9))
    train(VoiceFamily(cut), cut.train, cut.optim, tmp_path, progress=False)
    assert run(made, tmp_path) == voice


def test_what_makes_held_out_clips_worse_is_not_kept(
    models: dict[str, GPA], corpus: Path, few_crops: None, tmp_path: Path
) -> None:
    made = recipe(corpus, replace(models["mini"].voices["onyx"], name="onyx"), steps=1, eval_every=1)
    made = replace(made, optim=replace(made.optim, lr=1.0, warmup=0))  # a step far too long
    voice = run(made, tmp_path)
    assert voice.adaptation is None and voice.timbre is not None


def test_the_best_of_held_out_losses_is_what_is_exported(whole: Any, tmp_path: Path) -> None:
    made, folder, _ = whole
    family = VoiceFamily(made)
    last = torch.load(folder / "checkpoints" / "step-00000006.pt", weights_only=True)["module"]
    module = family.build()
    module.load_state_dict(last)
    better = {name: t + 0.1 if name == "vector" else t for name, t in last.items()}
    (tmp_path / "checkpoints").mkdir()
    checkpoint.write(tmp_path / "checkpoints" / "best.pt", {"module": better})
    family.export(module, tmp_path / "export")
    again = Voice.load(tmp_path / "export" / voices.FILE)
    assert again.adaptation is not None
    assert torch.allclose(again.adaptation.vector, better["vector"], atol=5e-3)


def test_a_decoder_without_bands_learns_by_its_sound(tiny: Path, few_crops: None, tmp_path: Path) -> None:
    model = GPA.from_pretrained(tiny, device="cpu")
    for n in range(4):
        audio.save(tmp_path / f"{n}.wav", speechlike(2.0, seed=n), 16_000)
    prepared(tmp_path, 4, tiny)
    start = replace(model.voices["anna"], name="anna")
    made = replace(recipe(tmp_path, start), init=str(tiny))
    family = VoiceFamily(made)
    assert set(family.unlearnt()) == {"mel", "features", "loss"}
    voice = run(made, tmp_path / "run")
    assert voice.adaptation is not None and voice.timbre is None
    assert np.isfinite(model.codec.decode([1, 2, 3], voice)).all()
