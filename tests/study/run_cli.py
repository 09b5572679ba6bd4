"""The command `kdfast` as `python -m tests.study.run_cli`, without drawing figures."""

import sys

from kdfast.cli import main
from tests.undrawn import undrawn_figures

if __name__ == "__main__":
    with undrawn_figures():
        sys.exit(main())
