"""The page at `/`: a few files of HTML, CSS and JavaScript, as they are, and nothing from anywhere else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from gpa.serve.failures import Failure

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
POLICY = (  # of content: only what this server gives, and no script or style inside the page
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; "
    "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # kept, but asked about every time: a new version counts at once
}


@dataclass(frozen=True)
class Asset:
    """A file of the page, and the tag by which a browser knows the version that it has."""

    data: bytes
    media_type: str

    @property
    def tag(self) -> str:
        """Changes with the content."""
        return f'"{hashlib.sha256(self.data).hexdigest()[:20]}"'

    def answer(self, request: Request) -> Response:
        """The file, or that the browser has it already."""
        headers = HEADERS | {"ETag": self.tag}
        if self.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.data, media_type=self.media_type, headers=headers)


def _assets() -> dict[str, Asset]:
    """All files of the page by name: what is not in this list is not opened."""
    found = {path.name: path for path in files(__name__).iterdir()}
    kinds = {name: TYPES.get(name.rpartition(".")[2]) for name in found}
    return {name: Asset(found[name].read_bytes(), kind) for name, kind in kinds.items() if kind}


ASSETS = _assets()
router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The page."""
    return ASSETS["index.html"].answer(request)


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def asset(name: str, request: Request) -> Response:
    """A file that the page is made of."""
    if name not in ASSETS:
        raise Failure(404, f"the page has no file {name!r}", code="not_found")
    return ASSETS[name].answer(request)
