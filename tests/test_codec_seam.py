"""The codec seam: a codec defined here is prepared, trained on, generates and is saved.

The codec: two codebooks of 16 levels for the loudness of frames, coarse and fine; its sound is a buzz.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import speechlike
from gpa import GPA, audio, config
from gpa.codec import KINDS, load_codec
from gpa.codec.base import AudioTokens, CodecSpec, TokenCodec
from gpa.codec.voice import Voice
from gpa.data.prepare import Job, prepare
from gpa.data.token_folder import TokenSet
from gpa.errors import CheckpointError
from gpa.models.gpa.verify_gpa import verify
from gpa.train.families.lm import LMFamily, LMRecipe

ROOT = Path(__file__).resolve().parent.parent
LM = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1},
    **{"head_dim": 16, "intermediate_size": 48, "max_position_embeddings": 4096, "tie_word_embeddings": True},
}


class Buzz(TokenCodec):
    """A codec in as few lines as the contract allows."""

    def __init__(self, pitch: int) -> None:
        self.pitch = pitch

    @property
    def spec(self) -> CodecSpec:
        return CodecSpec("buzz", 16000, 800, n_codebooks=2, codebook_size=16, context=(0, 0))

    def encode(self, audio_: Any, *, rate: int | None = None) -> AudioTokens:
        wav = audio.load(audio_, 16000, rate=rate)
        frames = np.pad(wav, (0, -len(wav) % 800)).reshape(-1, 800)
        level = (255 * np.abs(frames).max(1).clip(0, 1)).astype(np.int64)
        return AudioTokens(np.stack([level // 16, level % 16]))

    def decode(self, tokens: AudioTokens, voice: Voice | None = None) -> np.ndarray:
        level = (tokens.codes[0] * 16 + tokens.codes[1]) / 255
        buzz = np.sign(np.sin(2 * np.pi * self.pitch * np.arange(800) / 16000))
        return (level[:, None] * buzz).reshape(-1).astype(np.float32)

    def fingerprint(self) -> str:
        return hashlib.sha256(str(self.pitch).encode()).hexdigest()

    def save_pretrained(self, path: Any, dtype: Any = None) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "config.json").write_text(json.dumps({"model_type": "buzz", "pitch": self.pitch}))


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    KINDS["buzz"] = lambda path, options: Buzz(json.loads((path / "config.json").read_text())["pitch"])
    yield
    del KINDS["buzz"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two clips, prepared for the codec, and a model that took one step on it."""
    folder = tmp_path_factory.mktemp("seam")
    for n, text in enumerate(("hello there", "good morning")):
        clip = folder / "corpus" / "ab"[n] / f"{n}.wav"
        clip.parent.mkdir(parents=True)
        audio.save(clip, speechlike(1.0, seed=n), 16000)
        clip.with_suffix(".txt").write_text(text, encoding="utf-8")
    Buzz(100).save_pretrained(folder / "buzz")
    prepare(Job(folder / "corpus", folder / "tokens", "", codec=folder / "buzz", licence="CC0-1.0"))
    data = {"tokens": str(folder / "tokens"), "max_ids": 2000}
    tree = {"kind": "gpa", "data": data, "model": LM, "weights": {"alignment": 0.0}}
    family = LMFamily(config.build(LMRecipe, tree, "recipe"))
    torch.manual_seed(0)
    module = family.build()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    (loss,) = family.losses(module, family.batch(0), 0)
    loss.value.backward()
    optimizer.step()
    (after,) = family.losses(module, family.batch(0), 0)
    assert after.value < loss.value
    family.export(module.eval(), folder / "run" / "export")
    return folder


def test_rows_are_the_codec_s(made: Path) -> None:
    rows = list(TokenSet.open(made / "tokens"))
    codec = load_codec(made / "buzz")
    for row in rows:
        wav = made / "corpus" / f"{row['id']}.wav"
        np.testing.assert_array_equal(codec.spec.pattern.parse(row["semantic"]), codec.encode(wav).codes)


def test_it_speaks_hears_converts_and_verifies(made: Path, tmp_path: Path) -> None:
    model = GPA.from_pretrained(made / "run" / "export", device="cpu")
    assert isinstance(model.codec, Buzz) and sorted(model.voices) == ["a", "b"]
    clip = (speechlike(1.0, seed=0), 16000)
    for speech in (model.tts("hello there", voice=clip, seed=1), model.vc(clip, voice="b", seed=1)):
        codes = model.codec.spec.pattern.parse(speech.tokens)
        np.testing.assert_array_equal(speech.wav, model.codec.decode(AudioTokens(codes)))
    assert model.generate(model.prompt("asr", audio=clip), task="asr", temperature=0, max_new_tokens=8)
    assert all(stage.ok for stage in verify(model))
    again = GPA.from_pretrained(model.save_pretrained(tmp_path / "again"), device="cpu")
    np.testing.assert_array_equal(again.tts("hello", voice="a").wav, model.tts("hello", voice="a").wav)


def test_another_codec_is_refused(made: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(made / "run" / "export", tmp_path / "other")
    Buzz(200).save_pretrained(tmp_path / "other" / "codec")
    with pytest.raises(CheckpointError, match="codec is not the one"):
        GPA.from_pretrained(tmp_path / "other", device="cpu")
    voice = GPA.from_pretrained(made / "run" / "export", device="cpu").voices["a"]
    with pytest.raises(CheckpointError, match="made with another codec"):
        Buzz(200).checked(voice)


# Modules that train or measure a BiCodec itself, by its layers.
OWN = ("codec/", "train/families/", "lab/", "data/tokens.py")


def test_no_codec_is_named_outside_its_folder() -> None:
    """Names of codec classes stand in gpa/codec and in codec training alone."""
    classes = {"BiCodec", "GLM4VoiceTokenizer", "HFCodec"}
    for path in sorted((ROOT / "gpa").rglob("*.py")):
        where = path.relative_to(ROOT / "gpa").as_posix()
        if where.startswith(OWN):
            continue
        found = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
        found |= {
            a.name
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.ImportFrom)
            for a in n.names
        }
        assert not found & classes, where
