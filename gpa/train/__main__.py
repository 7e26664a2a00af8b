"""`python -m gpa.train` is `gpa train`, for launchers: every line says its rank."""

import logging
import os
import sys
from typing import NoReturn

from gpa.errors import GPAError, Stopped
from gpa.train import signals
from gpa.train.command import main


def _command() -> int:
    rank = os.environ.get("RANK", "0")
    logging.basicConfig(
        format=f"%(levelname)s rank {rank}: %(message)s" if rank != "0" else "%(levelname)s %(message)s"
    )
    try:
        with signals.raised():
            main()
    except GPAError as error:
        logging.getLogger("gpa.train").error("%s", error)
        return error.exit_code
    except KeyboardInterrupt as error:
        logging.getLogger("gpa.train").error("%s; the same command goes on from there", error)
        return getattr(error, "exit_code", Stopped.exit_code)
    except OSError as error:  # no permission, a folder that is a file
        logging.getLogger("gpa.train").error("%s", error)
        return GPAError.exit_code
    return 0


def _leave(code: int) -> NoReturn:
    """End this process; among others of a run without the interpreter's end.

    DeepSpeed holds its groups of processes for good. A thread of gloo that lets go of a tensor while the
    interpreter ends is ended within C++, which aborts the process: a run that was done looks failed.
    """
    if "RANK" in os.environ:  # as launchers set it
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _leave(_command())
