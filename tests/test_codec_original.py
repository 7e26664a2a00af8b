"""Original EnCodec weights become a directory of transformers, by the command; against Meta's own package.

The package computes the reference in a process of its own, in which its import of torchaudio, which the
network does not use, is answered by an empty module.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from gpa.codec import load_codec
from gpa.codec.base import AudioTokens
from gpa.errors import CheckpointError

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = """
import sys, types
sys.modules["torchaudio"] = types.ModuleType("torchaudio")
import numpy as np, torch
from encodec.model import EncodecModel
torch.manual_seed(0)
model = EncodecModel.encodec_model_24khz(pretrained=False).eval()
wav = 0.3 * torch.randn(1, 1, 9600, generator=torch.Generator().manual_seed(1))
with torch.inference_mode():
    z = model.encoder(wav)[0].T  # (T, D): codebooks start as zeros, and are filled with what occurs
    for k, layer in enumerate(model.quantizer.vq.layers):
        rows = z.std() * torch.randn(1024, z.shape[1]) * 0.3
        layer._codebook.embed.copy_(rows + (0 if k else z[torch.arange(1024) % len(z)]))
        layer._codebook.inited.fill_(1)
torch.save(model.state_dict(), sys.argv[1] + "/original.th")
model.set_target_bandwidth(3.0)  # 4 codebooks
with torch.inference_mode():
    (codes, _), = model.encode(wav)
    sound = model.decode([(codes, None)])
np.savez(sys.argv[1] + "/reference.npz", wav=wav[0, 0], codes=codes[0], sound=sound[0, 0])
"""


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "gpa", "codec", "import", *map(str, words)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(find_spec("encodec") is None, reason="pip install --no-deps encodec  for the comparison")
def test_the_original_package_and_the_import_agree(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", REFERENCE, str(tmp_path)], check=True, timeout=300)
    done = command(tmp_path / "original.th", tmp_path / "encodec", "--codebooks", "4")
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "encodec"), done.stderr
    codec, reference = load_codec(tmp_path / "encodec"), np.load(tmp_path / "reference.npz")
    assert (codec.spec.n_codebooks, codec.spec.frame_rate, codec.spec.codebook_size) == (4, 75, 1024)
    found = codec.encode((reference["wav"], 24000)).codes
    assert len(np.unique(found)) > 10
    assert np.mean(found != reference["codes"]) < 0.01  # near ties of random codebooks may fall otherwise
    wav = codec.decode(AudioTokens(reference["codes"]))
    np.testing.assert_allclose(wav, reference["sound"], atol=1e-5 * np.abs(reference["sound"]).max())


def test_what_is_no_original_file_is_said(tmp_path: Path) -> None:
    torch.save({"encoder.model.0.conv.conv.bias": torch.zeros(3)}, tmp_path / "some.th")
    done = command(tmp_path / "some.th", tmp_path / "out")
    assert done.returncode == CheckpointError.exit_code and not (tmp_path / "out").exists()
    assert "some.th" in done.stderr and "Traceback" not in done.stderr
