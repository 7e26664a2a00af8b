"""The command `gpa serve`: one model behind OpenAI's interface for sound."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import socket
import threading
import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpa.cli import commands, options
from gpa.errors import MissingExtraError, UsageError
from gpa.serve.settings import Settings, keys_of

if TYPE_CHECKING:
    from fastapi import FastAPI

    from gpa.models.speechop.pipeline_speechop import SpeechOp

NONE = "none"  # no SpeechOp
BOUNDS = {
    "requests": ("N", "that are on their way at once; more are told to come again (429)"),
    "per_client": ("N", "the same of one client"),
    "upload_bytes": ("N", "of an upload, at most (413)"),
    "audio_seconds": ("S", "of an upload once it is decoded, at most"),
    "text_characters": ("N", "of a text, at most"),
    "seconds": ("S", "that a request may take (408)"),
    "seconds_per_second": ("S", "that it may take longer for each second of sound"),
    "drain_seconds": ("S", "that requests may go on after SIGTERM"),
}


def add(sub: Any) -> None:
    """Add the command to those of `gpa`."""
    p = options.command(
        sub, "serve", serve, "answer as OpenAI's audio interface does, and show a page", """\
  gpa serve --open
  gpa serve path/to/checkpoint --host 0.0.0.0 --port 80 --keys keys.txt
  gpa serve --uds /run/gpa.sock --speechop none

  curl http://127.0.0.1:8000/v1/audio/speech -d '{"input": "Good morning."}' \\
       -H 'Content-Type: application/json' -o morning.mp3

one process, one model: requests that come at the same time are computed together. SIGTERM or Ctrl-C ends it
once the requests on their way are answered. says on stderr where it listens. docs/server.md lists the routes.
"""
    )  # fmt: skip
    options.which(p)
    p.add_argument("--speechop", default="speechop-mini", metavar="M",
        help=f"SpeechOp that enhances; {NONE}: nobody does (default speechop-mini)")  # fmt: skip
    where = p.add_argument_group("address")
    where.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1: this machine alone")
    where.add_argument("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    where.add_argument("--uds", metavar="PATH", help="listen on a Unix socket instead")
    where.add_argument("--open", action="store_true", help="open the page in the browser")
    bounds = p.add_argument_group("bounds")
    given = {field.name: field.default for field in dataclasses.fields(Settings)}
    for name, (metavar, about) in BOUNDS.items():
        bounds.add_argument(f"--{name.replace('_', '-')}", type=type(given[name]), default=given[name],
            metavar=metavar, help=f"{about} (default {given[name]})")  # fmt: skip
    bounds.add_argument("--keys", type=Path, metavar="FILE",
        help="API keys, one a line; without it anybody may ask")  # fmt: skip
    bounds.add_argument("--voices", type=Path, metavar="FOLDER", help="where registered voices are kept")
    bounds.add_argument("--require-consent", action="store_true",
        help="register a voice only with a recording of its speaker's consent")  # fmt: skip
    options.engine(p)
    options.device(p)


def serve(args: argparse.Namespace) -> None:
    """Serve a model until a signal comes."""
    settings = _settings(args)
    try:
        from gpa.serve import process
        from gpa.serve.app import create_app
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "fastapi", "serve") from error

    with _listening(args) as listening:
        app = create_app(lambda: (commands.load(args), _speechop(args)), settings)
        where = f"unix:{args.uds}"
        if listening:
            host, port = listening.getsockname()[:2]
            where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        threading.Thread(target=_announce, args=(app, where, args.open), daemon=True).start()
        level = logging.INFO if args.verbose else logging.WARNING
        sockets = [listening] if listening else None
        process.run(
            app,
            settings.drain_seconds,
            sockets,
            uds=args.uds,
            log_level=level,
            timeout_keep_alive=75,
            ws_per_message_deflate=False,  # sound does not shrink
        )
        commands.say("the server has ended")


def _announce(app: FastAPI, where: str, show: bool) -> None:
    """Say where it serves, once it does."""
    while not app.state.service:
        time.sleep(0.05)
    commands.say(f"serving at {where}")
    if show and where.startswith("http"):
        webbrowser.open(where.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]"))


@contextlib.contextmanager
def _listening(args: argparse.Namespace) -> Any:
    """A socket of the address, before the model is loaded: what is taken is said at once."""
    if args.uds:
        yield None
        return
    if not 0 <= args.port < 1 << 16:
        raise UsageError(f"--port {args.port}: 0 to {(1 << 16) - 1}")
    try:
        family, _, _, _, address = socket.getaddrinfo(args.host, args.port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise UsageError(f"{args.host}:{args.port} ({error}): choose another --host or --port") from error
    with listening:
        yield listening


def _settings(args: argparse.Namespace) -> Settings:
    for name in BOUNDS:
        if getattr(args, name) <= 0:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(args, name)}: more than 0")
    keys = keys_of(args.keys) if args.keys else ()
    bounds = {name: getattr(args, name) for name in BOUNDS}
    return Settings(**bounds, keys=keys, voices=args.voices, require_consent=args.require_consent)


def _speechop(args: argparse.Namespace) -> SpeechOp | None:
    if args.speechop == NONE:
        return None
    from gpa.speechop import SpeechOp

    return SpeechOp.from_pretrained(args.speechop, device=args.device, offline=args.offline)
