"""The command `kdfast` as `python -m tests.study.run_cli`."""

import sys

from kdfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
