"""The safetensors format: a length, a JSON header, and the tensors' bytes. https://github.com/huggingface/safetensors"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 16 << 20
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class SafetensorsError(ValueError):
    """A file that is no readable safetensors file; names the file and what is wrong in it."""


@dataclass(frozen=True)
class Safetensors:
    """A file's tensors in 32 bits, shapes as torch has them, and its free-form metadata."""

    tensors: Mapping[str, npt.NDArray[np.float32]]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int

    @classmethod
    def read(cls, name: str, value: Mapping[str, Any]) -> _Entry:
        first, last = map(int, value["data_offsets"])
        return cls(name, str(value["dtype"]), tuple(map(int, value["shape"])), first, last)


def read_safetensors(path: Path) -> Safetensors:
    """Read every tensor of a file; F32, F16 and BF16 are known.

    Raises:
        SafetensorsError: the file is missing, cut, altered in its header, or holds another number format.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SafetensorsError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) < _LENGTH.size:
        raise SafetensorsError(f"{path}: {len(data)} bytes are no safetensors file")
    (n_header,) = _LENGTH.unpack_from(data)
    if n_header > min(len(data) - _LENGTH.size, _MAX_HEADER_BYTES):
        raise SafetensorsError(f"{path}: truncated or no safetensors file: a header of {n_header} bytes does not fit")
    try:
        header = json.loads(data[_LENGTH.size : _LENGTH.size + n_header])
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        entries = [_Entry.read(name, value) for name, value in header.items()]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SafetensorsError(f"{path}: the header is damaged: {error!r}") from error
    body = memoryview(data)[_LENGTH.size + n_header :]
    end = 0
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for entry in sorted(entries, key=lambda entry: entry.first):
        if entry.dtype not in _BYTES:
            raise SafetensorsError(f"{path}: tensor {entry.name!r} is {entry.dtype}; supported are {', '.join(_BYTES)}")
        size = math.prod(entry.shape) * _BYTES[entry.dtype]
        place = f"{entry.first} to {entry.last}"
        is_whole = entry.first == end and entry.last == end + size <= len(body)
        if not is_whole or min(entry.shape, default=0) < 0:
            raise SafetensorsError(f"{path}: tensor {entry.name!r} of {size} bytes lies at {place}: cut or damaged")
        tensors[entry.name] = _values(body[entry.first : entry.last], entry.dtype).reshape(entry.shape)
        end = entry.last
    if end != len(body):
        raise SafetensorsError(f"{path}: {len(body) - end} bytes stand after the last tensor")
    return Safetensors(tensors, metadata)


def _values(data: memoryview, dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of 32 bits
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, dtype="<f4" if dtype == "F32" else "<f2").astype(np.float32)


def safetensors_bytes(tensors: Mapping[str, npt.NDArray[np.float16]], metadata: Mapping[str, str]) -> bytes:
    """A file of F16 tensors, in the order of their names; the same input gives the same bytes."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name, values in sorted(tensors.items()):
        header[name] = {"dtype": "F16", "shape": list(values.shape), "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    parts = (np.ascontiguousarray(values, dtype="<f2").tobytes() for _, values in sorted(tensors.items()))
    return _LENGTH.pack(len(head)) + head + b"".join(parts)
