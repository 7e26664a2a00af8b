"""`python -m gpa.train` is `gpa train`, for launchers: every line says its rank."""

import logging
import os
import sys

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


if __name__ == "__main__":
    sys.exit(_command())
