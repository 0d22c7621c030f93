"""Checks a model's own numbers before llama.cpp sees them: it ends the process where some contradict each other.

Nothing is required here that a file may leave out; what is missing altogether, llama.cpp reports as an error.
"""

from __future__ import annotations

import math
from typing import Any

from tinydispatch.ggml.architectures import ARCHITECTURES, Rotation
from tinydispatch.ggml.header import GgufError, GgufHeader

_MAX_LAYERS, _MAX_EXPERTS = 512, 1024  # llama-hparams.h
_MAX_NUMBER = 1 << 31
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")


def check_numbers(header: GgufHeader) -> None:
    """Refuse numbers on which llama.cpp would end the process.

    Raises:
        GgufError: the message names the key and its value.
    """
    prefix = f"{header.architecture}."
    own = {key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)}
    for key, value in own.items():
        is_epsilon = key.endswith("epsilon")
        _require(header, key, value, _is_sane(value) and (not is_epsilon or _is_positive(value)))
    _check_counts(header, own)
    if (architecture := ARCHITECTURES.get(header.architecture)) is not None:
        _check_widths(header, own, architecture.rotation)
    if header.architecture == "qwen35":
        _check_linear_attention(header, own)
    scaling = own.get("rope.scaling.type", _ROPE_SCALINGS[0])
    _require(header, "rope.scaling.type", scaling, scaling in _ROPE_SCALINGS)


def _is_sane(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_sane(item) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or 0 <= value < _MAX_NUMBER


def _is_positive(value: Any) -> bool:
    return isinstance(value, float) and value >= 0


def _check_counts(header: GgufHeader, own: dict[str, Any]) -> None:
    layers = own.get("block_count", 1)
    _require(header, "block_count", layers, type(layers) is int and 1 <= layers <= _MAX_LAYERS)
    for key in ("embedding_length", "context_length"):
        _require(header, key, own.get(key, 1), own.get(key, 1) != 0)
    predicted = own.get("nextn_predict_layers", 0)
    _require(header, "nextn_predict_layers", predicted, type(predicted) is int and predicted <= layers)
    experts, used = own.get("expert_count", 0), own.get("expert_used_count", 0)
    most = max(used, default=0) if isinstance(used, tuple) else used
    _require(header, "expert_count", experts, type(experts) is int and experts <= _MAX_EXPERTS)
    _require(header, "expert_used_count", used, type(most) is int and (0 < most <= experts or most == experts == 0))
    groups = own.get("expert_group_count", 0)
    _require(header, "expert_group_count", groups, type(groups) is int and (groups < experts or groups == experts == 0))


def _check_widths(header: GgufHeader, own: dict[str, Any], rotation: Rotation) -> None:
    """The graphs of our table assert that keys and values are equally wide, and how much of them is rotated."""
    heads, width = own.get("attention.head_count"), own.get("embedding_length")
    _require(header, "attention.head_count", heads, type(heads) is int and heads > 0)
    _require(header, "embedding_length", width, type(width) is int and width > 0)
    assert isinstance(heads, int)
    assert isinstance(width, int)
    key_heads = own.get("attention.head_count_kv", heads)
    is_shared = type(key_heads) is int and key_heads > 0 and heads % key_heads == 0
    _require(header, "attention.head_count_kv", key_heads, is_shared)
    key_width = own.get("attention.key_length", width // heads)
    # By the strides of heads of width 1, llama.cpp cannot tell transposed values from others, and ends the process.
    is_whole = type(key_width) is int and key_width > 1 and ("attention.key_length" in own or width % heads == 0)
    _require(header, "attention.key_length", key_width, is_whole)
    value_width = own.get("attention.value_length", width // heads)
    _require(header, "attention.value_length", value_width, value_width == key_width)
    rotated = own.get("rope.dimension_count", key_width)
    is_whole = rotation in (Rotation.NONE, Rotation.PART) or rotated == key_width
    is_rotatable = type(rotated) is int and 0 < rotated <= key_width and (rotation is Rotation.NONE or rotated % 2 == 0)
    _require(header, "rope.dimension_count", rotated, is_whole and is_rotatable)


def _check_linear_attention(header: GgufHeader, own: dict[str, Any]) -> None:
    """Each value head is as wide as a key head, key heads are shared evenly, and a head's rotated parts fit it."""
    keys = ("ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank", "ssm.inner_size")
    for key in (*keys, "full_attention_interval"):
        if key in own:  # llama.cpp names the one that is missing
            _require(header, key, own[key], type(own[key]) is int and own[key] > 0)
    sections, key_width = own.get("rope.dimension_sections"), own.get("attention.key_length", _MAX_NUMBER)
    if sections is not None:
        are_numbers = isinstance(sections, tuple) and all(type(item) is int for item in sections)
        is_good = are_numbers and any(sections[:3]) and sum(sections[:4]) <= key_width
        _require(header, "rope.dimension_sections", sections, is_good)
    if all(key in own for key in keys):
        _, width, n_keys, n_values, inner = (own[key] for key in keys)
        _require(header, "ssm.group_count", n_keys, n_values % n_keys == 0)
        _require(header, "ssm.inner_size", inner, inner == width * n_values)


def _require(header: GgufHeader, key: str, value: Any, is_good: bool) -> None:
    if not is_good:
        name = f"{header.architecture}.{key}"
        problem = f"'{name}' is {repr(value)[:60]}, which is impossible or contradicts the model's other numbers"
        raise GgufError(header.path, problem)
