"""Letters by CTC: prefix scores beside all paths, a network in batches and alone, a search they decide."""

import itertools
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import networks
from conftest import speechlike
from gpa import GPA
from gpa.codec.ctc import FOLDER, CTCConfig, CTCNetwork
from gpa.engine.request import Beams, Request, Rules
from gpa.engine.scheduler import Engine
from gpa.errors import CheckpointError, UsageError
from gpa.models.gpa.recognition_gpa import spelt_clearly
from gpa.models.gpa.requests_gpa import asr_requests
from gpa.text import ctc_prefix
from gpa.text.ctc_prefix import CTCPrefix, log_likelihood
from gpa.text.letters import CLASSES, LETTERS, letter_targets, spelt_by
from gpa.text.spelling import Heard, SpellingSearch
from gpa.train.command import family_of
from training import ctc_tree, write_encoder, write_manifest

STOP = 55
SIZES = {"input_channels": 32, "dim": 16, "hidden": 32, "layers": 1}


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.logaddexp.reduce(x, -1, keepdims=True)


def said(*spans: tuple[str, int]) -> np.ndarray:
    """Log-probabilities of letters ("" is the blank) that are clearly heard for so many frames each."""
    path = [CLASSES.get(letter, 0) for letter, frames in spans for _ in range(frames)]
    scores = np.zeros((len(path), len(LETTERS) + 1))
    scores[np.arange(len(path)), path] = 12.0
    return log_softmax(scores)


def network(seed: int = 0) -> CTCNetwork:
    torch.manual_seed(seed)
    return CTCNetwork(CTCConfig.from_dict(SIZES)).eval()


# Prefix scores ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_prefix_scores_are_sums_over_all_paths(frames: int) -> None:
    """The slow twin: every path of three classes, what it spells, and all that begins alike."""
    rng = np.random.default_rng(frames)
    scores = rng.normal(size=(frames, len(LETTERS) + 1))
    scores[:, 3:] = -np.inf
    log_probs = log_softmax(scores)
    whole, begun = Counter[str](), Counter[str]()
    for path in itertools.product(range(3), repeat=frames):
        text = "".join(LETTERS[c - 1] for c, _ in itertools.groupby(path) if c)
        share = math.exp(sum(log_probs[t, c] for t, c in enumerate(path)))
        whole[text] += share
        for n in range(len(text) + 1):
            begun[text[:n]] += share
    prefix = CTCPrefix(log_probs)
    for text in begun:
        score = sum(prefix.log_prob(text[:n], letter) for n, letter in enumerate(text))
        assert score == pytest.approx(math.log(begun[text]), abs=1e-9)
        if text == text.rstrip() and whole[text]:
            assert score + prefix.end(text) == pytest.approx(math.log(whole[text]), abs=1e-9)
            assert prefix.whole(text) == pytest.approx(math.log(whole[text]), abs=1e-9)


