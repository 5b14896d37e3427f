"""`python -m fastpresence` is the command `fastpresence`."""

import sys

from fastpresence.cli import main

if __name__ == "__main__":
    sys.exit(main())
