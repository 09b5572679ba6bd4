"""Counts the instructions of kernels in what nvdisasm prints of a cubin: a performance test that needs no GPU."""

import re
from collections.abc import Iterable
from typing import NamedTuple

SECTION = re.compile(r"\s*\.section\s+\.text\.(\w+)")
LABEL = re.compile(r"(\.L_x_\d+):")
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?P<predicate>@!?U?P\w+\s+)?(?P<name>[A-Z]\w*)(?P<rest>[^;]*);")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")


class Loop(NamedTuple):
    """The innermost of loops: instructions from the target of its backward branch to the branch."""

    instructions: int
    products: int  # of them by tensor cores


class Counts(NamedTuple):
    """instructions: all but the padding. loops: the innermost ones that use tensor cores, in their order."""

    instructions: int
    loops: tuple[Loop, ...]


class _Code:
    """A kernel's instructions, labels and branches, by their place among the instructions."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.labels: dict[str, int] = {}
        self.branches: list[tuple[int, str]] = []  # to labels
        self.ends: list[int] = []  # exits that every thread takes

    def add(self, line: str) -> None:
        if label := LABEL.match(line):
            self.labels[label[1]] = len(self.names)
        elif (instruction := INSTRUCTION.match(line)) and instruction["name"] != "NOP":
            name, place = instruction["name"], len(self.names)
            self.names.append(name)
            if name == "BRA" and (target := TARGET.search(instruction["rest"])):
                self.branches.append((place, target[1]))
            if name == "EXIT" and not instruction["predicate"]:
                self.ends.append(place)

    def loops(self) -> list[range]:
        """From the target of each backward branch to the last branch to it. ptxas puts rare code behind a kernel's
        exit, from where branches lead back as well: they are no loops."""
        found: dict[int, int] = {}
        for place, label in self.branches:
            first = self.labels[label]
            if first <= place and not any(first <= end < place for end in self.ends):
                found[first] = max(place, found.get(first, place))
        return [range(first, last + 1) for first, last in sorted(found.items())]

    def counts(self) -> Counts:
        products = [name == "HMMA" for name in self.names]
        loops = [loop for loop in self.loops() if any(products[i] for i in loop)]
        innermost = [a for a in loops if not any(a != b and b[0] in a and b[-1] in a for b in loops)]
        return Counts(len(self.names), tuple(Loop(len(a), sum(products[i] for i in a)) for a in innermost))


def read_instructions(lines: Iterable[str]) -> dict[str, Counts]:
    """{mangled name of a kernel: its counts}."""
    kernels: dict[str, _Code] = {}
    code: _Code | None = None
    for line in lines:
        if section := SECTION.match(line):
            code = kernels.setdefault(section[1], _Code())
        elif code is not None:
            code.add(line)
    return {name: code.counts() for name, code in kernels.items()}