def test_frames_far_behind_the_likeliest_add_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow twin sums over all frames, of a text that is said and of one that is not."""
    scores = 3 * np.random.default_rng(0).normal(size=(300, len(LETTERS) + 1))
    scores[np.arange(0, 300, 3), np.arange(0, 300, 3) % 27] += 12
    spelt = spelt_by(scores.argmax(-1).tolist())
    found = []
    for far in (ctc_prefix.FAR, np.inf):
        monkeypatch.setattr(ctc_prefix, "FAR", far)
        prefix = CTCPrefix(log_softmax(scores))
        texts = [text[:n] for text in (spelt, "not said") for n in range(len(text))]
        found.append([prefix.log_prob(text, letter) for text in texts for letter in LETTERS])
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-9)


def test_a_letter_twice_needs_a_blank_between() -> None:
    once, twice = CTCPrefix(said(("a", 4))), CTCPrefix(said(("a", 2), ("", 1), ("a", 1)))
    assert once.end("a") > -0.1 > -9 > once.log_prob("a", "a")
    assert twice.log_prob("a", "a") > -0.1 and twice.end("a") < -9


def test_sound_without_a_frame_ends_at_once() -> None:
    empty = CTCPrefix(np.zeros((0, len(LETTERS) + 1)))
    assert empty.end("") == 0.0 and empty.log_prob("", "a") == -math.inf


def test_a_text_of_any_length_has_a_likelihood_and_one_of_other_letters_has_none() -> None:
    text = "ab " * 400
    heard = said(*((letter, 1) for letter in text.strip()))
    assert log_likelihood(heard, text) == pytest.approx(0.0, abs=2)
    assert log_likelihood(heard, "Привет!") is None


def test_a_space_at_the_end_costs_what_it_is_not() -> None:
    prefix = CTCPrefix(said(("a", 2), ("", 2)))
    assert prefix.log_prob("a", " ") + prefix.end("a ") == pytest.approx(prefix.end("a"))


# As a prior ------------------------------------------------------------------------------------------------


def test_letters_are_weighed_beside_another_prior() -> None:
    """Case and hyphens are CTC's spaces and letters; spaces count once; what it has no class for is free."""
    letters = said(("a", 2), (" ", 1), ("b", 2))
    ctc = CTCPrefix(letters)
    pieces = {1: "A", 2: "-B", 3: "7", 4: "  "}
    heard = Heard(letters, 2.0, pieces, lambda state, i: (0.5, state + str(i)))
    first, state = heard("", 1)
    assert first == pytest.approx(0.5 + 2 * ctc.log_prob("", "a")) and state == "1\na"
    second, state = heard(state, 2)
    assert second == pytest.approx(0.5 + 2 * (ctc.log_prob("a", " ") + ctc.log_prob("a ", "b")))
    assert heard(state, 3) == (0.5, "123\na b")
    assert heard("", 4) == (0.5, "4\n")  # a text may begin with one
    assert heard("\na ", 4)[0] == heard("4\n", 4)[0] == -math.inf  # or a search would write spaces for ever
    assert heard(state, 99)[0] == pytest.approx(0.5 + 2 * ctc.end("a b"))
    assert Heard(letters, 1.0, pieces, None)("", 1)[0] == pytest.approx(ctc.log_prob("", "a"))


@pytest.mark.parametrize("ctc", [-1.0, math.nan])
def test_a_weight_is_a_number_of_at_least_nothing(ctc: float) -> None:
    with pytest.raises(UsageError, match="finite weights"):
        SpellingSearch(4, ctc=ctc)


def test_a_search_writes_what_is_clearly_heard() -> None:
    """Beside a random language model clear letters win; with a weight of nothing they change nothing."""
    pieces = {10: "a", 11: "b", 12: " "}
    rules = Rules(max_new=8, stop=frozenset({STOP}), legal=(range(10, 13), range(STOP, STOP + 1)))
    letters = said(("b", 2), ("a", 1), (" ", 1), ("a", 1), ("", 1), ("a", 1))

    def searched(prior: Heard | None) -> list[int]:
        return Engine(networks.network()).generate([Request([1, 2, 3], rules, beams=Beams(4, prior))])[0].ids

    assert searched(Heard(letters, 5.0, pieces, None)) == [11, 10, 12, 10, 10, STOP]
    assert searched(Heard(letters, 0.0, pieces, None)) == searched(None) != [11, 10, 12, 10, 10, STOP]


def test_recognition_weighs_letters_where_the_checkpoint_says_so(tiny: Path) -> None:
    """Those of the codec, part by part; greedy recognition and a codec without a network have none."""
    model = GPA.from_pretrained(tiny, device="cpu")
    processor, part = model.processor, speechlike(1.6)
    processor.config = replace(model.config, beams=SpellingSearch(4, ctc=0.5))

    def prior(**options: int) -> object:
        read = model.codec.codes_and_letters((part, 16_000))
        beams = asr_requests(processor, options)(part, 0, *read).beams  # type: ignore[arg-type]
        return beams.prior if beams else None

    assert prior() is None
    model.codec.ctc = network()  # type: ignore[attr-defined]
    heard = prior()
    assert isinstance(heard, Heard) and heard.weight == 0.5
    _, letters = model.codec.codes_and_letters((part, 16_000))
    assert letters is not None and heard.ctc.end("") == pytest.approx(letters[:, 0].sum(), abs=1e-3)
    assert prior(beams=1) is None
    processor.config = replace(processor.config, beams=SpellingSearch(4))
    assert prior() is None


