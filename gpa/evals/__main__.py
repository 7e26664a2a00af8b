"""`python -m gpa.evals` is `gpa eval`."""

import sys

from gpa.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
