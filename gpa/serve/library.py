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
TICK = 2 * 10**9  # ns: a folder changed so lately may change again and show the same time


class Library(Mapping[str, "Voice"]):
    """What voices there are, by name; a registered one by its id as well."""

    def __init__(self, model: GPA, folder: Path | None) -> None:
        """Without a folder registered voices last as long as the process; servers may share one.

        What another process left half written is removed; a file that cannot be used is left alone.
        """
        self._model, self._folder = model, folder
        self._about: dict[str, dict[str, Any]] = {}  # of registered voices, by id
        self._ids: dict[str, str] = {}  # by name
        self._loaded: OrderedDict[str, Voice] = OrderedDict()
        self._useless: set[str] = set()  # files that are no voices of this model
        self._seen = 0  # when the folder had changed that was read last
        self._lock = threading.Lock()  # of all the above; nobody who has it waits for a disk's locks
        self._changes = threading.Lock()
        self._consents = Consents(folder)
        with self._turn():
            self._consents.clean()
            for left in folder.glob(".voice_*.tmp*") if folder else ():  # its writer had no turn any more
                left.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """The only one who changes what is registered, of all servers of the folder."""
        alone = disk.turn(self._folder) if self._folder else contextlib.nullcontext()
        with self._changes, alone:
            with self._lock:
                self._look()
            yield

    def _look(self) -> None:
        """Know what other servers registered and deleted, if the folder has changed since the last look."""
        if self._folder is None:
            return
        changed = self._folder.stat().st_mtime_ns
        if changed == self._seen:
            return
        there = {path.stem: path for path in self._folder.glob("voice_*.json")}
        for ident in self._about.keys() - there.keys():
            self._forget(ident)
        for ident in sorted(there.keys() - self._about.keys() - self._useless):
            try:
                self._enter(ident, self._model.resolve_voice(there[ident]))
            except (GPAError, ValueError) as error:
                logger.warning("%s is not served: %s", there[ident], error)
                self._useless.add(ident)
        self._consents.look()
        self._seen = changed if time.time_ns() - changed > TICK else 0

    def _enter(self, ident: str, voice: Voice) -> None:
        about = {key: int(value) if key in NUMBERS else value for key, value in voice.about.items()}
        self._about[ident] = {"id": ident, "object": "audio.voice", "name": voice.name, **about}
        self._ids[voice.name] = ident
        self._keep(ident, voice)

    def _forget(self, ident: str) -> None:
        del self._ids[self._about.pop(ident)["name"]]
        self._loaded.pop(ident, None)

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
            raise UsageError(f"there is a voice {name!r} already: choose another name")
        if len(self._about) >= MOST:
            raise UsageError(f"{MOST} voices are registered, the limit: delete one")

    def register(self, voice: Voice, consent_required: bool = False) -> dict[str, Any]:
        """Keep a named voice; what is told of it.

        UsageError for its name, ConsentError for its consent, DiskError where it is full.
        """
        ident = f"voice_{uuid.uuid4().hex[:24]}"
        voice = replace(voice, about={"created_at": str(int(time.time())), **voice.about})
        with self._turn():
            self.check_name(voice.name)
            self._consents.check(voice.about.get("consent"), consent_required)
            if self._folder is not None:
                voice.save(self._folder / f"{ident}.json")
            with self._lock:
                self._enter(ident, voice)
                return self._about[ident]

    def remove(self, name: str) -> str:
        """Forget a registered voice, by name or id; its id. KeyError if there is none."""
        with self._turn():
            ident = self._ids.get(name, name)
            if ident not in self._about:
                raise KeyError(name)
            if self._folder is not None:
                (self._folder / f"{ident}.json").unlink(missing_ok=True)
            with self._lock:
                self._look()
                if ident in self._about:  # unless the look saw that the file is gone
                    self._forget(ident)
        return ident

    @property
    def consents(self) -> Consents:
        """Those that there are; to change them there are the methods below."""
        with self._lock:
            self._look()
        return self._consents

    def add_consent(self, name: str, language: str, recording: bytes) -> dict[str, Any]:
        """Keep a consent; see `Consents.add`."""
        with self._turn():
            return self._consents.add(name, language, recording)

    def rename_consent(self, ident: str, name: str) -> dict[str, Any]:
        """Call a consent otherwise. KeyError if there is none."""
        with self._turn():
            return self._consents.rename(ident, name)

    def withdraw_consent(self, ident: str) -> None:
        """Forget a consent. KeyError if there is none, ConsentError while a voice rests on it."""
        with self._turn():
            self._consents.about(ident)
            resting = [each["name"] for each in list(self._about.values()) if each.get("consent") == ident]
            if resting:
                what = f"voices rest on {ident}: {', '.join(resting)}; delete them first"
                raise ConsentError(what, "consent_in_use")
            self._consents.remove(ident)

    def about(self, name: str) -> dict[str, Any]:
        """What is told of a voice. KeyError if there is none."""
        with self._lock:
            self._look()
            ident = self._ids.get(name, name)
            if ident in self._about:
                return self._about[ident]
        return self._shipped(name)

    def listed(self) -> list[dict[str, Any]]:
        """What is told of every voice that there is at one moment."""
        with self._lock:
            self._look()
            registered = list(self._about.values())
        return [*map(self._shipped, self._model.voices), *registered]

    def _shipped(self, name: str) -> dict[str, Any]:
        about = self._model.voices[name].about
        return {"id": name, "object": "audio.voice", "name": name, "created_at": 0, **about}

    def __getitem__(self, name: str) -> Voice:
        if name in self._model.voices:
            return self._model.voices[name]
        with self._lock:
            self._look()
            ident = self._ids.get(name, name)
            voice = self._loaded.get(ident)
            if voice is None:
                if self._folder is None or ident not in self._about:
                    raise KeyError(name)
                try:
                    voice = self._model.resolve_voice(self._folder / f"{ident}.json")
                except GPAError as error:  # it was deleted after the look
                    raise KeyError(name) from error
            self._keep(ident, voice)
            return voice

    def __contains__(self, name: object) -> bool:
        with self._lock:
            self._look()
            return name in self._model.voices or name in self._ids or name in self._about

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            self._look()
            return iter([*self._model.voices, *self._ids])

    def __len__(self) -> int:
        return sum(1 for _ in self)
