"""A checked file's pages in memory, read when first used."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
import numpy.typing as npt

from tinydispatch.folders import stamp
from tinydispatch.ggml.header import GgufError, GgufHeader, TensorInfo


class MappedFile:
    """The pages of a GGUF file; `size` bytes from `address`.

    Args:
        is_kept: the numbers are used where they lie, so that large pages are worth asking for.

    Raises:
        GgufError: the file changed since its header was read.
    """

    def __init__(self, header: GgufHeader, *, is_kept: bool) -> None:
        self._data_offset = header.data_offset
        with header.path.open("rb") as stream:
            if header.stamp and stamp(stream.fileno()) != header.stamp:
                raise GgufError(header.path, "changed since it was checked; replace a model file, never write into it")
            self._map: mmap.mmap | None = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        if is_kept and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without them
                self._map.madvise(mmap.MADV_HUGEPAGE)  # heeded where the file is not in memory yet
        self._pages: npt.NDArray[np.uint8] | None = np.frombuffer(self._map, dtype=np.uint8)
        self.size: int = self._pages.size
        end = max((header.data_offset + tensor.offset + tensor.n_bytes for tensor in header.tensors), default=0)
        if end > self.size:
            self.close()
            raise GgufError(header.path, f"truncated since it was checked: {self.size} bytes of {end}")

    @property
    def address(self) -> int:
        """Where the file's first byte lies."""
        assert self._pages is not None
        return self._pages.ctypes.data

    def address_of(self, tensor: TensorInfo) -> int:
        """Where a tensor's numbers lie."""
        return self.address + self._data_offset + tensor.offset

    def give_back(self, tensor: TensorInfo) -> None:
        """Let the system drop a tensor's pages; whoever looks at them again has them read anew."""
        assert self._map is not None
        start = self._data_offset + tensor.offset
        first, last = -(-start // mmap.PAGESIZE), (start + tensor.n_bytes) // mmap.PAGESIZE
        if first < last and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)

    def give_back_all(self) -> None:
        """Let the system drop all pages: looking at a few brings their neighbours, up to two megabytes at a time."""
        assert self._map is not None
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmap the file; a second call does nothing."""
        self._pages = None  # the mapping cannot be closed while an array looks into it
        if self._map is not None:
            self._map.close()
            self._map = None
