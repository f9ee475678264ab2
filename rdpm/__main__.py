"""`python -m rdpm` is the command `rdpm`."""

import sys

from rdpm.jobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
