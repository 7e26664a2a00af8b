"""`gpa finetune --voice FOLDER`: a folder of recordings becomes a model that knows the voice.

One file per stage: `collect` makes the training rows, `replay` the base model's own speech, `estimate` says
what it will take, `comparison` measures before and after; `job` does them in order. Each stage leaves a file
that appears whole, so the same command goes on after a kill.
"""
