"""gpa: one audio-token language model for speech from text, text from speech, and speech in another voice.

The public names below are fetched when first used, so that `import gpa` loads neither torch nor a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpa.audio import load as load_audio
    from gpa.codec import load_codec
    from gpa.errors import GPAError
    from gpa.models.gpa import GPA, Speech, Transcript, Voice
    from gpa.models.speechop.outputs_speechop import Sound
    from gpa.speechop import SpeechOp

__all__ = [
    "GPA",
    "GPAError",
    "Sound",
    "Speech",
    "SpeechOp",
    "Transcript",
    "Voice",
    "__version__",
    "load_audio",
    "load_codec",
]

_HOME = {  # public name -> module, name there
    "GPA": ("gpa.models.gpa", "GPA"),
    "GPAError": ("gpa.errors", "GPAError"),
    "Sound": ("gpa.models.speechop.outputs_speechop", "Sound"),
    "Speech": ("gpa.models.gpa", "Speech"),
    "SpeechOp": ("gpa.speechop", "SpeechOp"),
    "Transcript": ("gpa.models.gpa", "Transcript"),
    "Voice": ("gpa.models.gpa", "Voice"),
    "load_audio": ("gpa.audio", "load"),
    "load_codec": ("gpa.codec", "load_codec"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _HOME:
        from importlib import import_module

        module, attribute = _HOME[name]
        value = getattr(import_module(module), attribute)
    else:
        raise AttributeError(f"module 'gpa' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("gpa-audio")
    except metadata.PackageNotFoundError:
        return "0+checkout"  # used from a source tree that was never installed
