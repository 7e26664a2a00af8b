"""`gpa bench speechop`: distances, the stated noise, every row on a tiny random model, resuming, orderings.

Judges are stand-ins, and so are packages that CI does not have.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conftest import RATE, speechlike
from gpa import audio
from gpa.cli import main
from gpa.data import effects
from gpa.errors import DataError, GenerationError, UsageError
from gpa.evals import report_file
from gpa.evals.judges import all_judges as judges
from gpa.evals.judges.base import FunctionJudge
from gpa.evals.measurement import Bench, Case
from gpa.evals.report import Item
from gpa.evals.restoration import distance, measure, orderings, restoration_table, systems
from gpa.evals.restoration.noisy_clips import NoisyClips
from gpa.evals.restoration.systems import Scene
from gpa.evals.results_cache import ResultsCache
from gpa.evals.wer import Edits
from tiny_speechop import tiny_speechop, write_tiny_speechop

TEXTS = ("the rain came down", "he was seen to leave", "a bird sang twice", "nobody knew why it was")
NOISES = [f"rain_{n}-A.opus" for n in range(20)]


# Distances --------------------------------------------------------------------------------------------------


def test_mcd_is_the_spectral_distance_in_db_and_knows_no_level(second: np.ndarray) -> None:
    mcd = distance.mel_cepstral_distortion
    assert mcd(second, second) == 0 and mcd(second, 0.25 * second) < 1e-6
    noise = np.random.default_rng(0).standard_normal(3 * RATE)
    f = np.fft.rfftfreq(len(noise), 1 / RATE)
    place = np.log1p(f / 700) / np.log1p(8000 / 700)  # 0 to 1 on the mel scale
    gain = 10 ** (6 * np.cos(3 * np.pi * place) / 20)  # a third cepstrum of 6 dB and nothing else
    coloured = np.fft.irfft(np.fft.rfft(noise) * gain, len(noise))
    assert mcd(noise, coloured) == pytest.approx(6 / np.sqrt(2), rel=0.05)
    with pytest.raises(UsageError, match="equal"):
        mcd(second, second[:-1])
    assert np.isfinite(mcd(second, np.zeros_like(second))) and distance.mel_cepstra(second[:9]).shape == (
        1,
        13,
    )


def test_ratings_are_measured_where_their_packages_are(
    monkeypatch: pytest.MonkeyPatch, second: np.ndarray
) -> None:
    errors = SimpleNamespace(RETURN_VALUES=1)
    pesq = SimpleNamespace(PesqError=errors, pesq=lambda rate, a, b, mode, on_error: -1 if b.any() else 2.5)
    monkeypatch.setitem(sys.modules, "pesq", pesq)
    monkeypatch.setitem(sys.modules, "pystoi", None)
    found, absent = distance.open_ratings()
    assert list(found) == ["mcd", "pesq"] and "pip install pystoi" in absent["stoi"]
    assert found["pesq"](second, second) is None  # no speech was found, says the package
    assert found["pesq"](second, 0 * second) == 2.5
    monkeypatch.setitem(sys.modules, "pystoi", SimpleNamespace(stoi=lambda a, b, rate: 0.9))
    assert distance.intelligibility()(second, second) == 0.9


# What is heard ----------------------------------------------------------------------------------------------


def write_noise(folder: Path, names: Sequence[str] = NOISES) -> Path:
    """Write a noise folder, its clips in WAV whatever their names say."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    listed = [{"path": name.replace(".opus", ".wav")} for name in names]
    for row in listed:
        audio.save(folder / row["path"], 0.1 * rng.standard_normal(RATE // 4), RATE)
    (folder / "manifest.json").write_text(json.dumps(listed))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out clips of two speakers, noise, two rooms; training clips and clips of other lengths beside."""
    root = tmp_path_factory.mktemp("data")
    write_noise(root / "noise")
    found = []
    for n, (text, speaker) in enumerate(zip(TEXTS, "aaab", strict=True)):
        found.append(
            {"id": f"d{n}", "speaker": speaker, "split": "dev", "text": text, "duration": 2.0 + n / 8}
        )
    found.append({**found[0], "id": "long", "duration": 9.0})
    found.append({**found[0], "id": "digits", "text": "слово"})
    found.append({**found[0], "id": "t0", "split": "train"})
    for seed, row in enumerate(found):
        row["path"] = f"{row['id']}.wav"
        audio.save(root / "speech" / row["path"], speechlike(float(row["duration"]), seed=seed), RATE)
    lines = "".join(json.dumps(row) + "\n" for row in found)
    (root / "speech/manifest.jsonl").write_text(lines, encoding="utf-8")
    for n in range(2):
        audio.save(root / "rooms" / f"{n}.wav", np.exp(-np.arange(800) / 90.0), RATE)
    return root


def test_noise_is_that_of_the_name_and_held_out(data: Path, tmp_path: Path, second: np.ndarray) -> None:
    degrade = NoisyClips(data / "noise", data / "rooms")
    assert degrade.names == ["rain_9-A.wav", "rain_19-A.wav"] and "simulated" in degrade.words()
    assert np.array_equal(degrade(second, "d0"), NoisyClips(data / "noise", data / "rooms")(second, "d0"))
    labels = [degrade.labels(f"clip {n}") for n in range(200)]
    assert len({one["noise"] for one in labels}) == 2
    assert all(0 <= float(one["snr_db"]) <= 10 for one in labels)
    assert 60 < sum(one["room"] == "none" for one in labels) < 140
    dry = next(f"clip {n}" for n, one in enumerate(labels) if one["room"] == "none")
    quiet = 0.1 * second  # never scaled down to full scale
    added = degrade(quiet, dry) - quiet
    ratio = 10 * np.log10(effects.power(quiet) / effects.power(added))
    assert ratio == pytest.approx(float(degrade.labels(dry)["snr_db"]), abs=0.06)
    assert NoisyClips(data / "noise", data / "rooms", seed=1).chain("d0") != degrade.chain("d0")
    assert NoisyClips(data / "noise", data / "rooms", snr_db=(5, 5)).labels("d0")["snr_db"] == "5.0"
    for n in range(10):
        audio.save(tmp_path / "rooms" / f"{n}.wav", np.exp(-np.arange(800) / 90.0), RATE)
    assert "measured" in NoisyClips(data / "noise", tmp_path / "rooms").words()


def test_other_takes_of_a_trained_noise_are_not_held_out(tmp_path: Path) -> None:
    takes = [*NOISES[:9], "rain_0-B.opus", *NOISES[10:]]
    assert NoisyClips(write_noise(tmp_path / "one", takes), tmp_path).names == ["rain_19-A.wav"]
    with pytest.raises(DataError, match="another take"):
        NoisyClips(write_noise(tmp_path / "two", [*takes[:19], "rain_1-C.opus"]), tmp_path)


def test_clips_are_of_all_speakers_in_turn(data: Path) -> None:
    manifest = Bench(data).manifest
    found = measure.choose(manifest, ["dev"], 0, 3)
    assert sorted(case.id for case in found) == ["d0", "d1", "d2", "d3"]
    assert {case.speaker for case in found[:2]} == {"a", "b"}
    assert measure.choose(manifest, ["dev"], 2, 3) == found[:2]
    assert len(measure.choose(manifest, ["dev"], 40, 3)) == 4
    with pytest.raises(UsageError, match="trained on"):
        measure.choose(manifest, ["train"], 2, 0)
    with pytest.raises(UsageError, match="2 to 8 s"):
        measure.choose([row for row in manifest if row["id"] == "long"], ["dev"], 2, 0)


# A whole run ------------------------------------------------------------------------------------------------


def heard(wav: np.ndarray) -> str:
    """A judge that hears more words in louder sound: all that matters is that it is a function of it."""
    return " ".join("the rain came down".split()[: 1 + int(20 * np.abs(wav).mean()) % 4])


def judged(**changed: Any) -> judges.Judges:
    voice = FunctionJudge("voice", lambda wav: np.array([1.0, float(np.abs(wav).mean())]))
    quality = FunctionJudge("quality", lambda wav: {"mos": 1.0 + float(np.abs(wav).max())})
    seats: dict[str, Any] = {"words": FunctionJudge("words", heard), "normalise": str.lower, "voice": voice}
    return judges.Judges(**{**seats, "quality": quality, "absent": {"phonemes": "no hama"}, **changed})


def set_up(data: Path, **changed: Any) -> Scene:
    """A scene of the tiny model; `changed` are its fields."""
    bench = Bench(data, judges=judged(), split="dev")
    degrade = NoisyClips(data / "noise", data / "rooms")
    ratings = {"mcd": distance.mel_cepstral_distortion}
    scene = Scene(bench, tiny_speechop(), lambda wav: "the rain", degrade, 2, ratings, {"pesq": "no pesq"})
    return replace(scene, **changed)


def run(scene: Scene, out: Path, n: int, sweep: int) -> tuple[measure.Outcome, dict[str, Any]]:
    cases = measure.choose(scene.bench.manifest, ["dev"], n, 0)
    fixed = measure.settings(scene, {"model_sha256": "tiny"}, ["dev"])
    names = systems.names([*systems.table_rows(scene), *systems.sweep_rows(scene)])
    return measure.run(scene, cases, sweep, ResultsCache(out, fixed, names)), fixed


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, measure.Outcome, str, Path]:
    """A run over all rows, spectral gating stood in for, with a sweep on one clip; and its table."""
    pytest.importorskip("jiwer")
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "noisereduce", SimpleNamespace(reduce_noise=lambda y, sr: 0.5 * y))
        scene = set_up(data)
        outcome, fixed = run(scene, out, 2, 1)
        _, text = measure.write(out, scene, outcome, fixed, {"command": ["gpa"]})
    return scene, outcome, text, out


def test_every_row_is_made_judged_and_rated(whole: tuple[Scene, measure.Outcome, str, Path]) -> None:
    scene, outcome, _, _ = whole
    assert {
        len(own) for name, own in outcome.found.items() if name in systems.names(systems.table_rows(scene))
    } == {2}
    assert {len(outcome.found[name]) for name in systems.names(systems.sweep_rows(scene))} == {1}
    assert not [item.error for own in outcome.found.values() for item in own if item.error]
    one = {name: own[0] for name, own in outcome.found.items()}
    counts = {name: item.values.get("evaluations") for name, item in one.items()}
    assert counts["alone"] == 6 and counts["base"] == 3 and counts["tc-avg"] == 6  # 2 steps and a last one
    assert counts["tc-cfg"] == counts["itc"] == counts["gamma-3"] and counts["tc-cfg"] > 3
    assert all(counts[row] == counts[f"{row}-filtered"] for row in ("alone", "tc-cfg", "itc"))
    assert all(one[f"{row}-filtered"].values["mcd"] != one[row].values["mcd"] for row in ("alone", "tc-cfg"))
    assert counts["usual"] == counts["alone"]
    assert counts["noisy"] is counts["codec"] is None and counts["steps-8"] > counts["tc-cfg"]
    assert "mcd" not in one["floor"].values and one["gating"].values["mcd"] == one["noisy"].values["mcd"]
    assert one["alone"].values.keys() >= {"mcd", "mos", "similarity", "to_recording"}
    assert one["transcript"].heard == "the rain" and one["itc"].seconds > one["transcript"].seconds
    assert one["itc-filtered"].seconds > one["transcript"].seconds
    assert "noise" in one["alone"].labels and "noise" not in one["codec"].labels


def test_the_usual_row_is_what_enhance_does_unless_told_otherwise(
    whole: tuple[Scene, measure.Outcome, str, Path],
) -> None:
    scene, _, text, _ = whole
    noisy = (speechlike(2.0) + 0.05 * np.random.default_rng(0).normal(size=32000)).astype(np.float32)
    (row,) = (row for row in systems.table_rows(scene) if row.name == systems.USUAL)
    made = row.make(scene, Case("a", "the rain"), noisy)
    expected = scene.op.enhance((noisy, 16000), steps=scene.steps, seed=scene.bench.seed)
    assert np.array_equal(made.wav, expected.wav)
    assert "clip by clip. gpa enhance: more in" in text


def test_clips_are_counted_against_the_noisy_ones() -> None:
    before = some("noisy", 2, 0.0, 4)
    after = [*some("usual", 3, 0.0, 1), *some("usual", 1, 0.0, 3)[1:], *some("usual", 2, 0.0, 5)[3:]]
    after[1].words = None  # nothing was heard
    assert restoration_table.beside(before, after) == (1, 1, 3)


def test_report_table_and_pictures(whole: tuple[Scene, measure.Outcome, str, Path]) -> None:
    scene, outcome, text, out = whole
    sealed = report_file.read(out)
    assert sealed["bench"] == "speechop" and sealed["not_measured"] == {
        "phonemes": "no hama",
        "pesq": "no pesq",
    }
    assert len(sealed["items"]["tc-cfg"]) == 2 and sealed["suites"]["noisy"]["values"]["mcd"]["value"] > 0
    same = next(one for one in sealed["orderings"] if "bit for bit" in one["text"])
    assert same["holds"] and same["clips"] == 2
    assert (out / "table.md").read_text(encoding="utf-8") == text + "\n"
    assert all((out / name).stat().st_size > 5000 for name in ("gamma.png", "steps.png"))
    lines = text.splitlines()
    assert lines[0].startswith("| row | clips (failed, empty) | WER %") and lines[2].startswith("| clean | 2")
    assert "not measured" in lines[4] and "TC-CFG 1.5 gold" in text and "held-out noises" in text
    assert len({line.count("|") for line in lines[:11]}) == 1


class Breaks:
    """A recogniser that is stopped from outside, or refuses."""

    def __init__(self, error: BaseException, after: int) -> None:
        self.error, self.left = error, after

    def __call__(self, wav: np.ndarray) -> str:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return "the rain"


def test_a_killed_run_goes_on_and_ends_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jiwer")
    monkeypatch.setitem(sys.modules, "noisereduce", None)
    with pytest.raises(KeyboardInterrupt):
        run(
            set_up(data, recogniser=Breaks(KeyboardInterrupt(), 2)), tmp_path / "a", 2, 0
        )  # in the second clip
    with (tmp_path / "a/alone.jsonl").open("a") as file:
        file.write('{"id": "half a li')
    again, fixed = run(set_up(data), tmp_path / "a", 2, 0)
    assert again.kept >= 8 and "pip install noisereduce" in again.skipped["spectral gating"]
    fresh, _ = run(set_up(data), tmp_path / "b", 2, 0)
    assert report_file.results_digest(fixed, again.found) == report_file.results_digest(fixed, fresh.found)
    with pytest.raises(UsageError, match="steps"):
        run(set_up(data, steps=3), tmp_path / "a", 2, 0)


def test_failures_are_counted(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jiwer")
    scene = set_up(data, recogniser=Breaks(GenerationError("nothing heard"), 0))

    def refuse(*args: Any, **more: Any) -> Any:
        raise GenerationError("not this")

    monkeypatch.setattr(scene.op, "compose", refuse)
    outcome, fixed = run(scene, tmp_path, 1, 0)
    (average,), (itc,), (text,) = (outcome.found[name] for name in ("tc-avg", "itc", "transcript"))
    assert average.heard is None and average.error == "GenerationError: not this"
    assert average.words.errors == average.words.length and "mcd" not in average.values
    assert text.heard is None and itc.heard is not None  # without a transcript it goes without
    sealed, shown = measure.write(tmp_path, scene, outcome, fixed, {})
    assert sealed["suites"]["tc-avg"]["failed"] == 1 and "| TC-Avg 0.5 | 1 (1, 0) |" in shown
    claims = {one["text"]: one for one in sealed["orderings"]}
    assert claims["MCD(alone) < MCD(TC-Avg)"]["outcome"] == "not measured"


# Orderings --------------------------------------------------------------------------------------------------


def some(name: str, errors: int, mcd: float, n: int = 20) -> list[Item]:
    found = [Item(f"{i}", "a b c d", name, values={"mcd": mcd + 0.01 * i, "mos": 3.0}) for i in range(n)]
    for item in found:
        item.words = Edits(errors, 4)
    return found


def test_orderings_hold_or_not_with_their_intervals() -> None:
    found = {
        "alone": some("alone", 2, 5.0),
        "tc-avg": some("tc-avg", 1, 6.0),
        "tc-cfg": some("tc-cfg", 0, 5.2),
        "itc": some("itc", 3, 5.0, 5),
        "alone-filtered": [replace(item, values={"mos": 3.2}) for item in some("alone-filtered", 1, 0.0)],
        "tc-cfg-filtered": some("tc-cfg-filtered", 1, 0.0),
        "itc-filtered": some("itc-filtered", 2, 0.0),
        "noisy": [replace(item, values={"mos": 2.7}) for item in some("noisy", 1, 0.0)],
    }
    said = {claim.text: claim for claim in orderings.claims(found)}
    first = said["WER(TC-CFG gold) < WER(TC-Avg)"]
    assert (first.holds, first.left, first.right, first.clips) == (True, 0.0, 25.0, 20)
    assert first.margin == (25.0, 25.0, 25.0) and first.outcome == "holds"
    assert said["MCD(TC-CFG gold) <= 1.05 MCD(alone)"].outcome == "holds"  # 5.295 against 5.350
    assert said["MCD(alone) < MCD(TC-Avg)"].margin == pytest.approx((1.0, 1.0, 1.0))
    assert said["WER(ITC) < WER(alone)"].outcome == "does not hold (few clips)"
    assert said["DNSMOS(noisy) + 0.4 <= DNSMOS(alone)"].outcome == "does not hold"
    assert said["DNSMOS(noisy) + 0.4 <= DNSMOS(alone, filtered)"].outcome == "holds"
    assert said["WER(TC-CFG gold, filtered) <= WER(ITC, filtered)"].outcome == "holds"
    assert said["WER(ITC, filtered) < WER(alone, filtered)"].outcome == "does not hold"
    assert said["WER(alone, filtered) <= WER(noisy)"].holds  # as many
    assert said["gamma 0 is alone, bit for bit"].outcome == "not measured"
    equal = {"tc-cfg": found["tc-cfg"], "itc": found["tc-cfg"]}
    assert {one.text: one for one in orderings.claims(equal)}["WER(TC-CFG gold) <= WER(ITC)"].holds
    assert len(orderings.claims(found, usual_share=0.5)) == len(said) + 8
    lines = orderings.table(list(said.values())).splitlines()
    assert "| 0.00 | 25.00 | +25.00 [+25.00, +25.00] | 20 | holds |" in lines[2]


# The command ------------------------------------------------------------------------------------------------


def test_the_command(
    data: Path,
    tiny: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("jiwer")
    for name in ("noisereduce", "pesq", "pystoi"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(judges, "require", lambda: None)
    monkeypatch.setattr(judges, "open_judges", lambda threads=1, without=(): judged())
    model = write_tiny_speechop(tmp_path)
    words = ["bench", "speechop", str(model), "--recogniser", str(tiny), "--data", str(data)]
    brief = ["-n", "1", "--steps", "2", "--out", str(tmp_path / "out"), "--save-wavs"]
    assert main.main([*words, *brief]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("| row |") and "| spectral gating | not measured: noisereduce" in out
    assert "Not measured: pesq (pesq (pip install pesq) is not installed" in out and "written to" in err
    assert len(list((tmp_path / "out/wavs/tc-cfg").glob("*.wav"))) == 1
    assert report_file.read(tmp_path / "out")["settings"]["model_sha256"]
    assert main.main([*words, *brief, "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["cost"]["items"] == 0 and "were there from before" in err
    for more, message in (
        (["-n", "-1"], "-n"),
        (["--steps", "0"], "--steps"),
        (["--snr", "9", "1"], "snr_db"),
    ):
        assert main.main([*words, *more]) == UsageError.exit_code
        assert message in capfd.readouterr().err
