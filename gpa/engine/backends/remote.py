"""An engine behind HTTP draws the ids, each request on a connection of its own; the ends are seen to here.

Closing the connection is how vLLM, SGLang and llama.cpp are told that a request is cancelled.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gpa.engine.backends.dialects import Asked, Dialect
from gpa.engine.base import Completer
from gpa.engine.request import Completion, Request, Rules
from gpa.engine.sampler import LoopDetector, append
from gpa.engine.scheduler import Progress
from gpa.errors import GenerationError, PromptError, UsageError

if TYPE_CHECKING:
    from gpa.engine.network import Network

STREAMS = 64  # requests that are open at once; the server has a queue of its own
PATIENCE = 120.0  # seconds without a byte
GRACE = 1.0  # seconds for the thread of a closed connection to notice


@dataclass(frozen=True)
class Server:
    """Where an engine answers, and under which name it has the model; `owner` lives as long as this."""

    dialect: Dialect
    url: str
    model: str
    streams: int = STREAMS
    owner: object = None

    @classmethod
    def found(cls, dialect: Dialect, url: str, streams: int = STREAMS, owner: object = None) -> Server:
        """GenerationError if nobody answers at the address, UsageError for what is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url}: an address such as http://127.0.0.1:8000 is needed")
        server = cls(dialect, url.rstrip("/"), "", streams, owner)
        connection = server.connection()
        try:
            connection.request("GET", server.path("/v1/models"))  # all three list it the same way
            model = str(json.loads(connection.getresponse().read())["data"][0]["id"])
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            raise GenerationError(f"no {dialect.name} answers at {url}: {error}") from error
        finally:
            connection.close()
        return replace(server, model=model)

    def connection(self) -> http.client.HTTPConnection:
        """A new one, not yet open."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=PATIENCE)

    def path(self, path: str) -> str:
        """A path there, below that of the address."""
        return urlsplit(self.url).path + path

    def __str__(self) -> str:
        return f"{self.dialect.name} at {self.url}"


class Remote(Completer):
    """Completions by a server that has the weights of `network`, of which only the sizes are used here."""

    def __init__(self, server: Server, network: Network) -> None:
        self.server, self.network = server, network
        self._handles = count()
        self._waiting: deque[_Stream] = deque()
        self._open: dict[int, _Stream] = {}
        self._events: SimpleQueue[tuple[_Stream, list[int] | Exception | None]] = SimpleQueue()

    @property
    def busy(self) -> bool:
        """Whether any request is not complete."""
        return bool(self._waiting or self._open)

    def add(self, request: Request) -> int:
        """Take a request. PromptError for one that cannot be met, UsageError for one that no server can."""
        asked = self._asked(request)
        stream = _Stream(next(self._handles), asked, self.server.dialect.body(asked, self.server.model))
        self._waiting.append(stream)
        self._start()
        return stream.handle

    def step(self) -> list[Progress]:
        """Wait for the next event, and say what it brings."""
        if not self.busy:
            return []
        stream, event = self._events.get()
        if stream.handle not in self._open:  # cancelled meanwhile, or complete
            return []
        if isinstance(event, Exception):
            return [self._failed(stream, f"{self.server}: {event}", event)]
        ending, told = stream.ending, len(stream.ending.completion.ids)
        if event is None:
            ending.done = True
        elif strange := [i for i in event if not any(i in run for run in stream.asked.legal)]:
            # An old server ignores fields that it does not know.
            why = f"{self.server} drew id {strange[0]}, which the request does not allow: "
            return [self._failed(stream, why + "update the server, and let it serve this model")]
        else:
            ending.take(event)
        if ending.done:
            self._drop(stream)
        return [
            Progress(stream.handle, ending.completion.ids[told:], ending.completion if ending.done else None)
        ]

    def cancel(self, handle: int) -> None:
        """Close a request's connection. UsageError if it is not on its way."""
        found = [stream for stream in (*self._waiting, *self._open.values()) if stream.handle == handle]
        if not found:
            raise UsageError(f"request {handle} is not on its way: it is complete, or never was added")
        self._drop(found[0])

    def _asked(self, request: Request) -> Asked:
        """What a server is told of a request, or why it cannot be."""
        rules, size, dialect = request.rules, self.network.sizes.vocab_size, self.server.dialect
        most = min(rules.max_new, self.network.room(request.prompt))
        stops = [range(stop, stop + 1) for stop in rules.stop]
        legal = (range(size),) if rules.legal is None else (*rules.legal, *stops)
        if beyond := [run for run in legal if run.start < 0 or run.stop > size]:
            raise PromptError(f"legal ids up to {beyond[0].stop - 1} are beyond the model's {size} ids")
        cannot = {
            "guidance, which takes two prompts: gamma=0": request.guidance is not None,
            "a search: beams=1": request.beams is not None,
            "a penalty that spares the prompt: repetition_penalty=1": request.sampling.repetition_penalty
            != 1,
            "ids in rounds": bool(rules.cycle) and not hasattr(dialect, "grammar"),
            "a closed end of several stop ids": len(rules.stop) != 1 and bool(rules.closed or rules.closers),
        }
        if refused := [what for what, is_asked in cannot.items() if is_asked]:
            raise UsageError(f"{dialect.name} cannot be asked for {refused[0]}; gpa's own engine can do it")
        return Asked(request, most - (rules.closed and most == rules.max_new), legal, size)

    def _failed(self, stream: _Stream, why: str, cause: Exception | None = None) -> Progress:
        self._drop(stream)
        error = GenerationError(why)
        error.__cause__ = cause
        return Progress(stream.handle, [], error=error)

    def _start(self) -> None:
        while self._waiting and len(self._open) < self.server.streams:
            stream = self._waiting.popleft()
            self._open[stream.handle] = stream
            stream.reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
            stream.reader.start()

    def _drop(self, stream: _Stream) -> None:
        if self._open.pop(stream.handle, None) is None:
            self._waiting.remove(stream)
        stream.close()
        self._start()

    def _read(self, stream: _Stream) -> None:
        """In a thread of its own: put what comes into the queue."""
        before = 0
        end: Exception | None = GenerationError("its answer has another form: update gpa or the server")
        connection, dialect = self.server.connection(), self.server.dialect
        try:
            for event in stream.events(connection, self.server.path(dialect.path)):
                ids = list(dialect.ids(event, before))
                before += len(ids)
                if ids:
                    self._events.put((stream, ids))
            end = None
        except (OSError, http.client.HTTPException, ValueError, GenerationError) as error:
            end = error
        except (LookupError, TypeError, AttributeError):
            pass
        finally:
            connection.close()
            self._events.put((stream, end))


