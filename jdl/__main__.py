"""`python -m jdl`: the command `jdl`."""

import sys

from jdl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
