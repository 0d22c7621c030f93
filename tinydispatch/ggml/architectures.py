"""What is known of each architecture of model files, in one table: its numbers, its tensors, how its decoder computes.

A row is enough for the checks before native code sees a file, and, with `is_native`, for the native decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from functools import partial
from typing import Any

from tinydispatch.ggml import bindings
from tinydispatch.ggml.header import GgufError, GgufHeader

_VECTOR_TYPES = frozenset({bindings.GGML_TYPE_F32})
_TABLE_TYPES = frozenset({bindings.GGML_TYPE_F32, bindings.GGML_TYPE_F16})
# Types whose matrix product and row lookup ggml computes on every CPU: floats, Q4_0 to Q8_0, Q2_K to Q6_K.
_MATRIX_TYPES = frozenset({0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, bindings.GGML_TYPE_BF16})

# The norms of a layer, attention's first. Of OPT's two pairs, the one that a file holds says where its norms stand.
PRE_NORMS, POST_NORMS = ("attn_norm", "ffn_norm"), ("attn_output_norm", "layer_output_norm")


class Activation(IntEnum):
    """What a feed-forward network applies to its hidden row; the values are those of native/decoder.h."""

    SILU_GATED = 0
    RELU = 1
    GELU = 2


class Rotation(Enum):
    """Which numbers of a query or key are turned against each other by its position; PART: not all of them."""

    NONE = auto()
    HALVES = auto()
    NEIGHBOURS = auto()
    PART = auto()


@dataclass(frozen=True)
class TensorRule:
    """A tensor of a file; an optional one may be missing, and then takes no part.

    `shape` is in ggml's order (row length first); None leaves it to llama.cpp to check.
    """

    name: str
    shape: tuple[int, ...] | None
    types: frozenset[int]
    is_optional: bool = False


@dataclass(frozen=True)
class Number:
    """A whole number from 1 to `most`, or for `float` one from 0 up to below `most`.

    `default` is what a file means that lacks the key; without it the key is required.
    """

    key: str
    most: int
    kind: type[int] | type[float] = int
    default: Callable[[Mapping[str, Any]], int | float] | None = None

    def read(self, header: GgufHeader, known: Mapping[str, Any]) -> int | float:
        """The number of a file, of which `known` were read before.

        Raises:
            GgufError: it is missing or impossible; the message names its key and value.
        """
        name = f"{header.architecture}.{self.key}"
        if name not in header.metadata and self.default is not None:
            return self.default(known)
        value = header.metadata.get(name)
        if self.kind is float and (type(value) is not float or not 0 <= value < self.most):
            raise GgufError(header.path, f"{name!r} must be a number from 0 to {self.most}, not {value!r}")
        if self.kind is int and (type(value) is not int or not 1 <= value <= self.most):
            raise GgufError(header.path, f"{name!r} must be a whole number from 1 to {self.most}, not {value!r}")
        assert isinstance(value, int | float)
        return value


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Args:
        numbers: fields of `Shape`, and where a file says them; later ones may take earlier ones as defaults.
        tensors: every tensor that the graph reads, for a shape.
        rotation: what attention does to queries and keys.
        is_rms: norms take no mean off.
        is_stock: llama.cpp has the graph.
        is_native: the native decoder has the graph.
    """

    name: str
    numbers: Mapping[str, Number]
    tensors: Callable[[Shape], Iterator[TensorRule]]
    rotation: Rotation = Rotation.HALVES
    is_rms: bool = True
    is_stock: bool = True
    is_native: bool = True


@dataclass(frozen=True)
class Shape:
    """A file's numbers: `width` of the residual stream, `embedding_width` of a token's vector."""

    architecture: Architecture
    n_layers: int
    width: int
    feed_forward_width: int
    n_heads: int
    n_positions: int
    n_vocab: int
    epsilon: float
    embedding_width: int
    n_key_heads: int
    head_width: int
    rope_base: float = 0.0
    activation: Activation = Activation.SILU_GATED
    is_pre_norm: bool = True
    has_final_norm: bool = True
    full_attention_interval: int = 1

    @property
    def norms(self) -> tuple[str, str]:
        """The names of a layer's two norms."""
        return PRE_NORMS if self.is_pre_norm else POST_NORMS

    def rules(self) -> Iterator[TensorRule]:
        """Every tensor that the graph reads."""
        return self.architecture.tensors(self)


