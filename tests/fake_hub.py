"""A model hub on loopback: the routes of huggingface.co that huggingface_hub calls, without its Xet storage.

Sources: huggingface_hub's `hf_api.py`, `_commit_api.py`, `lfs.py`, `file_download.py`; git-lfs's batch API.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_anna"
LARGE = (".safetensors", ".xz", ".wav", ".npz")  # go by LFS, as the hub decides


@dataclass
class Repo:
    """One repository: its files, and its newest commit with what it was called."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        """Of the newest commit."""
        state = json.dumps([self.commits, sorted((k, digest(v)) for k, v in self.files.items())])
        return hashlib.sha1(state.encode()).hexdigest()


class FakeHub(ThreadingHTTPServer):
    """State of the hub and how it misbehaves.

    `refuse` answers every request with that status; `cut` maps a file's path to how many bytes arrive of each
    answer in turn before the connection ends, none after the last. `seen` are
    (method, path, Range) of all requests.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.refuse = 0
        self.cut: dict[str, list[int]] = {}
        self.seen: list[tuple[str, str, str]] = []

    @property
    def address(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.server_port}"

    def page(self, name: str) -> str:
        """Where a repository's files are."""
        return f"/{name}/resolve/{self.repos[name].sha}"

    def fetched(self) -> list[tuple[str, str]]:
        """(path, Range) of every file that was asked for."""
        return [(path, part) for method, path, part in self.seen if method == "GET" and "/resolve/" in path]

    def handle_error(self, *_: Any) -> None:
        """A connection that was cut on purpose is no news."""


class Handler(BaseHTTPRequestHandler):
    """Routes by method and pattern."""

    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self._body())

    def do_PUT(self) -> None:
        self._answer(self._body())

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, body: bytes) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.seen.append((self.command, path, self.headers.get("Range", "")))
        if hub.refuse:
            return self._json({"error": "refused on purpose"}, hub.refuse)
        for pattern, route in ROUTES:
            if found := re.fullmatch(pattern, path):
                return route(self, body, *found.groups())
        return self._json({"error": f"no route {path}"}, 404)

    def _json(self, content: Any, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json", **headers})

    def _send(self, content: bytes, status: int, headers: dict[str, str], most: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:most])
        if most is not None and most < len(content):
            self.close_connection = True

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repo(self, name: str) -> Repo | None:
        """The repository, if the caller may see it; answers 401 otherwise, as the hub does."""
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not self._known()):
            code = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            self._json({"error": "Repository not found"}, 404 if self._known() else 401, **code)
            return None
        return repo

    # Routes ------------------------------------------------------------------------------------------------

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.address}/{name}"
        if not self._known():
            return self._json({"error": "Invalid username or password."}, 401)
        if name in self.server.repos:
            return self._json({"error": "You already created this model repo", "url": url}, 409)
        private = asked.get("private", False) or asked.get("visibility") == "private"
        self.server.repos[name] = Repo(private)
        return self._json({"url": url, "name": name})

    def validate(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str) -> None:
        if repo := self._repo(name):
            files = []
            for file in json.loads(body)["files"]:
                path = file["path"]
                mode = "lfs" if path.endswith(LARGE) else "regular"
                files.append({"path": path, "uploadMode": mode, "shouldIgnore": False})
                if path in repo.files:
                    content = repo.files[path]
                    files[-1]["oid"] = digest(content) if mode == "lfs" else blob(content)
            self._json({"files": files})

    def lfs(self, body: bytes, name: str) -> None:
        if self._repo(name):
            objects = []
            for thing in json.loads(body)["objects"]:
                href = {"upload": {"href": f"{self.server.address}/lfs/{thing['oid']}"}}
                present = thing["oid"] in self.server.objects
                objects.append({**thing, **({} if present else {"actions": href})})
            self._json({"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        if digest(body) != oid:
            return self._json({"error": "not that object"}, 400)
        self.server.objects[oid] = body
        return self._json({})

    def commit(self, body: bytes, name: str) -> None:
        if repo := self._repo(name):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    repo.commits.append(value["summary"])
                elif line["key"] == "file":
                    repo.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repo.files[value["path"]] = self.server.objects[value["oid"]]
            url = f"{self.server.address}/{name}/commit/{repo.sha}"
            self._json({"success": True, "commitOid": repo.sha, "commitUrl": url})

    def info(self, body: bytes, name: str, revision: str | None) -> None:
        if repo := self._repo(name):
            if revision not in (None, "main", repo.sha):
                code = {"X-Error-Code": "RevisionNotFound"}
                return self._json({"error": "Invalid rev id"}, 404, **code)
            siblings = [{"rfilename": path} for path in sorted(repo.files)]
            about = {"_id": "1", "id": name, "modelId": name, "sha": repo.sha, "private": repo.private}
            return self._json({**about, "siblings": siblings, "tags": [], "downloads": 0})
        return None

    def tree(self, body: bytes, name: str, revision: str) -> None:
        if repo := self._repo(name):
            found = []
            for path, content in sorted(repo.files.items()):
                entry: dict[str, Any] = {
                    "type": "file",
                    "path": path,
                    "size": len(content),
                    "oid": blob(content),
                }
                if path.endswith(LARGE):
                    entry["lfs"] = {"oid": digest(content), "size": len(content), "pointerSize": 130}
                found.append(entry)
            self._json(found)

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return None
        if path not in repo.files:
            return self._json({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"})
        content = repo.files[path]
        mark = digest(content) if path.endswith(LARGE) else blob(content)
        headers = {"ETag": f'"{mark}"', "X-Repo-Commit": repo.sha, "Accept-Ranges": "bytes"}
        headers |= {"X-Linked-Etag": f'"{mark}"', "X-Linked-Size": str(len(content))}
        status, asked = 200, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked:
            begin, status = int(asked[1]), 206
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            content = content[begin:]
        most = self.server.cut.get(path)
        if most is not None and self.command == "GET":
            return self._send(content, status, headers, most.pop(0) if most else 0)
        return self._send(content, status, headers)


def digest(content: bytes) -> str:
    """SHA-256 (hex), the name of an LFS object."""
    return hashlib.sha256(content).hexdigest()


def blob(content: bytes) -> str:
    """SHA-1 (hex) as git names a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.validate),
    (rf"/api/models/{NAME}/preupload/main", Handler.preupload),
    (rf"/{NAME}\.git/info/lfs/objects/batch", Handler.lfs),
    (r"/lfs/(\w+)", Handler.put),
    (rf"/api/models/{NAME}/commit/main", Handler.commit),
    (rf"/api/models/{NAME}/tree/(\w+)", Handler.tree),
    (rf"/api/models/{NAME}(?:/revision/(\w+))?", Handler.info),
    (rf"/{NAME}/resolve/(\w+)/(.+)", Handler.resolve),
]


@contextmanager
def running() -> Iterator[FakeHub]:
    """A hub that answers until the end of the block."""
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
