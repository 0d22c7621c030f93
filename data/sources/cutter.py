"""Where the rows of a JSON array begin and end, found by brackets and quotes alone: nothing is parsed, little is held.

Parsing 2 GB in one process only to hand it to others would be the slowest step of all. Here each block is reduced to
the positions of quotes, backslashes and brackets, and only those few are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 1 << 23
# No row of any known set comes near; an unclosed quote would otherwise make one row of the rest of the file.
MAX_ROW_BYTES = 1 << 26

_QUOTE, _BACKSLASH, _OPEN, _CLOSE = 0x22, 0x5C, 0x7B, 0x7D
_GAP = b" \t\r\n,"
_BOM = b"\xef\xbb\xbf"


class CutError(ValueError):
    """Text that is no JSON array of rows; the message says after which row."""


@dataclass(frozen=True)
class Span:
    """Bytes `start` to `end` of a file hold one row."""

    start: int
    end: int


def cut_rows(stream: BinaryIO, block_bytes: int = BLOCK_BYTES) -> Iterator[Span]:
    """The rows of an array, or of objects one after the other (JSON Lines under another name), in order.

    What stands between rows and is no comma or white space (a bare number, half a word) is a row of its own, so that
    it is counted and not skipped.

    Raises:
        CutError: empty, never closed, or a row of more than 64 MiB.
    """
    cutter = _Cutter()
    head = stream.read(len(_BOM))
    yield from cutter.feed(head.removeprefix(_BOM), start=len(head) if head == _BOM else 0)
    while block := stream.read(block_bytes):
        yield from cutter.feed(block)
    yield from cutter.finish()


class _Cutter:
    """What has to be remembered from one block to the next."""

    def __init__(self) -> None:
        self._offset = 0  # of the block in the file
        self._in_string = False
        self._is_escaped = False  # the block's first byte
        self._depth = 0
        self._base: int | None = None  # depth between rows: 1 in an array, 0 for objects one after the other
        self._row_start: int | None = None
        self._gap = b""  # what stands since the last row, while no row is open
        self._gap_start = 0
        self._count = 0
        self._is_closed = False

    def feed(self, block: bytes, start: int = 0) -> Iterator[Span]:
        """The rows that end in this block; `start` bytes before it are skipped."""
        self._offset += start
        block = self._find_base(block) if self._base is None else block
        if self._base is None:
            return
        at = 0  # where the gap before the next row begins in this block
        for position, depth in self._borders(block) if not self._is_closed else ():
            here = self._offset + position
            if self._row_start is not None:
                yield self._row(self._row_start, here + 1)
                self._row_start, at = None, position + 1
                continue
            yield from self._gap_rows(block[at:position], self._offset + at)
            if depth < self._base:
                self._close()
                at = position + 1
                break
            self._row_start = here
        if self._row_start is None:
            self._keep_gap(block[at:], self._offset + at)
        elif self._offset + len(block) - self._row_start > MAX_ROW_BYTES:
            raise CutError(f"not JSON in row {self._count}: it does not end within {MAX_ROW_BYTES >> 20} MiB")
        self._offset += len(block)

    def finish(self) -> Iterator[Span]:
        """What is left at the end of the file."""
        if self._base is None:
            raise CutError("empty; expected a JSON array of rows")
        if self._row_start is not None:
            raise CutError(f"not JSON in row {self._count}: the file ends inside it")
        if self._base == 1 and not self._is_closed:
            raise CutError(f"the array is never closed after row {self._count - 1}: the file is cut off")
        if self._base == 0 and self._count == 0:
            raise CutError(f"not JSON in row 0: {self._gap[:40]!r}")
        yield from self._gap_rows(b"", 0)

    def _find_base(self, block: bytes) -> bytes:
        """Skip white space and the array's opening bracket; returns the rest of the block."""
        rest = block.lstrip(_GAP)
        self._offset += len(block) - len(rest)
        if rest:
            self._base = self._depth = int(rest[:1] == b"[")
            self._offset += self._base
            rest = rest[self._base :]
        return rest

    def _borders(self, block: bytes) -> list[tuple[int, int]]:
        """(position, depth after it) of each bracket that opens or closes a row, or the array."""
        data = np.frombuffer(block, np.uint8)
        is_quote = data == _QUOTE
        self._unquote_escaped(data, is_quote)
        folded = data | 0x20  # [ becomes {, ] becomes }
        marks = np.flatnonzero(is_quote | (folded == _OPEN) | (folded == _CLOSE))
        quotes = is_quote[marks]
        in_string = (np.cumsum(quotes) + self._in_string) & 1  # after each mark
        outside = ~quotes & (in_string == 0)
        self._in_string = bool(in_string[-1]) if len(in_string) else self._in_string
        positions = marks[outside]
        is_open = folded[positions] == _OPEN
        depths = self._depth + np.cumsum(np.where(is_open, 1, -1))
        self._depth = int(depths[-1]) if len(depths) else self._depth
        base = self._base
        assert base is not None
        is_border = (is_open & (depths == base + 1)) | (~is_open & (depths == base)) | (depths < base)
        return list(zip(positions[is_border].tolist(), depths[is_border].tolist(), strict=True))

    def _unquote_escaped(self, data: NDArray[np.uint8], is_quote: NDArray[np.bool_]) -> None:
        """Clear the quotes that a backslash precedes: those after a run of backslashes of odd length."""
        slashes = np.flatnonzero(data == _BACKSLASH)
        carried, self._is_escaped = self._is_escaped, False
        if carried and (not len(slashes) or slashes[0] != 0):
            is_quote[:1] = False
        if not len(slashes):
            return
        breaks = np.flatnonzero(np.diff(slashes) != 1)
        firsts = np.concatenate(([0], breaks + 1))
        lasts = np.concatenate((breaks, [len(slashes) - 1]))
        lengths = lasts - firsts + 1
        if carried and slashes[0] == 0:
            lengths[0] += 1
        escaped = slashes[lasts[lengths % 2 == 1]] + 1
        if len(escaped) and escaped[-1] == len(data):
            self._is_escaped = True
            escaped = escaped[:-1]
        is_quote[escaped] = False

    def _row(self, start: int, end: int) -> Span:
        if end - start > MAX_ROW_BYTES:
            raise CutError(f"not JSON in row {self._count}: it is longer than {MAX_ROW_BYTES >> 20} MiB")
        self._count += 1
        return Span(start, end)

    def _keep_gap(self, text: bytes, start: int) -> None:
        if not self._gap.strip(_GAP):
            self._gap, self._gap_start = b"", start
        self._gap += text
        if len(self._gap) > MAX_ROW_BYTES:
            raise CutError(f"not JSON in row {self._count}")

    def _gap_rows(self, text: bytes, start: int) -> Iterator[Span]:
        """Words between rows, each between two commas; nothing, as a rule."""
        self._keep_gap(text, start)
        gap, at = self._gap, self._gap_start
        self._gap = b""
        if self._is_closed and gap.strip(_GAP):
            raise CutError(f"text after the end of the array: {gap.strip(_GAP)[:40]!r}")
        for part in gap.split(b","):
            if word := part.strip(_GAP):
                begin = at + part.index(word)
                yield self._row(begin, begin + len(word))
            at += len(part) + 1

    def _close(self) -> None:
        if self._base == 0:
            raise CutError(f"not JSON after row {self._count - 1}: a bracket closes that was never opened")
        self._is_closed = True