def read_numbers(header: GgufHeader, architecture: Architecture) -> Shape:
    """A file's numbers, each by itself and against the others; of the tensors only the embedding's width is read.

    Raises:
        GgufError: one is missing, impossible or contradicts the others; the message names it.
    """
    found: dict[str, Any] = {}
    for name, number in architecture.numbers.items():
        found[name] = number.read(header, found)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    tokens, embedding = header.metadata.get(_TOKENS_KEY), tensors.get(_EMBEDDING)
    width, n_heads = found["width"], found["n_heads"]
    found.setdefault("n_key_heads", n_heads)
    if "head_width" not in found and width % n_heads:
        raise GgufError(header.path, f"a width of {width} cannot be shared by {n_heads} attention heads")
    found.setdefault("head_width", width // n_heads)
    if n_heads % found["n_key_heads"] or not found["head_width"]:
        problem = f"{n_heads} attention heads of {found['head_width']} cannot share {found['n_key_heads']} of keys"
        raise GgufError(header.path, problem)
    if architecture.name == "opt":
        found |= _opt_variant(header, tensors.keys())
    return Shape(
        architecture=architecture,
        n_vocab=len(tokens) if isinstance(tokens, tuple) else 0,
        embedding_width=embedding.shape[0] if embedding is not None else width,
        **found,
    )


def read_shape(header: GgufHeader) -> Shape:
    """The graph of a file that holds nothing but what the table knows: everything that native code believes of it.

    Raises:
        GgufError: a number or tensor is missing, unknown or contradicts the others; the message names it.
    """
    architecture = ARCHITECTURES.get(header.architecture)
    if architecture is None:
        raise GgufError(header.path, f"its architecture {header.architecture!r} is none of {', '.join(ARCHITECTURES)}")
    tokens = header.metadata.get(_TOKENS_KEY)
    embedding = next((tensor for tensor in header.tensors if tensor.name == _EMBEDDING), None)
    if not isinstance(tokens, tuple) or embedding is None or len(embedding.shape) != 2:
        raise GgufError(header.path, f"'{_TOKENS_KEY}' or the matrix '{_EMBEDDING}' is missing")
    if embedding.shape[1] != len(tokens):
        problem = f"'{_TOKENS_KEY}' has {len(tokens)} tokens, '{_EMBEDDING}' {embedding.shape[1]} rows"
        raise GgufError(header.path, problem)
    shape = read_numbers(header, architecture)
    _check_keys(header, shape)
    _check_tensors(header, shape)
    return shape


def _check_keys(header: GgufHeader, shape: Shape) -> None:
    """No key that could change the graph: each is in the table, or says what the table's keys say."""
    prefix = f"{header.architecture}."
    own = {key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)}
    known = {number.key for number in shape.architecture.numbers.values()}
    repeated = {
        "attention.value_length": shape.head_width,
        "rope.dimension_count": shape.head_width,
        "vocab_size": shape.n_vocab,
    }
    if shape.architecture.name == "opt":
        known.add(_OPT_ACTIVATION)
    for key, value in own.items():
        if key not in known and repeated.get(key) != value:
            raise GgufError(header.path, f"'{prefix}{key}' is {repr(value)[:60]}, not supported here")


def _check_tensors(header: GgufHeader, shape: Shape) -> None:
    tensors = {tensor.name: tensor for tensor in header.tensors}
    known = set()
    for rule in shape.rules():
        known.add(rule.name)
        tensor = tensors.get(rule.name)
        if tensor is None:
            if rule.is_optional:
                continue
            raise GgufError(header.path, f"the tensor {rule.name!r} is missing")
        if rule.shape is not None and tensor.shape != rule.shape:
            raise GgufError(header.path, f"tensor {rule.name!r} has the shape {tensor.shape} instead of {rule.shape}")
        if tensor.type_id not in rule.types:
            raise GgufError(header.path, f"tensor {rule.name!r} has the ggml type {tensor.type_id}, not supported here")
    if unknown := sorted(tensors.keys() - known):
        problem = f"{len(unknown)} tensors that no {header.architecture} graph reads: {', '.join(unknown[:3])}"
        raise GgufError(header.path, problem)