def test_sound_without_letters_is_no_speech(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches with too few letters are skipped and not asked for; others are surely speech."""
    model = GPA.from_pretrained(tiny, device="cpu")
    clip = (speechlike(1.6), 16_000)
    few, many = np.log(0.9 * np.exp(said(("a", 2), ("", 38))) + 0.1 / 29), said(*((c, 2) for c in "ab" * 10))
    model.processor.config = replace(model.config, logprob_threshold=0.0, letters_threshold=0.5)
    assert model.asr(clip).text == ""  # without letters the other threshold counts
    codes = model.codec.codes(clip)
    monkeypatch.setattr(model.codec, "codes_and_letters", lambda audio: (codes, few))
    monkeypatch.setattr(model.processor, "build", lambda *a, **k: pytest.fail("was asked for"))
    silent = model.asr(clip)
    assert silent.text == "" and silent.skipped == pytest.approx(1.6, abs=0.1)
    monkeypatch.undo()
    monkeypatch.setattr(model.codec, "codes_and_letters", lambda audio: (codes, many))
    (segment,) = model.asr(clip).segments
    assert segment.no_speech_prob == pytest.approx(1 / (1 + math.exp(20 / 1.6 - 0.5)), rel=0.2)
    assert (
        spelt_clearly(many, 1.6) > 12 > 1 > spelt_clearly(few, 1.6) > spelt_clearly(few[2:], 1.0) == -math.inf
    )


# The network -----------------------------------------------------------------------------------------------


def test_a_codec_keeps_its_network(tiny: Path, tmp_path: Path) -> None:
    """Saved and loaded with the codec, in its precision; ids and fingerprint are the same without it."""
    model = GPA.from_pretrained(tiny, device="cpu")
    clip = (speechlike(1.3), 16_000)
    assert model.codec.codes_and_letters(clip)[1] is None
    before, codes = model.codec.fingerprint(), model.codec.codes(clip)
    model.codec.ctc = network()
    out = model.save_pretrained(tmp_path / "out", codec_dtype=torch.float32)
    again = GPA.from_pretrained(out, device="cpu").codec
    assert again.fingerprint() == before and np.array_equal(again.codes(clip), codes)
    read, found = again.codes_and_letters(clip)
    assert np.array_equal(read, codes)
    assert found.shape == (33, 29) and np.allclose(np.exp(found).sum(1), 1, atol=1e-4)
    assert np.array_equal(found, model.codec.codes_and_letters(clip)[1])
    assert not (out / "golden").exists()  # what it writes down is no longer what was recorded


def test_a_checkpoint_notices_another_network_of_the_same_sizes(tiny: Path, tmp_path: Path) -> None:
    """Exchanged, taken away, or come without being recorded: its letters would be other ones."""
    model = GPA.from_pretrained(tiny, device="cpu")
    bare = model.save_pretrained(tmp_path / "bare")
    model.codec.ctc = network()
    out = model.save_pretrained(tmp_path / "out")
    GPA.from_pretrained(out, device="cpu")
    network(seed=1).save_pretrained(out / "codec" / FOLDER)
    with pytest.raises(CheckpointError, match="the ctc is not the one"):
        GPA.from_pretrained(out, device="cpu")
    shutil.move(out / "codec" / FOLDER, bare / "codec" / FOLDER)
    for folder, message in ((out, "restore the original ctc"), (bare, "no fingerprint of ctc")):
        with pytest.raises(CheckpointError, match=message):
            GPA.from_pretrained(folder, device="cpu")


def test_a_folder_of_another_network_is_refused(tmp_path: Path) -> None:
    network().save_pretrained(tmp_path / FOLDER)
    text = (tmp_path / FOLDER / "config.json").read_text()
    (tmp_path / FOLDER / "config.json").write_text(text.replace('"dim": 16', '"dim": 24'))
    with pytest.raises(CheckpointError, match="backbone"):
        CTCNetwork.from_pretrained(tmp_path / FOLDER)
    (tmp_path / FOLDER / "config.json").write_text('{"model_type": "ctc", "width": 3}')
    with pytest.raises(CheckpointError, match="width"):
        CTCNetwork.from_pretrained(tmp_path / FOLDER)


def test_padding_and_company_change_no_letter(tmp_path: Path) -> None:
    """A clip among longer ones has the letters that it has alone, standardised padding being nothing."""
    from gpa.data import feature_cache

    manifest, encoder = write_manifest(tmp_path), write_encoder(tmp_path / "encoder")
    feature_cache.main([str(manifest), "--encoder", str(encoder), "-o", str(tmp_path / "cache")])
    tree = ctc_tree(tmp_path / "cache")
    tree["data"] |= {"masks": 0, "mask_channels": 0.0, "train": ["train"]}
    family, _ = family_of(tree)
    module = family.build().eval()
    together = family._collate(family.rows)
    found, frames = family._log_probs(module, together)
    for n, row in enumerate(family.rows):
        alone, _ = family._log_probs(module, family._collate([row]))
        kept = int(frames[n])
        assert torch.allclose(found[n, : kept - 13], alone[0, : kept - 13], atol=1e-4)


def test_clips_without_letters_are_left_out_and_machines_are_read(tmp_path: Path) -> None:
    from gpa.data import feature_cache

    manifest, encoder = write_manifest(tmp_path), write_encoder(tmp_path / "encoder")
    feature_cache.main([str(manifest), "--encoder", str(encoder), "-o", str(tmp_path / "cache")])
    family, _ = family_of(ctc_tree(tmp_path / "cache"))
    assert [family.cache.rows[i]["id"] for i in family.rows] == ["0", "1", "2", "4"]
    index = tmp_path / "cache" / "index.jsonl"
    index.write_text(index.read_text().replace('"text": ""', '"text": "", "heard": "we shook"'))
    tree = ctc_tree(tmp_path / "cache")
    tree["data"]["machine_text"] = "heard"
    family, _ = family_of(tree)
    assert family.targets[3] == letter_targets("we shook") and 3 in family.rows


def test_training_goes_on_from_an_export(tmp_path: Path) -> None:
    """Its sizes, weights and scaling are kept, whatever the clips; sizes beside it would be ignored."""
    from gpa.data import feature_cache

    manifest, encoder = write_manifest(tmp_path), write_encoder(tmp_path / "encoder")
    feature_cache.main([str(manifest), "--encoder", str(encoder), "-o", str(tmp_path / "cache")])
    tree = ctc_tree(tmp_path / "cache")
    before = network()
    before.feature_mean += 3.0
    before.save_pretrained(tmp_path / "export")
    for wrong, why in (
        ({"init": str(tmp_path / "export")}, "add model={}"),
        ({"model": {}}, "sizes in `model`"),
    ):
        with pytest.raises(UsageError, match=why):
            family_of({**tree, **wrong})
    family, _ = family_of({**tree, "model": {}, "init": str(tmp_path / "export")})
    module = family.build()
    assert module.training and all(p.requires_grad for p in module.parameters())
    after = module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.state_dict().items())


def test_paths_are_spelt() -> None:
    path = [0, *map(CLASSES.get, " hh"), 0, *map(CLASSES.get, "e  lll"), 0, *map(CLASSES.get, "lo ")]
    assert spelt_by(path) == "he llo"  # type: ignore[arg-type]
