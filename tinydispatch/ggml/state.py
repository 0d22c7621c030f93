"""A saved cache as bytes: what it holds, whose it is, and a checksum, so that native code never reads a damaged one."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinydispatch.ggml.header import GgufHeader

_MAGIC = b"TDKV"
_VERSION = 1
_DIGEST_BYTES = 16
# magic, version, fingerprint of the model, number of ids, number of payload bytes
_HEAD = struct.Struct(f"<4sI{_DIGEST_BYTES}sIQ")

# Enough of each tensor to tell a retrained model of the same shape from this one, without reading all of the file.
_SAMPLE_BYTES = 4096


class StateError(ValueError):
    """A saved state that cannot be restored into this model."""


def fingerprint(header: GgufHeader, kind: str) -> bytes:
    """What a state must have been saved with: the file's header, the start of each tensor, and the cache's layout."""
    digest = hashlib.blake2b(kind.encode(), digest_size=_DIGEST_BYTES)
    with Path(header.path).open("rb") as stream:
        digest.update(stream.read(header.data_offset))
        for tensor in header.tensors:
            stream.seek(header.data_offset + tensor.offset)
            digest.update(stream.read(min(tensor.n_bytes, _SAMPLE_BYTES)))
    return digest.digest()


def pack_state(model: bytes, ids: Sequence[int], payload: bytes | Sequence[npt.NDArray[Any]]) -> bytes:
    """A state of the model with that fingerprint; arrays are taken one after the other."""
    parts = [np.frombuffer(payload, dtype=np.uint8)] if isinstance(payload, bytes) else payload
    with io.BytesIO() as state:
        state.write(_HEAD.pack(_MAGIC, _VERSION, model, len(ids), sum(part.nbytes for part in parts)))
        state.write(np.asarray(ids, dtype="<i4").tobytes())
        # Array by array: the whole may take a hundred megabytes, and is there once.
        for part in parts:
            state.write(np.ascontiguousarray(part).data)
        state.write(hashlib.blake2b(state.getbuffer(), digest_size=_DIGEST_BYTES).digest())
        return state.getvalue()


def unpack_state(model: bytes, state: bytes) -> tuple[list[int], memoryview]:
    """The ids and the payload of a state.

    Raises:
        StateError: it is damaged, of another version, or of another model.
    """
    view = memoryview(state)
    if len(view) < _HEAD.size + _DIGEST_BYTES or bytes(view[:4]) != _MAGIC:
        raise StateError(f"not a saved state: {len(view)} bytes that do not begin with {_MAGIC!r}")
    _, version, owner, n_ids, n_payload = _HEAD.unpack_from(view)
    if version != _VERSION:
        raise StateError(f"a saved state of version {version}; this program writes and reads version {_VERSION}")
    start = _HEAD.size + 4 * n_ids
    if len(view) != start + n_payload + _DIGEST_BYTES:
        raise StateError(f"a damaged state: {len(view)} bytes instead of {start + n_payload + _DIGEST_BYTES}")
    body = view[: start + n_payload]
    if hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != bytes(view[len(body) :]):
        raise StateError("a damaged state: the checksum does not match its content")
    if owner != model:
        raise StateError("a state of another model file or another kind of cache; compute the prompt again")
    return np.frombuffer(view[_HEAD.size : start], dtype="<i4").tolist(), body[start:]
