"""Plain Qwen3 files: those that hold exactly its tensors, and stretch no positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tinydispatch.ggml import bindings
from tinydispatch.ggml.header import GgufHeader, TensorInfo

ARCHITECTURE = "qwen3"

_MATRIX_TYPES = frozenset(
    {
        *(bindings.GGML_TYPE_F32, bindings.GGML_TYPE_F16, bindings.GGML_TYPE_BF16),
        *(bindings.GGML_TYPE_Q8_0, bindings.GGML_TYPE_Q4_K, bindings.GGML_TYPE_Q6_K),
    }
)


@dataclass(frozen=True)
class QwenShape:
    """The numbers of a Qwen3 decoder; `group` query heads share one head of keys and values."""

    n_layers: int
    width: int
    feed_forward_width: int
    n_heads: int
    n_key_heads: int
    head_width: int
    n_positions: int
    n_vocab: int
    epsilon: float
    rope_base: float

    @property
    def group(self) -> int:
        """Query heads per head of keys and values."""
        return self.n_heads // self.n_key_heads

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The tensors that a file must hold, each with its shape in ggml's order (row length first)."""
        width, queries, keys = self.width, self.n_heads * self.head_width, self.n_key_heads * self.head_width
        yield "token_embd.weight", (width, self.n_vocab)
        yield "output_norm.weight", (width,)
        for layer in range(self.n_layers):
            for name, shape in (
                ("attn_norm", (width,)),
                ("attn_q", (width, queries)),
                ("attn_k", (width, keys)),
                ("attn_v", (width, keys)),
                ("attn_q_norm", (self.head_width,)),
                ("attn_k_norm", (self.head_width,)),
                ("attn_output", (queries, width)),
                ("ffn_norm", (width,)),
                ("ffn_gate", (width, self.feed_forward_width)),
                ("ffn_up", (width, self.feed_forward_width)),
                ("ffn_down", (self.feed_forward_width, width)),
            ):
                yield f"blk.{layer}.{name}.weight", shape


def read_shape(header: GgufHeader) -> QwenShape | None:
    """The shape of a plain file, None for any other."""
    own: dict[str, Any] = {key: header.metadata.get(f"{ARCHITECTURE}.{key}") for key in _NUMBERS}
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if header.architecture != ARCHITECTURE or not isinstance(tokens, tuple):
        return None
    if any(type(own[key]) is not kind for key, kind in _NUMBERS.items()):
        return None
    shape = QwenShape(
        n_layers=own["block_count"],
        width=own["embedding_length"],
        feed_forward_width=own["feed_forward_length"],
        n_heads=own["attention.head_count"],
        n_key_heads=own["attention.head_count_kv"],
        head_width=own["attention.key_length"],
        n_positions=own["context_length"],
        n_vocab=len(tokens),
        epsilon=own["attention.layer_norm_rms_epsilon"],
        rope_base=own["rope.freq_base"],
    )
    return shape if _is_plain(header, shape) else None


_NUMBERS = {
    "block_count": int,
    "embedding_length": int,
    "feed_forward_length": int,
    "attention.head_count": int,
    "attention.head_count_kv": int,
    "attention.key_length": int,
    "context_length": int,
    "attention.layer_norm_rms_epsilon": float,
    "rope.freq_base": float,
}


def _is_plain(header: GgufHeader, shape: QwenShape) -> bool:
    """Whether the file holds the decoder's tensors and no other, and stretches no positions."""
    if any(key.startswith(f"{ARCHITECTURE}.rope.scaling") for key in header.metadata):
        return False
    if min(shape.n_heads, shape.n_key_heads, shape.head_width) < 1 or shape.n_heads % shape.n_key_heads:
        return False
    if shape.n_layers > len(header.tensors):  # a number that lies would be a list of billions of names
        return False
    found = {tensor.name: tensor for tensor in header.tensors}
    expected = dict(shape.tensors())
    if "output.weight" in found:
        expected["output.weight"] = expected["token_embd.weight"]
    if found.keys() != expected.keys():
        return False
    return all(tensor.shape == expected[name] and _has_type(tensor) for name, tensor in found.items())


def _has_type(tensor: TensorInfo) -> bool:
    return tensor.type_id in _MATRIX_TYPES if len(tensor.shape) == 2 else tensor.type_id == bindings.GGML_TYPE_F32
