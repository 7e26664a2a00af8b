"""Recordings that may stand on a page beside what was made from them: whose licence lets anyone pass them on.

Attribution alone may be asked (CC-BY), or nothing (CC0, public domain); not share-alike, non-commercial or
no-derivatives, as the page is part of a project under another licence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gpa.errors import UsageError
from gpa.evals import items

if TYPE_CHECKING:
    from gpa.evals.items import Row

FREE = re.compile(r"(cc[- ]?by([- ]\d[\d.]*)?|cc[- ]?0([- ]\d[\d.]*)?|public[- ]domain)", re.IGNORECASE)
CREDITED = re.compile(r"cc[- ]?by", re.IGNORECASE)


class Clips:
    """Rows of a manifest by id; without a data folder nothing is known of any clip."""

    def __init__(self, data: Path | None, references: bool) -> None:
        if references and data is None:
            raise UsageError("--references needs --data: the folder with the recordings and their licences")
        self.data, self.references = data, references
        rows = items.read_manifest(items.data_root(data)) if data is not None else []
        self.rows: Mapping[str, Row] = {str(row["id"]): row for row in rows}

    def row(self, name: str) -> Row:
        """What the manifest says about a clip; UsageError where the data is not that of the evaluation."""
        if self.data is not None and name not in self.rows:
            raise UsageError(
                f"{self.data}: its manifest has no clip {name}; give the data that was evaluated"
            )
        return self.rows.get(name, {})

    def about(self, name: str) -> str:
        """A clip in words: id, corpus, licence, as far as known."""
        row = self.row(name)
        known = [str(row[key]) for key in ("corpus", "licence") if row.get(key)]
        return ", ".join([f"`{name}`", *known])

    def path(self, name: str) -> Path | None:
        """The sound of a clip if it is to be shown and may be."""
        row = self.row(name)
        if not self.references or self.data is None or not is_free(str(row.get("licence") or "")):
            return None
        return self.data / "speech" / str(row["path"])


def is_free(licence: str) -> bool:
    """Whether a licence lets recordings be passed on with no more than a credit."""
    return FREE.fullmatch(licence.strip()) is not None


def needs_credit(licence: str) -> bool:
    """Whether it asks for a credit."""
    return is_free(licence) and CREDITED.match(licence.strip()) is not None
