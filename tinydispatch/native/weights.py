"""A file's tensors as decoder.h has them: matrices laid out anew, vectors copied, tables as they lie in the file."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from tinydispatch.ggml.architectures import Rotation, Shape
from tinydispatch.ggml.header import GgufHeader, TensorInfo
from tinydispatch.ggml.mapped_file import MappedFile
from tinydispatch.native.bindings import FORMATS, LAYER_MATRICES, WIDEST, Decoder, Layer, Matrix, Norm
from tinydispatch.native.cache import zeroed
from tinydispatch.native.library import NativeLibrary
from tinydispatch.native.table import RowTable

_FILE_NAMES = {
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_LINE = 64


class NativeWeights:
    """The weights of a file in the decoder's layout, and the file for rows that are looked up.

    A matrix's pages of the file are given back when it is laid out, so that it is in memory once.
    """

    def __init__(self, library: NativeLibrary, ggml: Any, header: GgufHeader) -> None:
        self._library, self._ggml = library, ggml
        self._file = MappedFile(header, is_kept=False)
        self._tensors = {tensor.name: tensor for tensor in header.tensors}
        self._vectors = zeroed(np.float32, sum(_length(tensor) for tensor in header.tensors))
        self._n_copied = 0
        self._packed = zeroed(np.uint8, self.n_bytes(header), is_large=True)
        self._used = 0

    @staticmethod
    def n_bytes(header: GgufHeader) -> int:
        """What the matrices take."""
        return sum(_packed_bytes(tensor) for tensor in header.tensors)

    def close(self) -> None:
        """Unmap the file; a second call does nothing."""
        self._file.close()

    def fill(self, decoder: Decoder, layers: Any, shape: Shape) -> None:
        """Point a decoder and its layers to the weights."""
        for index, layer in enumerate(layers):
            self._fill_layer(layer, f"blk.{index}.", shape)
        decoder.project_in, decoder.project_out = self._matrix("project_in"), self._matrix("project_out")
        decoder.final_norm = self._norm("output_norm")
        decoder.head = self._matrix("output" if "output.weight" in self._tensors else "token_embd")
        self._file.give_back_all()

    def _fill_layer(self, layer: Layer, prefix: str, shape: Shape) -> None:
        layer.attention_norm, layer.feed_forward_norm = (self._norm(prefix + name) for name in shape.norms)
        layer.query_norm, layer.key_norm = self._norm(prefix + "attn_q_norm"), self._norm(prefix + "attn_k_norm")
        for name in LAYER_MATRICES:
            # Here a head's halves are turned against each other: neighbours are parted once, and not for every id.
            is_parted = shape.architecture.rotation is Rotation.NEIGHBOURS and name in ("query", "key")
            rows = shape.head_width if is_parted else 0
            setattr(layer, name, self._matrix(prefix + _FILE_NAMES[name], parted_rows=rows))

    def _vector(self, name: str) -> int | None:
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        copy = self._vectors[self._n_copied : self._n_copied + _length(tensor)]
        self._n_copied += len(copy)
        ctypes.memmove(copy.ctypes.data, self._file.address_of(tensor), copy.nbytes)
        return copy.ctypes.data

    def _norm(self, name: str) -> Norm:
        return Norm(self._vector(f"{name}.weight"), self._vector(f"{name}.bias"))

    def table(self, name: str) -> RowTable | None:
        """The rows of `token_embd` or `position_embd`."""
        tensor = self._tensors.get(f"{name}.weight")
        return None if tensor is None else RowTable(self._ggml, tensor, self._file.address_of(tensor))

    def _matrix(self, name: str, parted_rows: int = 0) -> Matrix:
        """A matrix; of each `parted_rows` rows those of even number come first, then the others."""
        tensor = self._tensors.get(f"{name}.weight")
        if tensor is None:
            return Matrix()
        n_in, n_out = tensor.shape
        quants = self._packed.ctypes.data + self._used
        scales = quants + _part_bytes(tensor)[0]
        address = self._file.address_of(tensor)
        self._library.c.tinydispatch_pack(tensor.type_id, address, n_in, n_out, parted_rows, quants, scales)
        self._used += _packed_bytes(tensor)
        self._file.give_back(tensor)
        return Matrix(quants, scales, self._vector(f"{name}.bias"), n_in, n_out, tensor.type_id)


def _length(tensor: TensorInfo) -> int:
    """How many numbers a vector has; none for matrices."""
    return tensor.shape[0] if len(tensor.shape) == 1 else 0


def _packed_bytes(tensor: TensorInfo) -> int:
    """What a matrix takes; nothing for other tensors."""
    return sum(_part_bytes(tensor)) if tensor.type_id in FORMATS else 0


def _part_bytes(tensor: TensorInfo) -> list[int]:
    """Bytes of a matrix's numbers and of its scales, each of which begins at a cache line."""
    n_in, n_out = tensor.shape
    inputs, *parts = FORMATS[tensor.type_id]
    n_blocks = -(-n_out // WIDEST) * WIDEST * n_in // inputs
    return [-(-n_blocks * part // _LINE) * _LINE for part in parts]
