"""Engines that others wrote, behind the contract of ours: docs/serving.md says which to take when."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpa.errors import CheckpointError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from gpa.engine.backends.dialects import LlamaCpp
    from gpa.engine.base import Completer
    from gpa.engine.network import Network

KINDS = {
    "llamacpp": "FILE.gguf of `gpa export`, or the address of a llama.cpp server that has it",
    "vllm": "http://HOST:PORT",
    "sglang": "http://HOST:PORT",
    "onnx": "DIR of `gpa export`",
}
SLOTS = 4  # requests that a llama.cpp server in this process completes at once


def open_engine(spec: str, network: Network) -> Completer:
    """The engine that `KIND:WHERE` names, for a network's requests.

    UsageError for another kind, MissingExtraError without its package, CheckpointError for a missing file,
    GenerationError if no server answers.
    """
    kind, _, where = spec.partition(":")
    if kind not in KINDS or not where:
        known = ", ".join(f"{name}:{what}" for name, what in KINDS.items())
        raise UsageError(f"engine {spec!r}: choose one of {known}")
    if kind == "onnx":
        from gpa.engine.backends.onnx_engine import OnnxEngine

        return OnnxEngine(Path(where), network)
    from gpa.engine.backends.dialects import VLLM, LlamaCpp, SGLang
    from gpa.engine.backends.remote import Remote

    if kind == "llamacpp":
        eos = network.config.get("eos_token_id")
        if "://" in where:
            return Remote(LlamaCpp(eos), where, network)
        return _llama_here(Path(where), LlamaCpp(eos), network)
    return Remote(VLLM() if kind == "vllm" else SGLang(), where, network)


def _llama_here(path: Path, dialect: LlamaCpp, network: Network) -> Completer:
    """llama.cpp's own server in this process, on a free port of this machine alone."""
    import torch

    from gpa.engine.backends.remote import Remote

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; `gpa export MODEL {path}` writes one")
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingExtraError("xllamacpp", "llamacpp") from error
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * network.sizes.max_position_embeddings
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    params.verbosity = 0
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: llama.cpp does not load it: {error}") from error
    return Remote(dialect, server.listening_address, network, SLOTS, server)
