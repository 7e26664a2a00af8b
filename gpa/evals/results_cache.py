"""The folder of an evaluation: one line per item as soon as it is measured, so a killed run goes on.

The settings that decide an item's result stand in settings.json; lines made under other settings are never
mixed in. How many items are wanted is not among them: a longer run takes over those of a shorter one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpa import disk
from gpa.data.token_folder import write_json
from gpa.errors import UsageError
from gpa.evals.report_file import item_of

if TYPE_CHECKING:
    from gpa.evals.report import Item


class ResultsCache:
    """`store.done(suite)` are the items there, `store.add(suite, item)` keeps one more."""

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], suites: Iterable[str], fresh: bool = False
    ) -> None:
        """Open or make the folder; UsageError where it was measured under other settings, unless `fresh`.

        `fresh` removes the items of all `suites` that are there.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        there = [path for suite in suites if (path := self.path(suite)).exists()]
        if fresh:
            for path in there:
                path.unlink()
        wanted = json.loads(json.dumps(dict(settings)))
        held = self._settings() if there and not fresh else wanted
        if other := sorted(key for key in wanted.keys() | held.keys() if wanted.get(key) != held.get(key)):
            raise UsageError(
                f"{folder} holds items measured with other {', '.join(other)}: "
                "choose another --out, or measure all again with --fresh"
            )
        write_json(folder / "settings.json", wanted)

    def _settings(self) -> dict[str, Any]:
        path = self.folder / "settings.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def path(self, suite: str) -> Path:
        """Where the items of a suite are."""
        return self.folder / f"{suite}.jsonl"

    def done(self, suite: str) -> dict[str, Item]:
        """{id: item} of what was measured before; a last line that was cut off is taken away."""
        path = self.path(suite)
        if not path.exists():
            return {}
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            disk.write_bytes(path, whole)
        rows = [item_of(json.loads(line)) for line in whole.decode("utf-8").splitlines()]
        return {item.id: item for item in rows}

    def add(self, suite: str, item: Item) -> None:
        """One more line, on disk when this returns."""
        disk.append(self.path(suite), json.dumps(asdict(item), ensure_ascii=False) + "\n")
