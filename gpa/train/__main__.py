"""`python -m gpa.train` is `gpa train`, for launchers: every line says its rank."""

import logging
import os
import sys

from gpa.errors import GPAError
from gpa.train.command import main


def _command() -> int:
    rank = os.environ.get("RANK", "0")
    logging.basicConfig(
        format=f"%(levelname)s rank {rank}: %(message)s" if rank != "0" else "%(levelname)s %(message)s"
    )
    try:
        main()
    except GPAError as error:
        logging.getLogger("gpa.train").error("%s", error)
        return error.exit_code
    except OSError as error:  # a full disk: the checkpoint before is whole
        logging.getLogger("gpa.train").error("%s", error)
        return GPAError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_command())
