"""Which files the native decoder computes: Qwen3 and OPT, every matrix in a format that it multiplies by."""

from __future__ import annotations

from dataclasses import dataclass

from tinydispatch.ggml import opt_shape, qwen_shape
from tinydispatch.ggml.bindings import GGML_TYPE_F16, GGML_TYPE_F32
from tinydispatch.ggml.header import GgufHeader
from tinydispatch.native.bindings import FORMATS, WIDEST, Activation

_POSITIONS = "position_embd.weight"


@dataclass(frozen=True)
class NativeShape:
    """The numbers of a decoder, and what its norms are called in the file."""

    n_layers: int
    width: int
    embedding_width: int
    feed_forward_width: int
    n_heads: int
    n_key_heads: int
    head_width: int
    n_positions: int
    n_vocab: int
    epsilon: float
    activation: Activation
    norms: tuple[str, str]
    is_pre_norm: bool
    is_rms: bool
    rope_base: float | None


def read_native_shape(header: GgufHeader) -> NativeShape | None:
    """The shape of a file that the decoder computes, None for any other.

    Raises:
        GgufError: an OPT file contradicts itself.
    """
    if header.architecture == opt_shape.ARCHITECTURE:
        found = _opt(opt_shape.read_shape(header))
    else:
        shape = qwen_shape.read_shape(header)
        if shape is None:
            return None
        found = _qwen(shape)
    return found if _fits(header, found) else None


def _fits(header: GgufHeader, shape: NativeShape) -> bool:
    for tensor in header.tensors:
        if tensor.name == _POSITIONS:
            is_known = tensor.type_id in (GGML_TYPE_F32, GGML_TYPE_F16)
        elif len(tensor.shape) == 2:
            is_known = tensor.type_id in FORMATS and not tensor.shape[0] % FORMATS[tensor.type_id].inputs
        else:
            is_known = tensor.type_id == GGML_TYPE_F32
        if not is_known:
            return False
    return not shape.head_width % WIDEST  # heads are read in whole vectors


def _qwen(shape: qwen_shape.QwenShape) -> NativeShape:
    return NativeShape(
        n_layers=shape.n_layers,
        width=shape.width,
        embedding_width=shape.width,
        feed_forward_width=shape.feed_forward_width,
        n_heads=shape.n_heads,
        n_key_heads=shape.n_key_heads,
        head_width=shape.head_width,
        n_positions=shape.n_positions,
        n_vocab=shape.n_vocab,
        epsilon=shape.epsilon,
        activation=Activation.SILU_GATED,
        norms=("attn_norm", "ffn_norm"),
        is_pre_norm=True,
        is_rms=True,
        rope_base=shape.rope_base,
    )


def _opt(shape: opt_shape.OptShape) -> NativeShape:
    return NativeShape(
        n_layers=shape.n_layers,
        width=shape.width,
        embedding_width=shape.embedding_width,
        feed_forward_width=shape.feed_forward_width,
        n_heads=shape.n_heads,
        n_key_heads=shape.n_heads,
        head_width=shape.head_width,
        n_positions=shape.n_positions,
        n_vocab=shape.n_vocab,
        epsilon=shape.epsilon,
        activation=Activation.RELU if shape.activation == "relu" else Activation.GELU,
        norms=shape.norms,
        is_pre_norm=shape.is_pre_norm,
        is_rms=False,
        rope_base=None,
    )
