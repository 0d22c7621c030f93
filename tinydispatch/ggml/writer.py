"""Writes a GGUF file from metadata and tensors, one tensor in memory at a time; `header.py` reads it.

Values get the types that gguf-py gives them: whole numbers have 32 bits without a sign (in arrays with one), fractions
32 bits.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinydispatch.ggml.header import MAGIC, TENSOR_BLOCKS

_VERSION = 3
_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write: `shape` in ggml's order (row length first); `pieces` yields its bytes in order when asked."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    pieces: Callable[[], Iterator[bytes | memoryview]]

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor in the file, without what fills it up to the alignment."""
        block, block_bytes = TENSOR_BLOCKS[self.type_id]
        return math.prod(self.shape) // block * block_bytes


@dataclass(frozen=True)
class WrittenFile:
    """What was written."""

    sha256: str
    n_bytes: int


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Sequence[NewTensor]) -> WrittenFile:
    """Write `path` from its first byte to its last; the same input gives the same bytes.

    Raises:
        OSError: the disk is full, or the path cannot be written; what is there then is the caller's to remove.
    """
    head = [MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        head += [_string(key), *_typed(value)]
    offset = 0
    for tensor in tensors:
        head += [_string(tensor.name), struct.pack("<I", len(tensor.shape))]
        head += [struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.type_id, offset)]
        offset += _aligned(tensor.n_bytes)
    digest, n_bytes = hashlib.sha256(), 0
    with path.open("wb") as stream:

        def write(data: bytes | memoryview) -> int:
            stream.write(data)
            digest.update(data)
            return len(data)

        n_bytes += write(b"".join(head))
        n_bytes += write(bytes(_aligned(n_bytes) - n_bytes))
        for tensor in tensors:
            size = sum(write(piece) for piece in tensor.pieces())
            assert size == tensor.n_bytes, f"{tensor.name}: {size} bytes of {tensor.n_bytes}"
            n_bytes += size + write(bytes(_aligned(size) - size))
    return WrittenFile(digest.hexdigest(), n_bytes)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Any) -> Iterator[bytes]:
    """A value's type and the value."""
    if isinstance(value, tuple):
        if all(isinstance(item, str) for item in value):
            yield struct.pack("<IIQ", _ARRAY, _STRING, len(value))
            yield b"".join(map(_string, value))
        elif all(type(item) is int for item in value):
            yield struct.pack(f"<IIQ{len(value)}i", _ARRAY, _INT32, len(value), *value)
        else:
            yield struct.pack(f"<IIQ{len(value)}f", _ARRAY, _FLOAT32, len(value), *value)
    elif isinstance(value, str):
        yield struct.pack("<I", _STRING) + _string(value)
    elif isinstance(value, bool):
        yield struct.pack("<I?", _BOOL, value)
    elif isinstance(value, int):
        yield struct.pack("<II", _UINT32, value)
    else:
        yield struct.pack("<If", _FLOAT32, value)
