"""The command line, a module for each group of commands.

A thin layer: each command turns its options into one call of the package and prints the result. Modules that
need torch are imported inside the commands, so that --help and --version are quick.
"""

from kdfast.cli import train, cluster, studies, jets, trigger, tools  # isort: skip  # in the order of --help; importing registers
from kdfast.cli.common import app
from kdfast.cli.entry import main

__all__ = ["app", "cluster", "jets", "main", "studies", "tools", "train", "trigger"]