_TOKENS_KEY, _EMBEDDING, _OPT_ACTIVATION = "tokenizer.ggml.tokens", "token_embd.weight", "hidden_activation"
_OPT_ACTIVATIONS = {"relu": Activation.RELU, "gelu": Activation.GELU}


def _opt_variant(header: GgufHeader, names: Iterable[str]) -> dict[str, Any]:
    """What an OPT file says by a word and by the tensors that it holds."""
    key = f"opt.{_OPT_ACTIVATION}"
    activation = header.metadata.get(key, "relu")
    if activation not in _OPT_ACTIVATIONS:
        raise GgufError(header.path, f"{key!r} is {activation!r}, not one of {', '.join(_OPT_ACTIVATIONS)}")
    return {
        "activation": _OPT_ACTIVATIONS[activation],
        "is_pre_norm": f"blk.0.{PRE_NORMS[0]}.weight" in names,
        "has_final_norm": "output_norm.weight" in names,
    }


def _vector(name: str, length: int | None, *, is_optional: bool = False) -> TensorRule:
    return TensorRule(name, None if length is None else (length,), _VECTOR_TYPES, is_optional)


def _matrix(name: str, n_in: int, n_out: int, *, is_optional: bool = False) -> TensorRule:
    return TensorRule(name, (n_in, n_out), _MATRIX_TYPES, is_optional)


def _ends(shape: Shape) -> Iterator[TensorRule]:
    """What every file begins and ends with."""
    yield _matrix(_EMBEDDING, shape.embedding_width, shape.n_vocab)
    yield _matrix("output.weight", shape.embedding_width, shape.n_vocab, is_optional=True)
    if shape.has_final_norm:
        yield _vector("output_norm.weight", shape.width)


def _plain(shape: Shape, biases: Sequence[str] = (), *, has_head_norms: bool = False) -> Iterator[TensorRule]:
    """Norm, attention, norm, gated feed-forward network; `biases` names the matrices that have one."""
    yield from _ends(shape)
    queries, keys = shape.n_heads * shape.head_width, shape.n_key_heads * shape.head_width
    for layer in range(shape.n_layers):
        prefix = f"blk.{layer}."
        for name, n_in, n_out in (
            ("attn_q", shape.width, queries),
            ("attn_k", shape.width, keys),
            ("attn_v", shape.width, keys),
            ("attn_output", queries, shape.width),
            ("ffn_gate", shape.width, shape.feed_forward_width),
            ("ffn_up", shape.width, shape.feed_forward_width),
            ("ffn_down", shape.feed_forward_width, shape.width),
        ):
            yield _matrix(f"{prefix}{name}.weight", n_in, n_out)
            if name in biases:
                yield _vector(f"{prefix}{name}.bias", n_out)
        for name in PRE_NORMS:
            yield _vector(f"{prefix}{name}.weight", shape.width)
        for name in ("attn_q_norm", "attn_k_norm") if has_head_norms else ():
            yield _vector(f"{prefix}{name}.weight", shape.head_width)


def _opt(shape: Shape) -> Iterator[TensorRule]:
    width = shape.width
    yield from _ends(shape)
    yield TensorRule("position_embd.weight", (width, shape.n_positions), _TABLE_TYPES)
    if shape.embedding_width != width:
        yield _matrix("project_in.weight", shape.embedding_width, width)
        yield _matrix("project_out.weight", width, shape.embedding_width)
    if shape.has_final_norm:
        yield _vector("output_norm.bias", width)
    for layer in range(shape.n_layers):
        prefix = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"):
            n_in = shape.feed_forward_width if name == "ffn_down" else width
            n_out = shape.feed_forward_width if name == "ffn_up" else width
            yield _matrix(f"{prefix}{name}.weight", n_in, n_out)
            yield _vector(f"{prefix}{name}.bias", n_out, is_optional=True)
        for name in shape.norms:
            yield from (_vector(f"{prefix}{name}.{kind}", width) for kind in ("weight", "bias"))


