"""Damages to files: flipped bits, cuts, copied and zeroed ranges, numbers in place of others, changes near names."""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from random import Random

from tests.fuzz.files import FORMATS

__all__ = ["mutant"]

NUMBERS = (0, 1, 2, 7, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


class _Draws(Random):
    """Random numbers, and positions in a file: those in `rare` seldom."""

    rare = range(0)

    def position(self, content: bytes | bytearray) -> int:
        return self._seldom_rare(lambda: self.randrange(len(content)))

    def position_of(self, places: Sequence[int]) -> int:
        return self._seldom_rare(lambda: self.choice(places))

    def _seldom_rare(self, draw: Callable[[], int]) -> int:
        found = draw()
        while found in self.rare and self.random() < 0.9:
            found = draw()
        return found


def mutant(name: str, contents: Sequence[bytes], seed: int) -> bytes:
    """A damaged file of a format, made of one of these valid ones. The same for the same contents and seed."""
    random = _Draws(f"{name} {seed}")
    content = random.choice(contents)
    if FORMATS[name].inside and random.random() < FORMATS[name].inside:
        return _inside_zip(content, random)
    random.rare = FORMATS[name].rare(content)
    return _damaged(content, random)


def _damaged(content: bytes, random: _Draws) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        if changed:
            random.choice(KINDS)(changed, random)
    return bytes(changed)


def _inside_zip(content: bytes, random: _Draws) -> bytes:
    """Damages a member of a zip archive, whose checksum is then right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    chosen = random.choice(sorted(members))
    members[chosen] = _damaged(members[chosen], random)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, part in members.items():
            archive.writestr(zipfile.ZipInfo(name), part)
    return buffer.getvalue()


def _range(content: bytearray, random: _Draws) -> tuple[int, int]:
    start = random.position(content)
    return start, min(len(content), start + random.choice((1, 2, 4, 8, 16, 64, 512, 4096)))


def _flip(content: bytearray, random: _Draws) -> None:
    for _ in range(random.choice((1, 1, 2, 5))):
        content[random.position(content)] ^= 1 << random.randrange(8)


def _cut(content: bytearray, random: _Draws) -> None:
    del content[random.position(content) :]


def _zero(content: bytearray, random: _Draws) -> None:
    start, stop = _range(content, random)
    content[start:stop] = bytes(stop - start)


def _copy_over(content: bytearray, random: _Draws) -> None:
    start, stop = _range(content, random)
    target = random.position(content)
    content[target : target + stop - start] = content[start:stop]


def _insert_copy(content: bytearray, random: _Draws) -> None:
    start, stop = _range(content, random)
    target = random.position(content)
    content[target:target] = content[start:stop]


def _remove(content: bytearray, random: _Draws) -> None:
    start, stop = _range(content, random)
    del content[start:stop]


def _number(content: bytearray, random: _Draws) -> None:
    _put_number(content, random.position(content), random)


def _put_number(content: bytearray, at: int, random: _Draws) -> None:
    width = random.choice((1, 2, 4, 8))
    order = random.choice("<>")
    at -= at % random.choice((1, width))
    if at + width > len(content):
        return
    kind = order + {1: "B", 2: "H", 4: "I", 8: "Q"}[width]
    now = struct.unpack_from(kind, content, at)[0]
    value = random.choice((*NUMBERS, now + 1, now - 1, now * 2, now // 2, now ^ 0x80, random.randrange(2**64)))
    struct.pack_into(kind, content, at, value % 2 ** (8 * width))


def _near_name(content: bytearray, random: _Draws) -> None:
    """A number or a bit near a text, where names, types and sizes of columns and attributes are."""
    texts = [match.start() for match in re.finditer(rb"[A-Za-z_][A-Za-z0-9_/]{3,}", content)]
    if not texts:
        return
    at = random.position_of(texts) + random.randrange(-64, 96)
    if 0 <= at < len(content):
        if random.random() < 0.5:
            content[at] ^= 1 << random.randrange(8)
        else:
            _put_number(content, at, random)


KINDS = (_flip, _flip, _cut, _zero, _copy_over, _insert_copy, _remove, _number, _number, _near_name, _near_name)
