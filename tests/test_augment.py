"""Chains and pairs: the same for the same number, what they say is what was done, every task's parts fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import speechlike
from gpa import audio
from gpa.data import effects
from gpa.data.augment import ACOUSTICS, ORDER, DegradeArgs, Degrader, Step, load_noise
from gpa.errors import DataError, UsageError

ALL = dict.fromkeys(ORDER, 1.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Twelve noises with a manifest, and two rooms, one of them recorded at 48 kHz."""
    root, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for n in range(12):
        audio.save(
            root / "noise" / f"{n}.wav", 0.1 * rng.standard_normal(5000 + 1000 * n).clip(-3, 3), 16_000
        )
    rows = [{"path": f"{n}.wav", "source": "test"} for n in range(12)]
    (root / "noise" / "manifest.json").write_text(json.dumps(rows))
    for name, rate in (("a", 16_000), ("b", 48_000)):
        audio.save(root / "rooms" / f"{name}.wav", 0.9 * effects.room(rng, 0.2, 3.0, rate), rate)
    return {"noise": str(root / "noise"), "rooms": str(root / "rooms")}


def degrader(seed: int = 0, **changes: Any) -> Degrader:
    return Degrader(DegradeArgs(**changes), seed)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return speechlike(0.8)


def test_a_number_is_a_chain(folders: dict[str, str], speech: np.ndarray) -> None:
    one, two = (degrader(**folders) for _ in range(2))
    later = [two.enhance(speech, n) for n in (4, 3, 2, 1, 0)][::-1]  # in whatever order
    for n, pair in enumerate(later):
        again = one.enhance(speech, n)
        assert np.array_equal(pair.source, again.source) and pair.steps == again.steps
    assert len({json.dumps([tuple(s) for s in p.steps]) for p in later}) == 5
    assert degrader(1, **folders).chain(0) != one.chain(0)


def test_what_was_done_is_said_and_can_be_done_again(folders: dict[str, str], speech: np.ndarray) -> None:
    maker = degrader(chances=ALL, **folders)
    pair = maker.enhance(speech, 7)
    assert [step.name for step in pair.steps] == list(ORDER)
    stored = json.loads(json.dumps([[s.name, dict(s.settings)] for s in pair.steps]))
    assert np.array_equal(maker.apply(speech, tuple(Step(*s) for s in stored)), pair.source)


@pytest.mark.parametrize("number", range(12))
def test_whatever_is_drawn_length_level_and_numbers_stay_sane(
    number: int, folders: dict[str, str], speech: np.ndarray
) -> None:
    maker = Degrader(DegradeArgs(chances=ALL, **folders), 5, speech=lambda rng, n: np.resize(speech, n))
    for wav in (speech, np.zeros(7000, np.float32), speech[:700]):
        pair = maker.enhance(wav, number)
        assert pair.source.shape == wav.shape and pair.source.dtype == np.float32
        assert np.isfinite(pair.source).all() and np.abs(pair.source).max() <= 1
        assert np.array_equal(pair.target, wav)


def test_chances_and_order_are_kept() -> None:
    none = degrader(chances={})
    assert all(none.chain(n) == () for n in range(20))
    some = degrader(order=("drop", "noise"), chances={"noise": 1.0, "drop": 0.3, "eq": 1.0})
    chains = [[s.name for s in some.chain(n)] for n in range(400)]
    assert all(c in (["noise"], ["drop", "noise"]) for c in chains)
    assert np.mean([len(c) == 2 for c in chains]) == pytest.approx(0.3, abs=0.07)
    levels = [s.settings["snr_db"] for n in range(200) for s in some.chain(n) if s.name == "noise"]
    assert -10 <= min(levels) < -5 and 25 < max(levels) <= 30


@pytest.mark.parametrize("number", range(6))
def test_noise_is_as_loud_as_it_says(number: int, folders: dict[str, str], speech: np.ndarray) -> None:
    maker = Degrader(DegradeArgs(simulated=0.3, **folders), 0, speech=lambda rng, n: speechlike(n / 16_000))
    step = maker._noise_step(number)
    added = maker.background(speech, step.settings)
    ratio = 10 * np.log10(effects.power(speech) / effects.power(added))
    assert ratio == pytest.approx(step.settings["snr_db"], abs=0.05)


def test_foreground_and_background_make_the_mixture(folders: dict[str, str], speech: np.ndarray) -> None:
    maker = degrader(snr_db=(-10.0, 0.0), **folders)
    for n in range(5):
        front, back = (maker.isolate(speech, n, background=b) for b in (False, True))
        assert (front.task, back.task) == ("iso_fg", "iso_bg")
        assert np.array_equal(front.source, back.source)
        np.testing.assert_allclose(front.target + back.target, front.source, atol=1e-6)
        assert effects.power(back.target) >= 0.99 * effects.power(front.target)


def test_two_speakers_are_mixed_at_their_ratio(speech: np.ndarray) -> None:
    other, voice = speechlike(0.5, seed=9), speechlike(0.3, seed=2)
    maker = degrader(chances={}, overlap_db=(-3.0, 4.0))
    for n in range(5):
        pair = maker.extract(speech, other, voice, n)
        (step,) = pair.steps
        ratio = 10 * np.log10(effects.power(pair.target) / effects.power(pair.source - pair.target))
        assert ratio == pytest.approx(step.settings["ratio_db"], abs=0.01) and -3 <= ratio <= 4
        assert pair.prompt is not None and np.array_equal(pair.prompt, voice) and pair.task == "spk_sep"
    noisy = degrader(chances={"noise": 1.0}).extract(speech, other, voice, 0)
    assert [s.name for s in noisy.steps] == ["overlap", "noise"]


def test_matching_pairs_share_their_acoustics(folders: dict[str, str], speech: np.ndarray) -> None:
    maker = degrader(chances=ALL, **folders)
    example = speechlike(0.6, seed=4)
    pair = maker.match(speech, example, 3)
    assert [step.name for step in pair.steps] == list(ACOUSTICS)
    assert np.array_equal(pair.source, speech) and np.array_equal(
        pair.target, maker.apply(speech, pair.steps)
    )
    assert pair.prompt is not None and pair.prompt.shape == example.shape
    assert not np.array_equal(pair.prompt, maker.apply(example, pair.steps)), "another stretch of the noise"


def test_held_out_noises_are_never_trained_on(folders: dict[str, str]) -> None:
    train, held = (Degrader(DegradeArgs(**folders), 0, held_out=h) for h in (False, True))
    lengths = [{len(n) for n in c.noises} for c in (train, held)]
    assert len(lengths[0]) == 11 and lengths[1] == {5000 + 1000 * 9}
    assert len(train.rooms) == len(held.rooms) == 2  # too few to share out
    assert all(n.dtype == np.int16 for n in load_noise(folders["noise"]))


def test_wrong_settings_and_folders_are_named(tmp_path: Path) -> None:
    for change, message in [
        ({"order": ("echo",)}, r"unknown degradations \['echo'\]"),
        ({"chances": {"noises": 0.5}}, r"unknown degradations \['noises'\]"),
        ({"chances": {"noise": 1.5}}, "between 0 and 1"),
        ({"snr_db": (5.0, -5.0)}, "snr_db"),
        ({"t60": (0.1,)}, "t60"),
    ]:
        with pytest.raises(UsageError, match=message):
            DegradeArgs(**change)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="manifest.json: no such file"):
        degrader(noise=str(tmp_path))
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match="lists no clips"):
        degrader(noise=str(tmp_path))
    with pytest.raises(DataError, match="no impulse responses"):
        degrader(rooms=str(tmp_path))
