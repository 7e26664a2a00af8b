"""The GPA family: files of a checkpoint, generation, the model. Names are loaded on first use."""

from __future__ import annotations

from typing import Any

__all__ = ["GPA", "Speech", "Transcript", "Voice"]


def __getattr__(name: str) -> Any:
    if name == "GPA":
        from gpa.models.gpa.pipeline_gpa import GPA

        return GPA
    if name in __all__:
        from gpa.models.gpa import outputs_gpa

        return getattr(outputs_gpa, name)
    raise AttributeError(name)
