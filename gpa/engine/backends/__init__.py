"""Engines that others wrote, behind the contract of ours: docs/serving.md says which to take when."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gpa.errors import CheckpointError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from gpa.engine.backends.dialects import LlamaCpp
    from gpa.engine.backends.remote import Server
    from gpa.engine.base import Completer
    from gpa.engine.network import Network

KINDS = {
    "llamacpp": "FILE.gguf of `gpa export`, or the address of a llama.cpp server that has it",
    "vllm": "http://HOST:PORT",
    "sglang": "http://HOST:PORT",
}
SLOTS = 4  # requests that a llama.cpp server in this process completes at once


def find_engine(spec: str, network: Network) -> Callable[[], Completer]:
    """What makes engines of `KIND:WHERE` for a network's requests: what is there is loaded once, here.

    UsageError for another kind, MissingExtraError without its package, CheckpointError for a missing file,
    GenerationError if no server answers.
    """
    kind, _, where = spec.partition(":")
    if kind not in KINDS or not where:
        known = ", ".join(f"{name}:{what}" for name, what in KINDS.items())
        raise UsageError(f"engine {spec!r}: choose one of {known}")
    from gpa.engine.backends.dialects import VLLM, LlamaCpp, SGLang
    from gpa.engine.backends.remote import Remote, Server

    if kind == "llamacpp":
        dialect = LlamaCpp(network.config.get("eos_token_id"))
        server = (
            Server.found(dialect, where) if "://" in where else _llama_here(Path(where), dialect, network)
        )
    else:
        server = Server.found(VLLM() if kind == "vllm" else SGLang(), where)
    return partial(Remote, server, network)


def _llama_here(path: Path, dialect: LlamaCpp, network: Network) -> Server:
    """llama.cpp's own server in this process, on a free port of this machine alone."""
    import torch

    from gpa.engine.backends.remote import Server

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; `gpa export MODEL {path} --gguf f16` writes it")
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
        here = xllamacpp.Server(params)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: llama.cpp does not load it: {error}") from error
    return Server.found(dialect, here.listening_address, SLOTS, here)
