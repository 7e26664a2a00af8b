"""`gpa finetune --voice FOLDER`: a recording folder becomes a model that knows the voice.

One file per stage: `collect` makes the training rows, `replay` the base model's own speech, `plan` says what
it will take, `compare` measures before and after; `job` does them in order. Each stage leaves a file that
appears whole, so the same command goes on after a kill.
"""

from gpa.finetune.job import Job, Outcome, finetune

__all__ = ["Job", "Outcome", "finetune"]
