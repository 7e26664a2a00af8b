"""Decoding: prompts of ids to completions of ids. `Request` -> `Engine.add`, `Engine.step` -> `Completion`.

Knows no task, no text, no sound: which ids are legal and where to stop are part of a request.
"""
