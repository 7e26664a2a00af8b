"""Few rows on a CPU by onnxruntime: it computes logits, and our own `Draw` and `Search` choose.

So guidance, beams and every rule are as in our engine. Sums differ in their last bits, and so may ids where
two are about as likely.

    R rows   P positions   Hk key/value heads   Dh head width   V vocabulary
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from gpa.engine.backends.export_onnx import FILE, cache_names
from gpa.engine.base import Completer
from gpa.engine.drawing import Draw
from gpa.engine.scheduler import Progress, choice_error
from gpa.engine.search import Search
from gpa.errors import CheckpointError, GenerationError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from gpa.engine.network import Network
    from gpa.engine.request import Request

ROWS = 16  # of one batch, unless a single request needs more: our own engine is faster before that
GRAIN = 256  # positions by which the cache grows


@dataclass(eq=False)
class _Job:
    """A request on its way: how it decides, and how many of its ids were told."""

    handle: int
    decoder: Draw | Search
    size: int = 0  # rows that it has: none before its prompts are read
    told: int = 0


class OnnxEngine(Completer):
    """Completions by the graph that `export_onnx` wrote of a network."""

    def __init__(self, graph: Graph, network: Network, rows: int = ROWS) -> None:
        """`rows` are computed together at most. A second engine of a graph is cheap."""
        self.network, self.most_rows = network, rows
        self._rows = _Rows(graph, network)
        self._handles = count()
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []  # their rows lie in this order
        self._failures: list[GenerationError] = []  # that nobody was told of yet

    @property
    def busy(self) -> bool:
        """Whether any request is not complete."""
        return bool(self._waiting or self._running or self._failures)

    def add(self, request: Request) -> int:
        """Take a request. PromptError for one that cannot be met."""
        search = request.beams and Search(request, request.beams, self.network)
        self._waiting.append(_Job(next(self._handles), search or Draw(request, self.network)))
        return self._waiting[-1].handle

    def cancel(self, handle: int) -> None:
        """Forget a request. UsageError if it is not on its way."""
        for jobs in (self._waiting, self._running):
            for job in [job for job in jobs if job.handle == handle]:
                self._drop([job])
                return
        raise UsageError(f"request {handle} is not on its way: it is complete, or never was added")

    def step(self) -> list[Progress]:
        """One more id for every running request. GenerationError as of our own engine."""
        if not self._failures:
            self._continue()
            self._start()
        if self._failures:
            raise self._failures.pop(0)
        found = []
        for job in self._running:
            made, done = job.decoder.completion, job.decoder.done
            found.append(Progress(job.handle, made.ids[job.told :], made if done else None))
            job.told = len(made.ids)
        self._drop([job for job in self._running if job.decoder.done])
        return found

    def _continue(self) -> None:
        """The newest ids of all rows, as one batch."""
        if not self._running:
            return
        ids, parents = [], []
        begins = np.cumsum([0, *(job.size for job in self._running)])
        for job, begin in zip(self._running, begins[:-1].tolist(), strict=True):
            following = [] if job.decoder.done else job.decoder.following
            job.size = len(following)
            ids += [token_id for token_id, _ in following]
            parents += [begin + parent for _, parent in following]
        self._rows.keep(parents)
        if not ids:
            return
        logits = np.split(self._rows.read(ids), np.cumsum([job.size for job in self._running])[:-1])
        for job, own in list(zip(self._running, logits, strict=True)):
            if job.size:
                self._advance(job, own)

    def _start(self) -> None:
        """The prompts of waiting requests in their order, while there are rows for the next one."""
        used = sum(job.decoder.rows for job in self._running)
        while self._waiting and (not self._running or used + self._waiting[0].decoder.rows <= self.most_rows):
            job = self._waiting.popleft()
            logits = [self._rows.prefill(prompt) for prompt in job.decoder.prompts]
            job.size, used = len(logits), used + job.decoder.rows
            self._running.append(job)
            self._advance(job, np.concatenate(logits))

    def _advance(self, job: _Job, logits: np.ndarray) -> None:
        if error := choice_error(job.handle, job.decoder, logits[:, job.decoder.choices.ids]):
            self._failures.append(error)
            self._drop([job])

    def _drop(self, jobs: Sequence[_Job]) -> None:
        if jobs and jobs[0] in self._waiting:
            self._waiting.remove(jobs[0])
        elif jobs:
            owners = [job for job in self._running for _ in range(job.size)]
            self._rows.keep([row for row, job in enumerate(owners) if job not in jobs])
            self._running = [job for job in self._running if job not in jobs]


class Graph:
    """The graph of a network, loaded into onnxruntime with as many threads as torch has."""

    def __init__(self, folder: Path, network: Network) -> None:
        """CheckpointError for a folder without a graph, or with the graph of another network."""
        if not (folder / FILE).is_file():
            raise CheckpointError(
                f"{folder}: no {FILE}; `gpa export MODEL {folder} --onnx float32` writes it"
            )
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "onnx") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(str(folder / FILE), options, providers=providers)
        self.caches = cache_names(network.sizes.num_hidden_layers)
        found = {each.name: each.shape for each in self.session.get_outputs()}
        expected = {"logits", *(f"new_{name}" for name in self.caches)}
        if set(found) != expected or found["logits"][-1] != network.sizes.vocab_size:
            raise CheckpointError(f"{folder}: the graph of another model; `gpa export` writes this one's")


class _Rows:
    """Keys and values (R, Hk, P, Dh), which the graph extends where they are."""

    def __init__(self, graph: Graph, network: Network) -> None:
        s = network.sizes
        self._graph, self._context = graph, s.max_position_embeddings
        self._empty = (s.num_key_value_heads, s.head_dim)
        self._caches = [self._room(0, 0) for _ in graph.caches]
        self.lengths: list[int] = []  # positions that each row holds

    def keep(self, rows: Sequence[int]) -> None:
        """Let row n hold what row `rows[n]` held, and nothing come after."""
        if list(rows) != list(range(len(rows))):
            self._reserve(len(rows), max(self.lengths))
            for cache in self._caches:
                cache[: len(rows)] = cache[list(rows)]
        self.lengths = [self.lengths[row] for row in rows]

    def prefill(self, prompt: Sequence[int]) -> np.ndarray:
        """Logits (1, V) after a prompt, which a new row then holds."""
        self.lengths.append(0)
        self._reserve(len(self.lengths), max(len(prompt), *self.lengths))
        return self._run(slice(len(self.lengths) - 1, None), np.array([list(prompt)], np.int64))

    def read(self, ids: Sequence[int]) -> np.ndarray:
        """Logits (R, V) after one more id of each row."""
        self._reserve(len(ids), max(self.lengths) + 1)
        return self._run(slice(0, None), np.array(ids, np.int64)[:, None])

    def _run(self, rows: slice, ids: np.ndarray) -> np.ndarray:
        rows = slice(rows.start, len(self.lengths))
        self.lengths[rows] = [length + ids.shape[1] for length in self.lengths[rows]]
        lengths = np.array(self.lengths[rows], np.int32)
        binding = self._graph.session.io_binding()
        binding.bind_cpu_input("ids", ids)
        binding.bind_cpu_input("lengths", lengths - 1)
        binding.bind_cpu_input("longest", np.array(lengths.max(), np.int32))
        for name, cache in zip(self._graph.caches, self._caches, strict=True):
            here = ("cpu", 0, np.float32, list(cache[rows].shape), cache[rows].ctypes.data)
            binding.bind_input(name, *here)
            binding.bind_output(f"new_{name}", *here)
        binding.bind_output("logits")
        self._graph.session.run_with_iobinding(binding)
        logits: np.ndarray = binding.get_outputs()[-1].numpy()
        return logits

    def _reserve(self, rows: int, positions: int) -> None:
        """Room for so many rows, and for so many positions of each."""
        have, _, length, _ = self._caches[0].shape
        if rows <= have and positions <= length:
            return
        longer = max(length, min(self._context, -(-positions // GRAIN) * GRAIN))
        for n, old in enumerate(self._caches):
            self._caches[n] = self._room(max(rows, have), longer)
            self._caches[n][:have, :, :length] = old

    def _room(self, rows: int, positions: int) -> np.ndarray:
        heads, width = self._empty
        return np.zeros((rows, heads, positions, width), np.float32)
