"""A GGUF file in pieces that can be changed one by one and put together again."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from tinydispatch.ggml.header import SCALARS, read_header

STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Entry:
    """A key with its value's bytes; `key_length` is what the file says, not what it is."""

    key: bytes
    key_length: int
    type_id: int
    payload: bytes

    def to_bytes(self) -> bytes:
        """As it stands in the file."""
        return struct.pack("<Q", self.key_length) + self.key + struct.pack("<I", self.type_id) + self.payload


@dataclass(frozen=True)
class TensorField:
    """A line of the tensor table; `n_dimensions` and `name_length` are what the file says."""

    name: bytes
    name_length: int
    n_dimensions: int
    shape: tuple[int, ...]
    type_id: int
    offset: int

    def to_bytes(self) -> bytes:
        """As it stands in the file."""
        shape = b"".join(u64(length) for length in self.shape)
        head = u64(self.name_length) + self.name + struct.pack("<I", self.n_dimensions & 0xFFFFFFFF)
        return head + shape + struct.pack("<I", self.type_id) + u64(self.offset)


@dataclass
class Parts:
    """A GGUF file in pieces; counts are what the file says. `tail` cuts it off there."""

    n_tensors: int
    n_keys: int
    entries: list[Entry]
    tensors: list[TensorField]
    alignment: int
    data: bytes
    tail: int | None = None

    def header_pieces(self) -> list[bytes]:
        """The header, section by section."""
        head = [b"GGUF", struct.pack("<I", 3), u64(self.n_tensors), u64(self.n_keys)]
        return [*head, *(entry.to_bytes() for entry in self.entries), *(item.to_bytes() for item in self.tensors)]

    def to_bytes(self) -> bytes:
        """The file."""
        header = b"".join(self.header_pieces())
        content = header + bytes(-len(header) % self.alignment) + self.data
        return content if self.tail is None else content[: self.tail]


def take_apart(path: Path, *, with_data: bool = True) -> Parts:
    """A good file in pieces; together they are the file, or its header alone.

    Raises:
        GgufError: it is not a good file.
    """
    header = read_header(path)
    with path.open("rb") as stream:
        content = stream.read(-1 if with_data else header.data_offset)
    reader = Cursor(content, 24)
    entries = [reader.entry() for _ in header.metadata]
    tensors = [
        TensorField(item.name.encode(), len(item.name.encode()), len(item.shape), item.shape, item.type_id, item.offset)
        for item in header.tensors
    ]
    alignment = int(header.metadata.get("general.alignment", 32))
    return Parts(len(tensors), len(entries), entries, tensors, alignment, content[header.data_offset :])


class Cursor:
    """Reads what `read_header` has found to be good."""

    def __init__(self, content: bytes, at: int) -> None:
        self.content, self.at = content, at

    def take(self, n_bytes: int) -> bytes:
        self.at += n_bytes
        return self.content[self.at - n_bytes : self.at]

    def entry(self) -> Entry:
        key = self.take(number_of(self.take(8)))
        type_id = number_of(self.take(4))
        start = self.at
        self.skip(type_id)
        return Entry(key, len(key), type_id, self.content[start : self.at])

    def skip(self, type_id: int) -> None:
        if type_id == STRING:
            self.take(number_of(self.take(8)))
        elif type_id == ARRAY:
            item, count = number_of(self.take(4)), number_of(self.take(8))
            if item == STRING:
                for _ in range(count):
                    self.skip(STRING)
            else:
                self.take(count * struct.calcsize(SCALARS[item]))
        else:
            self.take(struct.calcsize(SCALARS[type_id]))


def number_of(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def u64(value: int) -> bytes:
    return (value % (1 << 64)).to_bytes(8, "little")


def items_of(entry: Entry) -> tuple[int, list[bytes]]:
    """An array's item type, and its items' bytes."""
    cursor = Cursor(entry.payload, 0)
    item, count = number_of(cursor.take(4)), min(number_of(cursor.take(8)), len(entry.payload))
    items = []
    for _ in range(count):
        start = cursor.at
        if (item not in SCALARS and item != STRING) or start >= len(entry.payload):
            break  # an earlier change has left no array here
        cursor.skip(item)
        items.append(entry.payload[start : cursor.at])
    return item, items
