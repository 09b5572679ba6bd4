"""DataFrames that pandas has written to HDF5, `frame.to_hdf(file, key=…, format="table")`, without PyTables.

PyTables unpickles attributes, so that a file from elsewhere could run code. The names of columns are all that
is needed of them: a pickled list of texts, whose opcodes are read here, and anything else refused.
"""

from __future__ import annotations

import pickletools
import re
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

__all__ = ["Places", "frame_columns", "frame_of", "is_fixed", "numbered"]

TEXTS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
GETS = {"GET", "BINGET", "LONG_BINGET"}
LISTS = {"PROTO", "FRAME", "MARK", "LIST", "EMPTY_LIST", "APPEND", "APPENDS", "STOP"}

Places = dict[str, tuple[str, int | None]]


def frame_of(group: h5py.Group) -> h5py.Dataset | None:
    """The dataset that holds the rows of a DataFrame; None where the group is no DataFrame in the format "table"."""
    kind = _fixed_attribute(group, "pandas_type")
    link = group.get("table", getlink=True) if "table" in list(group) else None
    if kind != b"frame_table" or not isinstance(link, h5py.HardLink):
        return None
    table = group["table"]
    return table if isinstance(table, h5py.Dataset) and table.dtype.names else None


def _fixed_attribute(item: h5py.Group | h5py.Dataset, name: str) -> Any:
    """An attribute of fixed length, as pandas writes; None for others: HDF5 may never return from a damaged one."""
    if name not in item.attrs:
        return None
    kind = item.attrs.get_id(name).dtype
    return item.attrs[name] if kind.kind == "S" else None


def is_fixed(group: h5py.Group) -> bool:
    """Whether a group is a DataFrame in pandas' other format, which is not read."""
    return bool(_fixed_attribute(group, "pandas_type") == b"frame")


def frame_columns(table: h5py.Dataset) -> Places:
    """Column → its field, which holds all columns of one type, and the position there (None: it is a field of its own).

    Raises ValueError where the names are not what pandas writes.
    """
    found: Places = {}
    for field in table.dtype.names:
        kind = _fixed_attribute(table, f"{field}_kind")
        if field == "index" or kind is None:
            continue
        alone = not table.dtype[field].shape
        for position, name in enumerate(_texts(bytes(kind))):
            found[name] = (field, None if alone else position)
    return found


def _texts(pickled: bytes) -> list[str]:
    """The texts of a pickled list of texts."""
    found: list[str] = []
    memo: dict[Any, str] = {}
    last = ""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in TEXTS:
            last = str(argument)
            found.append(last)
        elif opcode.name in GETS:
            last = memo.get(argument, "")
            found.append(last)
        elif opcode.name in PUTS:
            memo[len(memo) if opcode.name == "MEMOIZE" else argument] = last
        elif opcode.name not in LISTS:
            raise ValueError(f"column names are not plain text ({opcode.name})")
    return found


def numbered(columns: Places, pattern: str) -> tuple[str, NDArray[np.int64]] | None:
    """(field, positions) of the columns that a pattern with * means: numbers from 0 on. None: there are none.

    Raises ValueError where a number is left out, or columns are of different types.
    """
    before, _, after = pattern.partition("*")
    expression = re.compile(re.escape(before) + "([0-9]{1,6})" + re.escape(after))
    matches = [expression.fullmatch(name) for name in columns]
    numbers = {int(match[1]): columns[match[0]] for match in matches if match}
    if not numbers:
        return None
    for number in range(len(numbers)):
        if number not in numbers:
            raise ValueError(f"{pattern.replace('*', str(number))} is missing among {len(numbers)} columns")
    fields = {field for field, _ in numbers.values()}
    positions = [numbers[number][1] for number in range(len(numbers))]
    if len(fields) > 1 or None in positions:
        raise ValueError("these columns are of different types")
    return fields.pop(), np.array(positions)
