"""Reads and checks a GGUF file's header before any native code sees the file.

llama.cpp aborts the whole process on some malformed files, so everything that a damaged download, a foreign
file or a lying count could break is refused here first, by a reader that never believes a length.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tinydispatch.folders import stamp

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# ggml ends the process where a tensor in the mapped file is aligned to less.
_DEFAULT_ALIGNMENT = _MIN_ALIGNMENT = 32

# More than ten times what any published model holds; a count beyond them is damage.
_MAX_TENSORS = 100_000
_MAX_KEYS = 10_000
_MAX_KEY_BYTES = 65_535
_MAX_NAME_BYTES = 63
_MAX_DIMENSIONS = 4
# The largest vocabularies have 262,144 tokens and as many merges. All of a header's arrays and texts share the bytes.
_MAX_ARRAY, _MAX_METADATA_BYTES = 2_000_000, 64 << 20

# ggml type id -> (elements in a block, bytes of a block)
TENSOR_BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66),
    17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136),
    24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54),
    35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}  # fmt: skip

# GGUF value type -> struct code
SCALARS: Mapping[int, str] = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PIECE_BYTES = 1 << 20


class GgufError(ValueError):
    """A file that is no usable GGUF; the message names the file and the problem."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: `shape` has ggml's order (row length first), `offset` counts from the data's start."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """A GGUF file's metadata and tensor table; the weights themselves are not read. `stamp` is the file's when it was
    read.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    stamp: tuple[int, ...] = ()

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the model's graph ("qwen3"), "" when the file names none."""
        return str(self.metadata.get("general.architecture", ""))


