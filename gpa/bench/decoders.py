"""Who decodes in `gpa bench decode`: the engine, and what a user would take instead, one function each.

A decoder opens a folder of plain Hugging Face weights and then makes new ids after prompts. What is not
installed says which extra brings it.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import util
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpa.bench import machine
from gpa.engine.request import Request, Rules, Sampling
from gpa.errors import GenerationError, MissingExtraError
from gpa.prompt.tasks import TTS

if TYPE_CHECKING:
    import torch

Prompts = Sequence[Sequence[int]]
Decode = Callable[[Prompts, int], list[list[int]]]  # prompts and how many new ids each: those ids


@dataclass(frozen=True)
class Work:
    """What every decoder is given: weights, `prompts` as many as the largest batch, and ids to make of each.

    What a decoder writes of the weights, in `scratch`, the next round finds.
    `legal` are the ids that a completion of the task may hold, and `stop` would end it: here none ends early.
    """

    folder: Path
    scratch: Path
    prompts: Prompts
    ids: int
    batches: tuple[int, ...]
    legal: range
    stop: int
    threads: int
    device: str = "cpu"
    dtype: str = "float32"


Open = Callable[[Work, ExitStack], Decode]  # what has to be closed in the end goes to the stack


@dataclass(frozen=True)
class Decoder:
    """One of them: its title, how it opens, and why it cannot, "" if it can.

    `weight_bytes` are those of one weight as it is read at every step, None for those of `Work.dtype`;
    `slice` decoders compute the logits of legal ids only; `same` ones take the likeliest id of all, so their
    ids can be compared.
    """

    title: str
    open: Open
    missing: Callable[[Work], str] = lambda _: ""
    weight_bytes: float | None = None
    slice: bool = False
    same: bool = False


def checked(title: str, found: Sequence[Sequence[int]], rows: int, ids: int) -> None:
    """GenerationError unless there are so many ids of each row: whoever makes fewer is not faster."""
    counts = [len(row) for row in found]
    if counts != [ids] * rows:
        raise GenerationError(f"{title} made {counts} ids of {rows} prompts instead of {ids} each")


# Ours -------------------------------------------------------------------------------------------------------


def _engine(sampling: Sampling, every: bool, torch: bool = False) -> Open:
    """Our engine over the legal ids or over `every` one; by torch's layers, as without onnxruntime."""

    def opened(work: Work, closing: ExitStack) -> Decode:
        from gpa.engine.network import Network
        from gpa.engine.packed import PackedNetwork
        from gpa.engine.scheduler import Engine

        network = Network.load(work.folder)[0].to(work.device, _dtype(work))
        forward = PackedNetwork(network) if torch else network.packed
        legal = None if every else _runs(work)

        def decode(prompts: Prompts, ids: int) -> list[list[int]]:
            rules = Rules(ids, frozenset() if every else frozenset({work.stop}), legal, min_new=ids)
            requests = [Request(prompt, rules, sampling, seed) for seed, prompt in enumerate(prompts)]
            return [done.ids for done in Engine(network, len(prompts), forward=forward).generate(requests)]

        return decode

    return opened


def _runs(work: Work) -> tuple[range, ...]:
    """Legal ids and the stop id, as `Rules` has them."""
    stop = range(work.stop, work.stop + 1)
    return (work.legal,) if work.stop in work.legal else tuple(sorted((work.legal, stop), key=min))


def _dtype(work: Work) -> torch.dtype:
    import torch

    return getattr(torch, work.dtype)


# transformers -----------------------------------------------------------------------------------------------


