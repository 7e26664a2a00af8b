"""Voices by name: those that a model ships, and those that were registered, one file each.

A file is a voice as `gpa voice` writes it, `about` it what its registration said. It appears whole or not at
all, under a name that the server chose; names that clients give are never paths.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpa import disk
from gpa.errors import GPAError, UsageError
from gpa.serve.consents import ConsentError, Consents

if TYPE_CHECKING:
    from gpa.codec.voice import Voice
    from gpa.models.gpa import GPA

logger = logging.getLogger(__name__)

LOADED = 256  # registered voices that are kept in memory, those used last
MOST = 1000  # that may be registered
NUMBERS = ("created_at", "file_size")


class Library(Mapping[str, "Voice"]):
    """What voices there are, by name; a registered one by its id as well."""

    def __init__(self, model: GPA, folder: Path | None) -> None:
        """Without a folder registered voices last as long as the process; with one it is held by one server.

        What another process left half written is removed; a file that cannot be used is left alone.
        """
        self._model, self._folder = model, folder
        self._about: dict[str, dict[str, Any]] = {}  # of registered voices, by id
        self._ids: dict[str, str] = {}  # by name
        self._loaded: OrderedDict[str, Voice] = OrderedDict()
        self._lock = threading.Lock()
        self._held = contextlib.ExitStack()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(disk.held(folder, "server"))
            self._find(folder)
        self.consents = Consents(folder)

    def close(self) -> None:
        """Let go of the folder."""
        self._held.close()

    def _find(self, folder: Path) -> None:
        for left in folder.glob(".voice_*.tmp*"):
            left.unlink(missing_ok=True)
        for path in sorted(folder.glob("voice_*.json")):
            try:
                voice = self._model.resolve_voice(path)
                self._enter(path.stem, voice)
            except (GPAError, ValueError) as error:
                logger.warning("%s is not served: %s", path, error)

    def _enter(self, ident: str, voice: Voice) -> None:
        about = {key: int(value) if key in NUMBERS else value for key, value in voice.about.items()}
        self._about[ident] = {"id": ident, "object": "audio.voice", "name": voice.name, **about}
        self._ids[voice.name] = ident
        self._keep(ident, voice)

    def _keep(self, ident: str, voice: Voice) -> None:
        self._loaded[ident] = voice
        self._loaded.move_to_end(ident)
        while self._folder is not None and len(self._loaded) > LOADED:
            self._loaded.popitem(last=False)

    def check_name(self, name: str) -> None:
        """UsageError unless a voice may be registered by this name."""
        if not (0 < len(name) <= 64 and name.isprintable() and name == name.strip() and "/" not in name):
            raise UsageError("a voice's name has 1 to 64 printable characters, and no slash")
        if name in self:
            raise UsageError(f"there is a voice {name!r} already: choose another name, or delete it")
        if len(self._about) >= MOST:
            raise UsageError(f"{MOST} voices are registered, the limit: delete one")

    def register(self, voice: Voice, consent_required: bool = False) -> dict[str, Any]:
        """Keep a named voice; what is told of it.

        UsageError for its name, ConsentError for its consent, DiskError where it is full.
        """
        ident = f"voice_{uuid.uuid4().hex[:24]}"
        voice = replace(voice, about={"created_at": str(int(time.time())), **voice.about})
        with self._lock:
            self.check_name(voice.name)
            self.consents.check(voice.about.get("consent"), consent_required)
            if self._folder is not None:
                voice.save(self._folder / f"{ident}.json")
            self._enter(ident, voice)
        return self._about[ident]

    def remove(self, name: str) -> str:
        """Forget a registered voice, by name or id; its id. KeyError if there is none."""
        with self._lock:
            ident = self._ids.get(name, name)
            about = self._about.pop(ident)
            del self._ids[about["name"]]
            self._loaded.pop(ident, None)
            if self._folder is not None:
                (self._folder / f"{ident}.json").unlink(missing_ok=True)
        return ident

    def add_consent(self, name: str, language: str, recording: bytes) -> dict[str, Any]:
        """Keep a consent; see `Consents.add`."""
        with self._lock:
            return self.consents.add(name, language, recording)

    def rename_consent(self, ident: str, name: str) -> dict[str, Any]:
        """Call a consent otherwise. KeyError if there is none."""
        with self._lock:
            return self.consents.rename(ident, name)

    def withdraw_consent(self, ident: str) -> None:
        """Forget a consent. KeyError if there is none, ConsentError while a voice rests on it."""
        with self._lock:
            self.consents.about(ident)
            resting = [each["name"] for each in self._about.values() if each.get("consent") == ident]
            if resting:
                what = f"voices rest on {ident}: {', '.join(resting)}; delete them first"
                raise ConsentError(what, "consent_in_use")
            self.consents.remove(ident)

    def about(self, name: str) -> dict[str, Any]:
        """What is told of a voice. KeyError if there is none."""
        ident = self._ids.get(name, name)
        if ident in self._about:
            return self._about[ident]
        shipped = self._model.voices[name]
        return {"id": name, "object": "audio.voice", "name": name, "created_at": 0, **shipped.about}

    def __getitem__(self, name: str) -> Voice:
        if name in self._model.voices:
            return self._model.voices[name]
        with self._lock:
            ident = self._ids.get(name, name)
            voice = self._loaded.get(ident)
            if voice is None:
                if self._folder is None or ident not in self._about:
                    raise KeyError(name)
                voice = self._model.resolve_voice(self._folder / f"{ident}.json")
            self._keep(ident, voice)
            return voice

    def __contains__(self, name: object) -> bool:
        return name in self._model.voices or name in self._ids or name in self._about

    def __iter__(self) -> Iterator[str]:
        return iter([*self._model.voices, *self._ids])

    def __len__(self) -> int:
        return len(self._model.voices) + len(self._ids)
