"""Qwen3.5's text model: layers of linear attention (gated delta net) with full attention in every so many.

llama.cpp wants some weights in another form than the checkpoint's, as its own converter makes them: the decay as a
negative rate, norms with the one that the model adds to them, and where value heads outnumber key heads, value heads
in the order in which ggml repeats key heads beside them (0, 1, 2, 0, 1, 2 and not 0, 0, 1, 1, 2, 2).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import PretrainedConfig

from export.architectures import plain
from export.config import ExportConfig, Quantization
from export.graph import Family, GraphPlan, PlannedTensor

_FULL, _LINEAR = "full_attention", "linear_attention"
# transformers' default; llama.cpp has none. Text has one position where images have three, so any sections do.
_ROPE_SECTIONS = (11, 11, 10)

_BOTH = {
    "attn_norm": plain.ATTENTION["attn_norm"],
    **{"post_attention_norm" if name == "ffn_norm" else name: part for name, part in plain.FEED_FORWARD.items()},
}
_FULL_ATTENTION = plain.ATTENTION | plain.HEAD_NORMS
_LINEAR_ATTENTION = {
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
# Without ".weight" on either side.
_LINEAR_VECTORS = {"ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias"}
_NORMS_WITHOUT_ONE = ("attn_norm", "post_attention_norm", "attn_q_norm", "attn_k_norm")


def check_variant(path: Path, config: PretrainedConfig) -> None:
    """Refuse settings that llama.cpp's graph does not have.

    Raises:
        UnsupportedArchitectureError: the message names the setting.
    """
    key_width, value_width = config.linear_key_head_dim, config.linear_value_head_dim
    own = {
        "linear_value_head_dim": (value_width, value_width != key_width),
        "layer_types": (config.layer_types, _interval(config) is None),
    }
    plain.refuse(path, plain.common_settings(config) | own)


def _interval(config: PretrainedConfig) -> int | None:
    """Every how many layers attention is full; None where it follows no such rule."""
    if _FULL not in config.layer_types:
        return None
    interval: int = config.layer_types.index(_FULL) + 1
    expected = [_LINEAR if (layer + 1) % interval else _FULL for layer in range(config.num_hidden_layers)]
    return interval if list(config.layer_types) == expected else None


def plan_graph(config: PretrainedConfig, _export: ExportConfig, _quantization: Quantization) -> GraphPlan:
    """llama.cpp's own `qwen35`."""
    rope = plain.rope(config)
    interval = _interval(config)
    assert interval is not None, "check_variant refuses other models"
    sections = tuple(rope.get("mrope_section", _ROPE_SECTIONS))
    return GraphPlan(
        architecture="qwen35",
        n_layers=config.num_hidden_layers,
        metadata=plain.metadata(config)
        | {
            "full_attention_interval": interval,
            "rope.dimension_count": int(config.head_dim * rope.get("partial_rotary_factor", 0.25)),
            "rope.dimension_sections": (*sections, *(0,) * (4 - len(sections))),
            "ssm.conv_kernel": config.linear_conv_kernel_dim,
            "ssm.state_size": config.linear_key_head_dim,
            "ssm.group_count": config.linear_num_key_heads,
            "ssm.time_step_rank": config.linear_num_value_heads,
            "ssm.inner_size": config.linear_value_head_dim * config.linear_num_value_heads,
        },
        tensors=tuple(_tensors(config)),
    )


def _tensors(config: PretrainedConfig) -> list[PlannedTensor]:
    tensors = [PlannedTensor("token_embd.weight", ("model.embed_tokens.weight",))]
    for layer, kind in enumerate(config.layer_types):
        source, target = f"model.layers.{layer}.", f"blk.{layer}."
        own = _FULL_ATTENTION if kind == _FULL else _LINEAR_ATTENTION
        for name, part in (_BOTH | own).items():
            transform = _transform(config, name)
            shape = (_conv_width(config), config.linear_conv_kernel_dim) if name == "ssm_conv1d" else ()
            sources = (f"{source}{part}.weight",)
            tensors.append(PlannedTensor(f"{target}{name}.weight", sources, shape=shape, transform=transform))
        for name, part in _LINEAR_VECTORS.items() if kind == _LINEAR else ():
            tensors.append(PlannedTensor(target + name, (source + part,), transform=_transform(config, name)))
    tensors.append(PlannedTensor("output_norm.weight", ("model.norm.weight",), transform=_plus_one))
    if not config.tie_word_embeddings:
        tensors.append(PlannedTensor("output.weight", ("lm_head.weight",)))
    return tensors


def _conv_width(config: PretrainedConfig) -> int:
    keys = 2 * config.linear_key_head_dim * config.linear_num_key_heads
    return int(keys + config.linear_value_head_dim * config.linear_num_value_heads)


def _transform(config: PretrainedConfig, name: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
    if name in _NORMS_WITHOUT_ONE:
        return _plus_one
    tile = partial(_tile_values, n_keys=config.linear_num_key_heads, n_values=config.linear_num_value_heads)
    n_before = 2 * config.linear_key_head_dim * config.linear_num_key_heads  # rows of queries and keys
    transforms: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "ssm_a": lambda a_log: -torch.exp(tile(a_log)),
        "ssm_dt.bias": tile,
        "ssm_alpha": tile,
        "ssm_beta": tile,
        "attn_gate": tile,
        "attn_qkv": lambda rows: torch.cat([rows[:n_before], tile(rows[n_before:])]),
        "ssm_conv1d": lambda rows: torch.cat([rows[:n_before, 0], tile(rows[n_before:, 0])]),
        "ssm_out": lambda columns: tile(columns.T).T,
    }
    return transforms.get(name)


def _plus_one(values: torch.Tensor) -> torch.Tensor:
    return values + 1


def _tile_values(rows: torch.Tensor, n_keys: int, n_values: int) -> torch.Tensor:
    """Rows by value head, from grouped by key head to tiled: of 2 keys and 4 values, 0 1 2 3 becomes 0 2 1 3."""
    grouped = rows.reshape(n_keys, n_values // n_keys, rows.shape[0] // n_values, *rows.shape[1:])
    return grouped.transpose(0, 1).reshape(rows.shape)


FAMILY = Family(
    "Qwen3_5ForCausalLM",
    check_variant,
    plan_graph,
    # The published checkpoints: images are seen by a part of their own, and `mtp` guesses the token after the next.
    other_names=("Qwen3_5ForConditionalGeneration",),
    prefix="model.language_model.",
    left_out=("model.visual.", "mtp."),
)
