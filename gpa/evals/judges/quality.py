"""The quality judges, DNSMOS and DistillMOS: how listeners would rate a sound, 1 (bad) to 5 (excellent)."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from gpa.errors import MissingExtraError
from gpa.evals.judges import base

NAME = "DNSMOS P.835 and P.808"
SECOND = "DistillMOS"
BY_HAND = "distillmos (pip install --no-deps distillmos xls-r-sqa)"
WORST = 1.0  # the scale's least, which an item gets where nothing was made
_NAMES = {"ovrl_mos": "mos", "sig_mos": "mos_signal", "bak_mos": "mos_background", "p808_mos": "mos_p808"}


class QualityJudge:
    """`judge(wav)` is {mos, mos_signal, mos_background, mos_p808}; a clip under 9 s is heard repeatedly."""

    def __init__(self) -> None:
        """Load the weights inside the speechmos wheel; MissingExtraError where it is not installed."""
        try:
            import onnxruntime
            from speechmos import dnsmos
        except ImportError as e:  # it also needs librosa and requests, and declares neither
            raise MissingExtraError(f"speechmos ({e})", "eval") from e
        folder = base.folder_of("speechmos") / "dnsmos_models"
        files = [folder / "sig_bak_ovr.onnx", folder / "model_v8.onnx"]
        self._model = dnsmos.DNSMOS(*map(str, files))
        # One thread each: judges listen side by side, and more threads made these small networks slower.
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._model.onnx_sess = onnxruntime.InferenceSession(str(files[0]), options)
        self._model.p808_onnx_sess = onnxruntime.InferenceSession(str(files[1]), options)
        self.about = base.describe("quality", NAME, "speechmos", files)

    def __call__(self, wav: np.ndarray) -> dict[str, float]:
        """The four ratings of float32 (S,) at 16 kHz; the worst where there is no sample at all."""
        if len(wav) == 0:  # it would append nothing to nothing for ever
            return dict.fromkeys(_NAMES.values(), WORST)
        found = self._model(wav, base.SAMPLE_RATE, False)
        return {ours: round(float(found[theirs]), 4) for theirs, ours in _NAMES.items()}


class SecondQualityJudge:
    """`judge(wav)` is {distill_mos}: DistillMOS, 1 to 5, learnt from another network than DNSMOS."""

    def __init__(self) -> None:
        """Load the weights inside the distillmos wheel; MissingExtraError where it is not installed."""
        stub = ModuleType("torchaudio")  # only its command line would call it
        sys.modules.setdefault("torchaudio", stub)
        try:
            from distillmos import sqa
        except ImportError as e:
            raise MissingExtraError(BY_HAND, "eval") from e
        finally:  # transformers asks later whether torchaudio is installed
            if sys.modules["torchaudio"] is stub:
                del sys.modules["torchaudio"]
        with redirect_stdout(io.StringIO()):  # it prints where its weights are
            self._model = sqa.ConvTransformerSQAModel().eval()
        self.about = base.describe("quality", SECOND, "distillmos", [Path(sqa.DEFAULT_WEIGHTS_CHKPT)])

    def __call__(self, wav: np.ndarray) -> dict[str, float]:
        """The rating of float32 (S,) at 16 kHz; the worst where there is no sample at all."""
        if len(wav) == 0:
            return {"distill_mos": WORST}
        with torch.inference_mode():
            found = self._model(torch.from_numpy(np.asarray(wav, np.float32))[None])
        return {"distill_mos": round(float(found), 4)}
