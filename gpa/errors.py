"""Every error a user can meet, each with the exit code the command line returns for it.

An error message says what is wrong, with the file, key or number concerned, and what to do next.
"""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable

BROKEN_PIPE = 141  # as a shell reports signal 13


class GPAError(Exception):
    """Root of all errors raised on purpose by this package."""

    exit_code = 1


class UsageError(GPAError, ValueError):
    """A command, option or argument that does not fit."""

    exit_code = 2


class AudioError(GPAError, ValueError):
    """Audio that cannot be used; the message names the file and the fix."""

    exit_code = 3


class CheckpointError(GPAError):
    """A checkpoint that is missing, incomplete, or does not match its tokenizer, codec or vocabulary."""

    exit_code = 4


class VocabError(GPAError):
    """An id space with gaps, overlaps or missing names, or an id outside its range."""

    exit_code = 4  # a checkpoint's vocabulary is part of the checkpoint


class PromptError(GPAError, ValueError):
    """A request that cannot become a prompt: unknown task, missing part, or too long."""

    exit_code = 5


class GenerationError(GPAError, RuntimeError):
    """The model produced nothing usable."""

    exit_code = 6


class TrainingError(GPAError, RuntimeError):
    """Training that cannot go on: a loss or gradient that is no longer a number."""

    exit_code = 8


class DataError(GPAError, ValueError):
    """Training data that does not fit: a manifest row, too many rejected rows, another preparation."""

    exit_code = 9


class DiskError(GPAError):
    """A full disk, or a used-up quota; the message names the disk."""

    exit_code = 10


class MissingExtraError(GPAError, ImportError):
    """An optional dependency is absent; the message names the extra to install."""

    exit_code = 7

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: run  pip install 'gpa-audio[{extra}]'")


class Stopped(KeyboardInterrupt):
    """A signal that asked for the end; its exit code is the one a shell reports for it.

    No Exception, so that nothing takes it for a failure and goes on.
    """

    exit_code = 130  # of the Ctrl-C that Python raises by itself

    def __init__(self, signum: int, kept: str = "") -> None:
        self.exit_code = 128 + signum
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name}: {kept}" if kept else f"stopped by {name}")


class AudioWarning(UserWarning):
    """Audio that can be used but probably should not: silence, clipping, a short reference."""


class TextWarning(UserWarning):
    """Text that can be spoken in part: the message names what is left out."""


def exit_code(main: Callable[[], None], log: logging.Logger) -> int:
    """Run the main function of a module: talk on stderr, an error of ours as one line, its exit code."""
    logging.basicConfig(format="%(levelname)s %(message)s")
    logging.getLogger("gpa").setLevel(logging.INFO)
    try:
        main()
        sys.stdout.flush()
    except GPAError as error:
        log.error("%s", error)
        return error.exit_code
    except BrokenPipeError:
        return reader_gone()
    return 0


def reader_gone() -> int:
    """Exit code where the reader of our output has gone, as in `gpa asr *.wav | head -1`."""
    with contextlib.suppress(OSError, ValueError):  # Python flushes stdout once more on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE
