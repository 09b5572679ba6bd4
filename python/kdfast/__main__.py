"""`python -m kdfast`: the command line of just this Python's installation."""

import sys

from kdfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