def _gpt2(shape: Shape) -> Iterator[TensorRule]:
    width, wide = shape.width, shape.feed_forward_width
    yield from _ends(shape)
    yield _vector("output_norm.bias", width)
    yield TensorRule("position_embd.weight", (width, shape.n_positions), _TABLE_TYPES)
    sizes = (("attn_qkv", width, 3 * width), ("attn_output", width, width), ("ffn_up", width, wide))
    for layer in range(shape.n_layers):
        prefix = f"blk.{layer}."
        for name, n_in, n_out in (*sizes, ("ffn_down", wide, width)):
            yield _matrix(f"{prefix}{name}.weight", n_in, n_out)
            yield _vector(f"{prefix}{name}.bias", n_out)
        for name in PRE_NORMS:
            yield from (_vector(f"{prefix}{name}.{kind}", width) for kind in ("weight", "bias"))


def _qwen35(shape: Shape) -> Iterator[TensorRule]:
    """Layers of linear attention, with full attention in every so many."""
    yield from _ends(shape)
    both = ("attn_norm", "post_attention_norm", "ffn_gate", "ffn_up", "ffn_down")
    full = ("attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm")
    linear = ("attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta", "ssm_conv1d", "ssm_norm", "ssm_out")
    for layer in range(shape.n_layers):
        is_full = (layer + 1) % shape.full_attention_interval == 0
        for name in (*both, *(full if is_full else linear)):
            yield TensorRule(f"blk.{layer}.{name}.weight", None, _MATRIX_TYPES)
        for name in () if is_full else ("ssm_a", "ssm_dt.bias"):
            yield _vector(f"blk.{layer}.{name}", None)


_SIZES = {
    "n_layers": Number("block_count", 512),  # llama.cpp has room for no more
    "width": Number("embedding_length", 1 << 20),
    "feed_forward_width": Number("feed_forward_length", 1 << 24),
    "n_heads": Number("attention.head_count", 1 << 16),
    "n_positions": Number("context_length", 1 << 30),
}
_LAYER_NORM = _SIZES | {"epsilon": Number("attention.layer_norm_epsilon", 1, float)}
# export/architectures/opt.py scales the residual stream by up to 1,024, and with it the epsilon by its square.
_SCALED_LAYER_NORM = _SIZES | {"epsilon": Number("attention.layer_norm_epsilon", 1 << 20, float)}
_ROTARY = _SIZES | {
    "n_key_heads": Number("attention.head_count_kv", 1 << 16, default=lambda known: known["n_heads"]),
    "head_width": Number("attention.key_length", 1 << 16, default=lambda known: known["width"] // known["n_heads"]),
    "epsilon": Number("attention.layer_norm_rms_epsilon", 1, float),
    "rope_base": Number("rope.freq_base", 1 << 40, float, default=lambda _: 10_000.0),
}
_INTERVAL = {"full_attention_interval": Number("full_attention_interval", 512, default=lambda _: 4)}
_QWEN2_BIASES = ("attn_q", "attn_k", "attn_v")

# By the name that a file gives its architecture.
ARCHITECTURES: Mapping[str, Architecture] = {
    row.name: row
    for row in (
        Architecture("llama", _ROTARY, _plain, rotation=Rotation.NEIGHBOURS),
        Architecture("qwen2", _ROTARY, partial(_plain, biases=_QWEN2_BIASES)),
        Architecture("qwen3", _ROTARY, partial(_plain, has_head_norms=True)),
        Architecture("qwen35", _ROTARY | _INTERVAL, _qwen35, rotation=Rotation.PART, is_native=False),
        Architecture("gpt2", _SCALED_LAYER_NORM, _gpt2, rotation=Rotation.NONE, is_rms=False, is_native=False),
        Architecture("opt", _LAYER_NORM, _opt, rotation=Rotation.NONE, is_rms=False, is_stock=False),
    )
}
