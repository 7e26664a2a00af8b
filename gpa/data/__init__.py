"""Corpora checked and encoded, rows and batches for training; knows no training."""

from __future__ import annotations

from typing import Any

from gpa.errors import MissingExtraError


def require_datasets() -> Any:
    """The `datasets` package; MissingExtraError without it."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "train") from error
    return datasets
