"""EnCodec and Mimi from a codec's directory to a model that speaks, by the commands of docs/add-a-codec.md.

No trained weights are at hand, so codecs are small and random: a batch of all three tasks is learnt by heart,
and generation has to give its codes back exactly.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EncodecConfig, EncodecModel, MimiConfig, MimiModel, PreTrainedModel

from conftest import speechlike
from gpa import GPA, audio
from gpa.cli.main import main
from gpa.codec import load_codec
from gpa.codec.hf import HFCodec
from gpa.codec.limiter import limited
from gpa.data.token_folder import TokenSet

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "add-a-codec.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^gpa .*$", PAGE, re.MULTILINE)
TEXTS = ("hello there", "good morning")
SMALL = [
    *(
        "model.hidden_size=64",
        "model.num_hidden_layers=2",
        "model.num_attention_heads=2",
        "model.head_dim=32",
    ),
    *("model.num_key_value_heads=1", "model.intermediate_size=128", "data.batch_ids=4096"),
    *("train.steps=110", "train.eval_every=110", "train.save_every=110", "optim.lr=5.0e-3"),
]


def encodec() -> PreTrainedModel:
    sizes = {"hidden_size": 8, "num_filters": 4, "upsampling_ratios": [8, 8, 10], "num_lstm_layers": 1}
    rate = {"sampling_rate": 16000, "target_bandwidths": [0.125, 0.25], "codebook_size": 32}  # 25 frames/s
    return fitted(EncodecModel(EncodecConfig(**sizes, **rate)))


def mimi() -> PreTrainedModel:
    sizes = {"hidden_size": 16, "num_filters": 4, "upsampling_ratios": [8, 8, 10], "codebook_size": 32}
    sizes |= {"codebook_dim": 8, "num_quantizers": 3, "vector_quantization_hidden_dimension": 8}
    sizes |= {"upsample_groups": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": 8, "sampling_rate": 16000}
    return fitted(MimiModel(MimiConfig(**sizes, frame_rate=12.5)))


def latents(model: PreTrainedModel) -> torch.Tensor:
    """Latents (1, D, T) that the encoder draws of the corpus, as the quantizer gets them."""
    wav, seen = np.concatenate([speechlike(1.0, seed=n) for n in range(len(TEXTS))]), []
    encode = model.quantizer.encode
    model.quantizer.encode = lambda z, *more, **named: seen.append(z) or encode(z, *more, **named)
    HFCodec(model).encode((wav, 16000))
    del model.quantizer.encode
    return seen[0]


@torch.no_grad()
def fitted(model: PreTrainedModel) -> PreTrainedModel:
    """Random weights encode everything alike; codebooks of latents that occur make codes that vary."""
    z, quantizer = latents(model).clone(), model.quantizer
    mimi = model.config.model_type == "mimi"
    names = ("semantic", "acoustic") if mimi else ()
    stacks = [getattr(quantizer, f"{name}_residual_vector_quantizer") for name in names] or [quantizer]
    for stack in stacks:
        rest = (stack.input_proj(z) if mimi else z)[0].T.clone()
        for layer in stack.layers:
            picked = torch.linspace(0, len(rest) - 1, model.config.codebook_size).long()
            rows = rest[picked] + 0.01 * rest.std() * torch.randn(len(picked), rest.shape[1])
            book = layer.codebook
            (book.embed_sum if mimi else book.embed).copy_(rows)
            if mimi:
                book.cluster_usage.fill_(1)
                book._embed = None  # what was computed before
            rest -= rows[torch.cdist(rest, rows).argmin(1)]
    return model.eval()


def run(folder: Path, command: str, *more: str) -> str:
    """Run a `gpa` line as a user does, in a folder of the user's; what it prints."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "gpa", *shlex.split(command)[1:], *more]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


def write_corpus(folder: Path) -> None:
    """Two sentences of a speaker each."""
    for n, text in enumerate(TEXTS):
        clip = folder / "ab"[n] / f"{n}.wav"
        clip.parent.mkdir(parents=True)
        audio.save(clip, speechlike(1.0, seed=n), 16000)
        clip.with_suffix(".txt").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module", params=["encodec", "mimi"])