class _Stream:
    """One request on its way: what was asked, how it ends, and the connection once there is one."""

    def __init__(self, handle: int, asked: Asked, body: dict[str, Any]) -> None:
        self.handle, self.asked, self.body = handle, asked, body
        self.ending = Ending(asked.request.rules, asked.count + asked.request.rules.closed)
        self.reader: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._closed = False

    def events(self, connection: http.client.HTTPConnection, path: str) -> Iterator[Any]:
        """The JSON of each server-sent event. GenerationError with what the server says against it."""
        connection.connect()
        self._socket = connection.sock
        if self._closed:
            return
        connection.request("POST", path, json.dumps(self.body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise GenerationError(f"{answer.status} {answer.read(2000).decode(errors='replace')}")
        for line in answer:
            field, _, data = line.decode().partition(":")
            if field in ("error", "data") and data.strip() != "[DONE]":
                event = json.loads(data)
                if field == "error" or "error" in event:
                    raise GenerationError(str(event.get("error", event)))
                yield event

    def close(self) -> None:
        """End it, also while another thread waits for what comes."""
        self._closed = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        if self.reader is not None:
            self.reader.join(GRACE)


class Ending:
    """A completion that grows by what a server draws, up to its end by the rules."""

    def __init__(self, rules: Rules, most: int) -> None:
        self.rules, self.most = rules, most
        self.completion, self.done = Completion(), False
        self._loops = LoopDetector(rules.loop)

    def take(self, ids: list[int]) -> None:
        """Add ids until one ends it; what has to be the stop id is not waited for."""
        for token_id in ids:
            self._append(token_id)
            last = self.rules.closed and len(self.completion.ids) + 1 == self.rules.max_new
            if not self.done and (token_id in self.rules.closers or last):
                self._append(min(self.rules.stop))
            if self.done:
                return

    def _append(self, token_id: int) -> None:
        self.done = append(self.completion, token_id, self.rules, self._loops, self.most)
