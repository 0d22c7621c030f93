"""What an OPT file must hold before native code may compute with it: numbers, tensors, their shapes and types."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tinydispatch.ggml import bindings
from tinydispatch.ggml.header import GgufError, GgufHeader

ARCHITECTURE = "opt"
ACTIVATION_KEY = f"{ARCHITECTURE}.hidden_activation"
ACTIVATIONS = ("relu", "gelu")

_VECTOR_TYPES = frozenset({bindings.GGML_TYPE_F32})
_TABLE_TYPES = frozenset({bindings.GGML_TYPE_F32, bindings.GGML_TYPE_F16})
# Types whose matrix product and row lookup ggml computes on every CPU: floats, Q4_0 to Q8_0, Q2_K to Q6_K.
_MATRIX_TYPES = frozenset({0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, bindings.GGML_TYPE_BF16})

# The norms of a layer, attention's first; which pair a file holds says where they stand.
PRE_NORMS, POST_NORMS = ("attn_norm", "ffn_norm"), ("attn_output_norm", "layer_output_norm")


@dataclass(frozen=True)
class TensorRule:
    """`shape` in ggml's order (row length first); an optional tensor may be missing, and then takes no part."""

    name: str
    shape: tuple[int, ...]
    types: frozenset[int]
    is_optional: bool = False


@dataclass(frozen=True)
class OptShape:
    """The numbers of an OPT graph: `width` of the residual stream, `embedding_width` of a token's vector."""

    n_layers: int
    width: int
    embedding_width: int
    feed_forward_width: int
    n_heads: int
    n_positions: int
    n_vocab: int
    epsilon: float
    activation: str
    is_pre_norm: bool
    has_final_norm: bool

    @property
    def head_width(self) -> int:
        """The width of one attention head."""
        return self.width // self.n_heads

    @property
    def norms(self) -> tuple[str, str]:
        """The names of a layer's two norms."""
        return PRE_NORMS if self.is_pre_norm else POST_NORMS

    def rules(self) -> Iterator[TensorRule]:
        """Every tensor that the graph reads."""
        width, ff = self.width, self.feed_forward_width
        vocabulary = (self.embedding_width, self.n_vocab)
        yield TensorRule("token_embd.weight", vocabulary, _MATRIX_TYPES)
        yield TensorRule("output.weight", vocabulary, _MATRIX_TYPES, is_optional=True)
        yield TensorRule("position_embd.weight", (width, self.n_positions), _TABLE_TYPES)
        if self.embedding_width != width:
            yield TensorRule("project_in.weight", (self.embedding_width, width), _MATRIX_TYPES)
            yield TensorRule("project_out.weight", (width, self.embedding_width), _MATRIX_TYPES)
        if self.has_final_norm:
            yield from _norm("output_norm", width)
        for layer in range(self.n_layers):
            for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
                yield from _linear(f"blk.{layer}.{name}", width, width)
            yield from _linear(f"blk.{layer}.ffn_up", width, ff)
            yield from _linear(f"blk.{layer}.ffn_down", ff, width)
            for name in self.norms:
                yield from _norm(f"blk.{layer}.{name}", width)


def _linear(name: str, n_in: int, n_out: int) -> Iterator[TensorRule]:
    yield TensorRule(f"{name}.weight", (n_in, n_out), _MATRIX_TYPES)
    yield TensorRule(f"{name}.bias", (n_out,), _VECTOR_TYPES, is_optional=True)


def _norm(name: str, width: int) -> Iterator[TensorRule]:
    yield TensorRule(f"{name}.weight", (width,), _VECTOR_TYPES)
    yield TensorRule(f"{name}.bias", (width,), _VECTOR_TYPES)


def read_shape(header: GgufHeader) -> OptShape:
    """The graph of a file, after a check of everything that native code would otherwise abort on.

    Raises:
        GgufError: a number or tensor is missing or contradicts the others; the message names it.
    """
    tensors = {tensor.name: tensor for tensor in header.tensors}
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    embedding = tensors.get("token_embd.weight")
    if not isinstance(tokens, tuple) or embedding is None or len(embedding.shape) != 2:
        raise GgufError(header.path, "'tokenizer.ggml.tokens' or the matrix 'token_embd.weight' is missing")
    if embedding.shape[1] != len(tokens):
        raise GgufError(
            header.path,
            f"'tokenizer.ggml.tokens' has {len(tokens)} tokens, 'token_embd.weight' {embedding.shape[1]} rows",
        )
    shape = OptShape(
        n_layers=_count(header, "block_count", 1000),
        width=_count(header, "embedding_length", 1 << 20),
        embedding_width=embedding.shape[0],
        feed_forward_width=_count(header, "feed_forward_length", 1 << 24),
        n_heads=_count(header, "attention.head_count", 1 << 16),
        n_positions=_count(header, "context_length", 1 << 24),
        n_vocab=len(tokens),
        epsilon=_epsilon(header),
        activation=header.metadata.get(ACTIVATION_KEY, ACTIVATIONS[0]),
        is_pre_norm=f"blk.0.{PRE_NORMS[0]}.weight" in tensors,
        has_final_norm="output_norm.weight" in tensors,
    )
    if shape.width % shape.n_heads:
        raise GgufError(header.path, f"a width of {shape.width} cannot be shared by {shape.n_heads} attention heads")
    if shape.activation not in ACTIVATIONS:
        raise GgufError(header.path, f"{ACTIVATION_KEY!r} is {shape.activation!r}, not one of {', '.join(ACTIVATIONS)}")
    _check_tensors(header, shape)
    return shape


def _count(header: GgufHeader, key: str, maximum: int) -> int:
    name = f"{ARCHITECTURE}.{key}"
    value = header.metadata.get(name)
    if type(value) is not int or not 1 <= value <= maximum:
        raise GgufError(header.path, f"{name!r} must be a whole number from 1 to {maximum}, not {value!r}")
    return value


def _epsilon(header: GgufHeader) -> float:
    name = f"{ARCHITECTURE}.attention.layer_norm_epsilon"
    value = header.metadata.get(name)
    if not isinstance(value, float) or not 0 <= value < 1:
        raise GgufError(header.path, f"{name!r} must be a number from 0 to 1, not {value!r}")
    return value


def _check_tensors(header: GgufHeader, shape: OptShape) -> None:
    tensors = {tensor.name: tensor for tensor in header.tensors}
    known = set()
    for rule in shape.rules():
        known.add(rule.name)
        tensor = tensors.get(rule.name)
        if tensor is None:
            if rule.is_optional:
                continue
            raise GgufError(header.path, f"the tensor {rule.name!r} is missing")
        if tensor.shape != rule.shape:
            raise GgufError(header.path, f"tensor {rule.name!r} has the shape {tensor.shape} instead of {rule.shape}")
        if tensor.type_id not in rule.types:
            raise GgufError(header.path, f"tensor {rule.name!r} has the ggml type {tensor.type_id}, not supported here")
    if unknown := sorted(tensors.keys() - known):
        raise GgufError(header.path, f"{len(unknown)} tensors that no OPT graph reads: {', '.join(unknown[:3])}")