def walked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page was walked to its end."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    {"encodec": encodec, "mimi": mimi}[request.param]().save_pretrained(folder / "original")
    write_corpus(folder / "corpus")
    shutil.copytree(ROOT / "recipes" / "gpa", folder / "recipes" / "gpa")
    as_user = request.param == "encodec"
    for command in COMMANDS if as_user else COMMANDS[:3]:
        line = command.replace("facebook/encodec_24khz", "original").replace("--codebooks 4", "--codebooks 2")
        more = SMALL if line.startswith("gpa train") else []
        if as_user:
            run(folder, line, *more)
        else:  # a process takes seconds to begin with
            with contextlib.chdir(folder):
                assert main([*shlex.split(line)[1:], *more]) == 0
    return folder


def test_the_page_walks_every_step() -> None:
    steps = ["codec", "prepare", "train", "verify", "voice", "tts", "asr", "vc"]
    assert [command.split()[1] for command in COMMANDS] == steps


def test_what_was_learnt_by_heart_comes_back_exactly(walked: Path) -> None:
    """All three tasks: greedy ids are the row's codes, and the sound is the codec's own of these codes."""
    model, codec = (
        GPA.from_pretrained(walked / "runs/encodec/export", device="cpu"),
        load_codec(walked / "encodec"),
    )
    assert (codec.spec.n_codebooks, model.codec.spec) == (2, codec.spec)
    rows = list(TokenSet.open(walked / "tokens"))
    assert {row["text"] for row in rows} == set(TEXTS)
    assert all(len(set(row["semantic"])) > 8 for row in rows)
    for row in rows:
        voice, wav = (
            model.voices[row["speaker"]],
            (audio.load(walked / "corpus" / f"{row['id']}.wav", 16000), 16000),
        )
        frames = codec.spec.pattern.parse(row["semantic"])
        own = codec.decode(codec.encode(wav))
        assert list(voice.codes) == list(row["global"])
        for speech in (
            model.tts(row["text"], voice=voice, temperature=0),
            model.vc(wav, voice=voice, temperature=0),
        ):
            assert speech.finish_reason == "stop"
            np.testing.assert_array_equal(codec.spec.pattern.parse(speech.tokens), frames)
            np.testing.assert_array_equal(speech.wav, limited(own, codec.spec.sample_rate))
        assert model.asr(wav).text == row["text"]


def test_each_step_has_the_ids_of_its_codebook(walked: Path) -> None:
    """What is drawn at random is whole frames too, and the tokenizer names each codebook's ids."""
    model = GPA.from_pretrained(walked / "runs/encodec/export", device="cpu")
    ids = model.prompt("tts", text="some other words", voice=min(model.voices))
    found = model.generate(ids, task="tts", temperature=50.0, max_new_tokens=41, seed=1)
    books = model.vocab.codebooks
    speech = [i for i in found if i != model.vocab.stop]
    assert len(speech) % 2 == 0 and len(set(speech)) > 4
    assert all(i in books[step % 2] for step, i in enumerate(speech))
    from transformers import AutoTokenizer

    names = AutoTokenizer.from_pretrained(walked / "runs/encodec/export")
    assert names.convert_tokens_to_ids(["<|audio_0_3|>", "<|audio_1_3|>"]) == [books[0][3], books[1][3]]
    assert model.vocab.global_ is None


def test_saved_again_it_is_the_same(walked: Path, tmp_path: Path) -> None:
    model = GPA.from_pretrained(walked / "runs/encodec/export", device="cpu")
    again = GPA.from_pretrained(model.save_pretrained(tmp_path / "again"), device="cpu")
    assert again.processor.fingerprints() == model.processor.fingerprints()
    one, other = (m.tts("good day", voice="a", seed=3) for m in (model, again))
    np.testing.assert_array_equal(one.wav, other.wav)
    assert "All stages agree" in run(tmp_path, "gpa verify again")


def test_what_does_not_fit_is_said(walked: Path, tmp_path: Path) -> None:
    model = GPA.from_pretrained(walked / "runs/encodec/export", device="cpu")
    clip = walked / "corpus" / "a" / "0.wav"
    from gpa.errors import CheckpointError, UsageError

    with pytest.raises(UsageError, match="use mode lm"):
        model.vc(clip, voice="a", mode="codec")
    mini = GPA.from_pretrained("gpa-mini", device="cpu")
    with pytest.raises(CheckpointError, match="another codec"):
        model.tts("hello", voice=mini.voices[min(mini.voices)])
    with pytest.raises(CheckpointError, match="another codec"):
        mini.tts("hello", voice=model.voices["a"])
