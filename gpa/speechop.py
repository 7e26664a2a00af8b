"""`gpa.SpeechOp`: the family's class, which by itself knows no recogniser, with ours as the usual one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gpa.models.gpa.pipeline_gpa import GPA
from gpa.models.speechop import pipeline_speechop

if TYPE_CHECKING:
    from gpa.models.speechop.words_speechop import Recogniser

RECOGNISER = "gpa-mini"


class SpeechOp(pipeline_speechop.SpeechOp):
    """One diffusion model for many speech tasks; without a `recogniser` the shipped GPA model listens.

    That is loaded when it is first needed, as is a GPA model given by path, repository id or shipped name.
    See `gpa.models.speechop.pipeline_speechop.SpeechOp`.
    """

    def load_recogniser(self, name: str | os.PathLike | None) -> Recogniser:
        """The GPA model of a path, repository id or shipped name."""
        # Loaded within a request, so the number of threads stays what it was.
        return GPA.from_pretrained(name or RECOGNISER, device=self.device, offline=self.offline, threads=0)