def _model(work: Work) -> Any:
    """The same weights, as transformers loads them."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(work.folder, dtype=_dtype(work), local_files_only=True)
    return model.to(work.device).eval()


def _generate(work: Work, closing: ExitStack) -> Decode:
    import torch

    model = _model(work)
    model.generation_config.eos_token_id = None

    def decode(prompts: Prompts, ids: int) -> list[list[int]]:
        given = torch.tensor([list(prompt) for prompt in prompts], device=model.device)
        whole = torch.ones_like(given)
        made = model.generate(
            given, attention_mask=whole, max_new_tokens=ids, do_sample=False, pad_token_id=work.stop
        )
        return made[:, given.shape[1] :].tolist()

    return decode


def _generate_batch(work: Work, closing: ExitStack) -> Decode:
    """Continuous batching by the manager behind `generate_batch`, which by itself starts one at every call.

    Its cache is as large as the work needs: by default it takes most of the memory.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    page = 32  # positions
    pages = work.batches[-1] * (-(-(len(work.prompts[0]) + work.ids) // page) + 1)
    config = GenerationConfig(
        max_new_tokens=work.ids, do_sample=False, eos_token_id=-1, pad_token_id=work.stop
    )
    room = ContinuousBatchingConfig(
        page_size=page, num_blocks=pages, max_batch_tokens=512, allow_block_sharing=False
    )
    manager = _model(work).init_continuous_batching(config, continuous_batching_config=room)
    manager.start()
    closing.callback(manager.stop, block=True)

    def decode(prompts: Prompts, ids: int) -> list[list[int]]:
        names = manager.add_requests([list(prompt) for prompt in prompts], max_new_tokens=ids)
        found: dict[str, list[int]] = {}
        while len(found) < len(names) and manager.is_running():
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                found[result.request_id] = result.generated_tokens
        return [found.get(name, []) for name in names]

    return decode


# llama.cpp -----------------------------------------------------------------------------------------------


def _llamacpp(precision: str) -> Open:
    """llama.cpp's server in this process, a slot a row; any id may come, as a grammar of legal ones costs."""

    def opened(work: Work, closing: ExitStack) -> Decode:
        import xllamacpp

        file = work.scratch / f"{precision}.gguf"
        if not file.exists():
            machine.alone(write_gguf, work.folder, file, precision)
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_parallel = work.batches[-1]
        params.n_ctx = work.batches[-1] * (-(-(len(work.prompts[0]) + work.ids + 1) // 256) * 256)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = work.threads
        params.verbosity = 0
        server = xllamacpp.Server(params)

        def one(prompt: Sequence[int], ids: int) -> list[int]:
            asked = {"prompt": list(prompt), "n_predict": ids, "ignore_eos": True, "cache_prompt": False}
            return _post(
                server.listening_address, {**asked, "samplers": ["top_k"], "top_k": 1, "return_tokens": True}
            )["tokens"]

        def decode(prompts: Prompts, ids: int) -> list[list[int]]:
            with ThreadPoolExecutor(len(prompts)) as pool:
                return list(pool.map(one, prompts, repeat(ids)))

        return decode

    return opened


def write_gguf(folder: Path, file: Path, precision: str) -> None:
    """Write a checkpoint for llama.cpp."""
    from gpa.engine.backends.export_gguf import export_gguf
    from gpa.engine.network import Network

    export_gguf(Network.load(folder)[0], file, precision)


def _post(address: str, body: dict[str, Any]) -> dict[str, Any]:
    asked = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked) as answer:
        return json.load(answer)


def _needs(package: str, extra: str) -> Callable[[Work], str]:
    """Why a decoder of an optional package cannot run."""

    def missing(work: Work) -> str:
        if not util.find_spec(package):
            return str(MissingExtraError(package, extra))
        return "" if work.device == "cpu" else "measured on a processor only"

    return missing


GPA, TRANSFORMERS = "gpa", "transformers"
DECODERS = {
    GPA: Decoder("gpa, legal ids, greedy", _engine(Sampling(), every=False), slice=True),
    "gpa-sampled": Decoder(
        "gpa, legal ids, drawn as tts draws",
        _engine(Sampling().updated(**TTS.sampling), every=False),
        slice=True,
    ),
    "gpa-every": Decoder("gpa, any id, greedy", _engine(Sampling(), every=True), same=True),
    "gpa-torch": Decoder(
        "gpa by torch's layers, any id, greedy", _engine(Sampling(), every=True, torch=True), same=True
    ),
    TRANSFORMERS: Decoder("transformers generate", _generate, same=True),
    "transformers-batch": Decoder("transformers generate_batch", _generate_batch, same=True),
    **{
        f"llamacpp-{precision}": Decoder(
            f"llama.cpp {precision}",
            _llamacpp(precision),
            _needs("xllamacpp", "llamacpp"),
            size,
            same=True,
        )
        for precision, size in (("f16", 2.0), ("q8_0", 34 / 32))
    },
}
