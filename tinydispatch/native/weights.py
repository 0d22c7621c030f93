"""A file's tensors as decoder.h has them: matrices laid out anew, the rest as it lies in the mapped file."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydispatch.ggml.bindings import GGML_TYPE_Q8_0
from tinydispatch.ggml.header import GgufHeader, TensorInfo
from tinydispatch.ggml.mapped_file import MappedFile
from tinydispatch.native.bindings import BLOCK, LAYER_MATRICES, WIDEST, Decoder, Layer, Matrix, Norm, Table
from tinydispatch.native.cache import zeroed
from tinydispatch.native.library import NativeLibrary
from tinydispatch.native.shape import NativeShape

_FILE_NAMES = {
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_SCALE_BYTES, _LINE = 2, 64


class NativeWeights:
    """The matrices of a file in the decoder's layout, and the file for everything else.

    A matrix's pages of the file are given back when it is laid out, so that it is in memory once.
    """

    def __init__(self, library: NativeLibrary, header: GgufHeader) -> None:
        self._library = library
        self._file = MappedFile(header, is_kept=False)
        self._tensors = {tensor.name: tensor for tensor in header.tensors}
        self._packed = zeroed(np.uint8, self.n_bytes(header), is_large=True)
        self._used = 0

    @staticmethod
    def n_bytes(header: GgufHeader) -> int:
        """What the matrices take."""
        return sum(_packed_bytes(tensor) for tensor in header.tensors)

    def close(self) -> None:
        """Unmap the file; a second call does nothing."""
        self._file.close()

    def fill(self, decoder: Decoder, layers: Any, shape: NativeShape) -> None:
        """Point a decoder and its layers to the weights."""
        for index, layer in enumerate(layers):
            self._fill_layer(layer, f"blk.{index}.", shape.norms)
        decoder.embedding, decoder.positions = self._table("token_embd"), self._table("position_embd")
        decoder.project_in, decoder.project_out = self._matrix("project_in"), self._matrix("project_out")
        decoder.final_norm = self._norm("output_norm")
        decoder.head = self._matrix("output" if "output.weight" in self._tensors else "token_embd")

    def _fill_layer(self, layer: Layer, prefix: str, norms: tuple[str, str]) -> None:
        layer.attention_norm, layer.feed_forward_norm = (self._norm(prefix + name) for name in norms)
        layer.query_norm, layer.key_norm = self._norm(prefix + "attn_q_norm"), self._norm(prefix + "attn_k_norm")
        for name in LAYER_MATRICES:
            setattr(layer, name, self._matrix(prefix + _FILE_NAMES[name]))

    def _address(self, name: str) -> int | None:
        tensor = self._tensors.get(name)
        return None if tensor is None else self._file.address_of(tensor)

    def _norm(self, name: str) -> Norm:
        return Norm(self._address(f"{name}.weight"), self._address(f"{name}.bias"))

    def _table(self, name: str) -> Table:
        tensor = self._tensors.get(f"{name}.weight")
        if tensor is None:
            return Table()
        return Table(self._file.address_of(tensor), tensor.shape[0], tensor.type_id)

    def _matrix(self, name: str) -> Matrix:
        tensor = self._tensors.get(f"{name}.weight")
        if tensor is None:
            return Matrix()
        n_in, n_out = tensor.shape
        quants = self._packed.ctypes.data + self._used
        scales = quants + n_in * _whole_tiles(n_out)
        self._library.c.tinydispatch_pack(self._file.address_of(tensor), n_in, n_out, quants, scales)
        self._used += _packed_bytes(tensor)
        self._file.give_back(tensor)
        return Matrix(quants, scales, self._address(f"{name}.bias"), n_in, n_out)


def _packed_bytes(tensor: TensorInfo) -> int:
    """Numbers and scales of a matrix, each beginning at a cache line; nothing for other tensors."""
    if tensor.type_id != GGML_TYPE_Q8_0:
        return 0
    n_numbers = tensor.shape[0] * _whole_tiles(tensor.shape[1])
    return n_numbers + -(-n_numbers // BLOCK * _SCALE_BYTES // _LINE) * _LINE


def _whole_tiles(n_out: int) -> int:
    return -(-n_out // WIDEST) * WIDEST