def read_header(path: Path) -> GgufHeader:
    """Read a GGUF header and check that everything it promises lies inside the file.

    Raises:
        GgufError: the file is missing, empty, truncated, of another format or version, or contradicts itself.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            return _Reader(path, stream, size).header()
    except FileNotFoundError:
        raise GgufError(path, "no such file") from None
    except OSError as error:
        raise GgufError(path, f"cannot be read: {error.strerror}") from error


class _Reader:
    def __init__(self, path: Path, stream: BinaryIO, size: int) -> None:
        self.path, self.stream, self.size = path, stream, size

    def header(self) -> GgufHeader:
        version = self._preamble()
        n_tensors, n_keys = self._scalar("Q"), self._scalar("Q")
        if n_tensors > _MAX_TENSORS or n_keys > _MAX_KEYS:
            raise self._error(f"damaged header: it claims {n_tensors} tensors and {n_keys} keys")
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._string(_MAX_KEY_BYTES)
            if key in metadata:
                raise self._error(f"damaged header: the key {key!r} occurs twice")
            metadata[key] = self._value(self._scalar("I"))
            if self.stream.tell() > _MAX_METADATA_BYTES:
                raise self._error(f"damaged header: metadata of more than {_MAX_METADATA_BYTES} bytes")
        self._check_whole(metadata)
        tensors = tuple(self._tensor() for _ in range(n_tensors))
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        is_power = type(alignment) is int and alignment & (alignment - 1) == 0
        if not is_power or not _MIN_ALIGNMENT <= alignment <= 1 << 20:
            raise self._error(f"'general.alignment' must be a power of two from {_MIN_ALIGNMENT}, not {alignment!r}")
        data_offset = -(-self.stream.tell() // alignment) * alignment
        self._check_tensors(tensors, data_offset, alignment)
        self._check_vocabulary(metadata)
        return GgufHeader(self.path, version, metadata, tensors, data_offset, stamp(self.stream.fileno()))

    def _preamble(self) -> int:
        if self.size == 0:
            raise self._error("the file is empty")
        magic = self.stream.read(4)
        if not magic.strip(b"\0"):
            raise self._error("not a GGUF file: it begins with zero bytes (an unfinished download?)")
        if magic != MAGIC:
            raise self._error(f"not a GGUF file: it begins with {magic!r} instead of {MAGIC!r}")
        raw = self._take(4)
        version = int(struct.unpack("<I", raw)[0])
        if version not in _VERSIONS and struct.unpack(">I", raw)[0] in _VERSIONS:
            raise self._error("a big-endian GGUF file; only little-endian ones are supported")
        if version not in _VERSIONS:
            raise self._error(f"GGUF version {version} is not supported (supported: 2 and 3)")
        return version

    def _error(self, problem: str) -> GgufError:
        return GgufError(self.path, problem)

    def _take(self, n_bytes: int) -> bytes:
        # The length is compared with the file before anything is allocated for it.
        if n_bytes > self.size - self.stream.tell():
            raise self._error(f"truncated: the header goes on after the file's {self.size} bytes")
        data = self.stream.read(n_bytes)
        if len(data) != n_bytes:
            raise self._error("truncated while it was being read")
        return data

    def _scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _string(self, max_bytes: int | None = None) -> str:
        n_bytes = self._scalar("Q")
        if max_bytes is not None and n_bytes > max_bytes:
            raise self._error(f"damaged header: a name of {n_bytes} bytes")
        try:
            return self._take(n_bytes).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._error(f"damaged header: text that is not UTF-8 ({error.reason})") from error

    def _value(self, type_id: int) -> Any:
        if type_id == _STRING:
            return self._string()
        if type_id == _ARRAY:
            return self._array()
        if type_id not in SCALARS:
            raise self._error(f"damaged header: unknown value type {type_id}")
        return self._scalar(SCALARS[type_id])

    def _array(self) -> tuple[Any, ...]:
        type_id, count = self._scalar("I"), self._scalar("Q")
        if type_id == _STRING:
            # Each string takes 8 bytes at least, so a lying count ends here and not in a long loop.
            if count > (self.size - self.stream.tell()) // 8:
                raise self._error(f"truncated: an array of {count} strings does not fit the file")
            if count > _MAX_ARRAY:
                raise self._error(f"damaged header: an array of {count} strings; at most {_MAX_ARRAY} are read")
            return tuple(self._strings(count))
        if type_id not in SCALARS:  # arrays of arrays are in the format, but llama.cpp reads none
            raise self._error(f"damaged header: an array of value type {type_id}")
        item = struct.Struct("<" + SCALARS[type_id])
        if count > self.size // item.size:
            raise self._error(f"truncated: an array of {count} values does not fit the file")
        # As Python values they take up to 40 bytes each.
        if count > _MAX_ARRAY:
            raise self._error(f"damaged header: an array of {count} values; at most {_MAX_ARRAY} are read")
        return tuple(value for (value,) in item.iter_unpack(self._take(count * item.size)))

    def _strings(self, count: int) -> list[str]:
        """`count` strings, read a megabyte at a time: one by one, a vocabulary of 49,152 takes 0.2 seconds longer."""
        found: list[str] = []
        append, read_length = found.append, struct.Struct("<Q").unpack_from
        while len(found) < count:
            start, at = self.stream.tell(), 0
            data = self.stream.read(_PIECE_BYTES)
            size = len(data)
            try:
                for _ in range(count - len(found)):
                    first = at + 8
                    if first > size:
                        break
                    end = first + read_length(data, at)[0]
                    if end > size:
                        break
                    append(data[first:end].decode())
                    at = end
            except UnicodeDecodeError as error:
                raise self._error(f"damaged header: text that is not UTF-8 ({error.reason})") from error
            self.stream.seek(start + at)
            if not at:  # longer than a piece, or than the file, which is said then
                found.append(self._string())
        return found

    def _tensor(self) -> TensorInfo:
        name = self._string(_MAX_NAME_BYTES)
        n_dimensions = self._scalar("I")
        if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
            raise self._error(f"tensor {name!r}: {n_dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(n_dimensions))
        type_id, offset = self._scalar("I"), self._scalar("Q")
        if type_id not in TENSOR_BLOCKS:
            raise self._error(f"tensor {name!r}: unknown ggml type {type_id}")
        block, block_bytes = TENSOR_BLOCKS[type_id]
        if not all(0 < length < 1 << 40 for length in shape) or shape[0] % block:
            raise self._error(f"tensor {name!r}: the shape {shape} does not fit its type")
        return TensorInfo(name, shape, type_id, offset, math.prod(shape) // block * block_bytes)

    def _check_tensors(self, tensors: tuple[TensorInfo, ...], data_offset: int, alignment: int) -> None:
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise self._error("damaged header: a tensor name occurs twice")
        for tensor in tensors:
            if tensor.offset % alignment:
                raise self._error(f"tensor {tensor.name!r}: the offset {tensor.offset} is not aligned to {alignment}")
            end = data_offset + tensor.offset + tensor.n_bytes
            if end > self.size:
                problem = f"truncated: tensor {tensor.name!r} ends at byte {end}, the file at {self.size}"
                raise self._error(problem)
        expected = 0
        for tensor in tensors:
            if tensor.offset != expected:
                problem = f"its offset is {tensor.offset}, the tensors before it end at {expected}"
                raise self._error(f"damaged header: tensor {tensor.name!r} lies elsewhere: {problem}")
            expected += -(-tensor.n_bytes // alignment) * alignment

    def _check_whole(self, metadata: Mapping[str, Any]) -> None:
        count, number = metadata.get("split.count"), metadata.get("split.no")
        if isinstance(count, int) and count > 1:
            part = f"part {number + 1} of" if isinstance(number, int) else "one of"
            raise self._error(
                f"{part} {count} files that make up one model: join them with `llama-gguf-split --merge` "
                "(from llama.cpp) and give the joined file"
            )

    def _check_vocabulary(self, metadata: Mapping[str, Any]) -> None:
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, tuple) or not all(isinstance(token, str) for token in tokens):
            return  # none, or none that llama.cpp takes; it says so
        # llama.cpp asserts that the texts are distinct, which it reads up to the first zero byte: a repetition would
        # end the process.
        if len(set(tokens)) == len(tokens) and not any("\0" in token for token in tokens):
            return
        if len({token.partition("\0")[0] or index for index, token in enumerate(tokens)}) != len(tokens):
            raise self._error("'tokenizer.ggml.tokens' holds a token twice")
