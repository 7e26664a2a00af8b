"""Consents to copy a voice: the recording in which somebody agrees, kept as it came, and its name."""

from __future__ import annotations

import contextlib
import json
import logging
import time
import uuid
from pathlib import Path
from typing import Any

from gpa import disk, hub
from gpa.errors import GPAError, UsageError

logger = logging.getLogger(__name__)

MOST = 1000  # that may be kept
PREFIX = "cons_"


class ConsentError(GPAError):
    """A voice without the consent that it needs; `code` tells programs why."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Consents:
    """Consents by id, oldest first. Whoever changes them is alone with the folder; `look` follows others.

    With a folder each is two files. The recording is written first and removed last, so that a consent has
    its recording whenever it is there. Without one they last as long as the process, without recordings.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._about: dict[str, dict[str, Any]] = {}
        self._read: dict[
            Path, tuple[int, dict[str, Any] | None]
        ] = {}  # when it had changed, and what it says

    def clean(self) -> None:
        """Remove what another process left half written; the folder is the caller's alone."""
        if self._folder is None:
            return
        for left in self._folder.glob(f".{PREFIX}*.tmp*"):
            left.unlink(missing_ok=True)
        for recording in self._folder.glob(f"{PREFIX}*.recording"):
            if not recording.with_suffix(".json").exists():
                recording.unlink(missing_ok=True)

    def look(self) -> None:
        """Know what is in the folder; a file that cannot be used is left alone."""
        if self._folder is None:
            return
        read = {}
        for path in self._folder.glob(f"{PREFIX}*.json"):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                changed, known = path.stat().st_mtime_ns, self._read.get(path)
                read[path] = known if known and known[0] == changed else (changed, _about(path))
        self._read = read
        found = [about for _, about in read.values() if about]
        self._about = {about["id"]: about for about in sorted(found, key=lambda each: each["id"])}

    def add(self, name: str, language: str, recording: bytes) -> dict[str, Any]:
        """Keep one; what is told of it. UsageError where there are too many, DiskError where it is full."""
        if len(self._about) >= MOST:
            raise UsageError(f"{MOST} consents are kept, the limit: delete one")
        ident = f"{PREFIX}{time.time_ns():016x}{uuid.uuid4().hex[:8]}"  # in the order of time
        about: dict[str, Any] = {"id": ident, "object": "audio.voice_consent", "name": name}
        about |= {"language": language, "created_at": int(time.time())}
        if self._folder is not None:
            disk.write_bytes(self._folder / f"{ident}.recording", recording)
        self._write(about)
        return about

    def rename(self, ident: str, name: str) -> dict[str, Any]:
        """Call one otherwise. KeyError if there is none."""
        about = self._about[ident] | {"name": name}
        self._write(about)
        return about

    def remove(self, ident: str) -> None:
        """Forget one. KeyError if there is none."""
        self._about.pop(ident)
        if self._folder is not None:
            for suffix in ("json", "recording"):
                (self._folder / f"{ident}.{suffix}").unlink(missing_ok=True)

    def check(self, consent: str | None, required: bool) -> None:
        """ConsentError unless a voice may be copied with this consent.

        Where none is `required`, words that are no id are taken as they are.
        """
        if consent is None or (required and not consent.startswith(PREFIX)):
            if required:
                what = "a voice needs the id of a consent: upload the recording to /v1/audio/voice_consents"
                raise ConsentError(what, "consent_required")
        elif consent.startswith(PREFIX) and consent not in self._about:
            raise ConsentError(f"there is no consent {consent!r:.100}, or no longer", "consent_not_found")

    def about(self, ident: str) -> dict[str, Any]:
        """What is told of one. KeyError if there is none."""
        return self._about[ident]

    def newest(self) -> list[dict[str, Any]]:
        """What is told of all, the newest first."""
        return list(reversed(self._about.values()))

    def _write(self, about: dict[str, Any]) -> None:
        if self._folder is not None:
            disk.write_text(
                self._folder / f"{about['id']}.json", json.dumps(about, ensure_ascii=False) + "\n"
            )
        self._about[about["id"]] = about


def _about(path: Path) -> dict[str, Any] | None:
    """What a file tells of a consent, None if it is none."""
    with contextlib.suppress(GPAError, KeyError, TypeError, ValueError):
        about = hub.read_json(path)
        texts = [about[key] for key in ("id", "object", "name", "language")]
        whole = path.stem == about["id"] and path.with_suffix(".recording").is_file()
        if whole and all(isinstance(text, str) for text in texts) and isinstance(about["created_at"], int):
            return dict(about)
    logger.warning("%s is not served: it is no consent with its recording", path)
    return None
