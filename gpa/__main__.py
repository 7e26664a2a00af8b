"""`python -m gpa` is the command `gpa`."""

import sys

from gpa.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
