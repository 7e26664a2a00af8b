"""Where the sound of a command goes: a file, or standard output; at once, or when all of it is there."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gpa import audio, disk
from gpa.errors import AudioError

Write = Callable[[np.ndarray], object]


@contextlib.contextmanager
def destination(output: str, sample_rate: int, stream: bool = False) -> Iterator[Write]:
    """A function that takes sound (S,) for `output`, a path or - for a WAV on standard output.

    A `stream` is there to be heard from the first sample on; all else appears whole or not at all, with the
    true sizes in its header. What an error interrupts leaves no file; of a stream that somebody stops, what
    was heard is kept.
    """
    if output == "-":
        with _piped(sample_rate, stream) as write:
            yield write
    elif stream and Path(output).suffix.lower() == ".wav":
        with disk.room(output), _growing(Path(output), sample_rate) as write:
            yield write
    else:
        with disk.room(output), audio.writing(output, sample_rate) as write:
            yield write


@contextlib.contextmanager
def _piped(sample_rate: int, stream: bool) -> Iterator[Write]:
    whole = io.BytesIO()
    wav = audio.WavStream(sys.stdout.buffer if stream else whole, sample_rate)
    yield wav.write
    wav.close()
    sys.stdout.buffer.write(whole.getvalue())
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def _growing(path: Path, sample_rate: int) -> Iterator[Write]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    except OSError as error:
        raise AudioError(f"{path} cannot be written ({error.strerror}): choose another place") from error
    with file:
        wav = audio.WavStream(file, sample_rate)
        try:
            yield wav.write
            wav.close()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and wav.seconds:
                wav.close()
                print(f"gpa: {path} keeps {wav.seconds:.1f} s", file=sys.stderr)
            else:
                path.unlink(missing_ok=True)
            raise
