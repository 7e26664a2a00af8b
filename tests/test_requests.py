"""Tasks in two halves: any engine may run between them, lists are one batch, and inference stays light."""

import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import speechlike
from gpa.cli.main import _parser
from gpa.codec.feature_encoder import StoredFeatures
from gpa.engine.request import Beams
from gpa.engine.scheduler import Engine
from gpa.errors import UsageError
from gpa.models.gpa import GPA
from gpa.models.gpa.alignment_gpa import evidence
from gpa.models.gpa.checkpoint_gpa import SHIPPED
from gpa.models.gpa.conversion_gpa import Conversion
from gpa.models.gpa.longform_gpa import LongForm
from gpa.models.gpa.options_gpa import ConversionOptions, SpeechOptions, TranscriptOptions
from gpa.models.gpa.outputs_gpa import Chunk, Speech
from gpa.models.gpa.recognition_gpa import Recognition
from gpa.models.gpa.utterance_gpa import Utterance

TEXTS = ["hello there", "how are you? " * 25, "the fox"]
CLIPS = [(speechlike(seconds, seed=n), 16_000) for n, seconds in enumerate((1.2, 0.8))]


@pytest.fixture(scope="module")
def model(tiny: Path) -> GPA:
    return GPA.from_pretrained(tiny, device="cpu")


def test_one_engine_runs_every_task_side_by_side(model: GPA) -> None:
    """What the methods give, by works of all kinds that join a running engine one after another."""
    processor, anna = model.processor, model.voices["anna"]
    engine = Engine(model.network)
    said: dict[object, list[Chunk]] = {}
    works: list[Utterance | Recognition | Conversion] = [
        Utterance(processor, engine, TEXTS[1], anna, {"seed": 3, "max_new_tokens": 9}),
        Utterance(processor, engine, TEXTS[0], anna, {"seed": 3, "gamma": 2.0, "max_new_tokens": 30}),
        Recognition(processor, engine, partial(evidence, model.network), {"max_new_tokens": 12, "seed": 3}),
        Conversion(processor, engine, anna, {"transcript": "hello there", "seed": 3, "gamma": 2.0}),
    ]

    def step() -> None:
        for progress in engine.step():
            for work in works:
                said.setdefault(work, []).extend(work.take(progress))  # type: ignore[arg-type]

    for work in works[2:]:
        step()
        assert isinstance(work, LongForm)
        work.feed(processor.hear(CLIPS[0], "it"))
        work.close()
    while engine.busy:
        step()
    made = [Speech.of(said[work]) for work in (works[0], works[1], works[3])]
    expected = [
        model.tts(TEXTS[1], "anna", seed=3, max_new_tokens=9),
        model.tts(TEXTS[0], "anna", seed=3, gamma=2.0, max_new_tokens=30),
        model.vc(CLIPS[0], "anna", seed=3, transcript="hello there", gamma=2.0),
    ]
    for one, other in zip(made, expected, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist() and one.finish_reason == other.finish_reason
    np.testing.assert_array_equal(made[0].wav, expected[0].wav)
    assert isinstance(works[2], Recognition)
    assert works[2].transcript.text == model.asr(CLIPS[0], seed=3, max_new_tokens=12).text != ""


def test_a_list_gives_a_list_of_what_each_gives(model: GPA) -> None:
    spoken = model.tts(TEXTS, voice="anna", seed=2, max_new_tokens=8)
    written = model.asr(CLIPS, max_new_tokens=8)
    converted = model.vc(CLIPS, "ben", seed=2, max_new_tokens=8)
    swapped = model.vc(CLIPS, "ben", mode="codec")
    for text, said in zip(TEXTS, spoken, strict=True):
        assert (model.tts(text, "anna", seed=2, max_new_tokens=8).wav == said.wav).all()
    for clip, transcript, lm, codec in zip(CLIPS, written, converted, swapped, strict=True):
        assert model.asr(clip, max_new_tokens=8).text == transcript.text
        assert (model.vc(clip, "ben", seed=2, max_new_tokens=8).wav == lm.wav).all()
        assert (model.vc(clip, "ben", mode="codec").wav == codec.wav).all()
        assert (lm.mode, codec.mode) == ("lm", "codec")
    assert model.tts([], "anna") == [] and model.asr([]) == []


def test_words_may_be_any_iterable(model: GPA, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each clip of a list is searched with all of them."""
    with pytest.raises(UsageError, match="no words.txt"):
        model.asr(CLIPS, words=iter(["Quillan"]))
    asked: list[list[str]] = []

    def search(width: int | None, words: Iterable[str]) -> Beams:
        asked.append(list(words))
        return Beams(1)

    monkeypatch.setattr(model.processor, "search", search)
    model.asr(CLIPS, words=iter(["Quillan"]), max_new_tokens=8)
    assert asked == [["Quillan"]] * 2


def test_a_feature_encoder_is_told_from_its_file_without_being_built() -> None:
    """The fingerprint that a checkpoint was made with is that of the network, built or not."""
    stored = StoredFeatures(SHIPPED / "gpa-mini" / "codec" / "features", "whisper")
    told, built = stored.state_dict(), stored.build()
    assert built.channels == stored.channels and told.keys() == built.state_dict().keys()
    assert all(torch.equal(tensor, told[name]) for name, tensor in built.state_dict().items())


def test_the_command_line_has_the_options_of_the_typed_groups() -> None:
    for command, group in (("tts", SpeechOptions), ("vc", ConversionOptions), ("asr", TranscriptOptions)):
        args = vars(_parser().parse_args([command, "x"]))
        shown = set(group.__annotations__) - {"word_times"}  # `gpa tts` writes sound; times are for programs
        assert shown <= set(args), command


LIGHT = """
import sys
from gpa.cli.main import main
code = main(["tts", "Hello.", "--voice", "anna", "--model", sys.argv[1], "-o", sys.argv[2]])
heavy = ("transformers", "scipy.signal", "sklearn", "librosa", "matplotlib", "torch._dynamo", "datasets")
print(code, [name for name in heavy if name in sys.modules])
"""


def test_speech_in_a_stored_voice_imports_no_model_code_of_others(tiny: Path, tmp_path: Path) -> None:
    """transformers alone took half of the seconds of a first sentence; the feature encoder is not built."""
    command = [sys.executable, "-c", LIGHT, str(tiny), str(tmp_path / "out.wav")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr
    assert (tmp_path / "out.wav").is_file()
