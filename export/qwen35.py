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

from export.config import ExportConfig, Quantization
from export.errors import UnsupportedArchitectureError
from export.graph import GraphPlan, PlannedTensor

_FULL, _LINEAR = "full_attention", "linear_attention"
# transformers' default; llama.cpp has none. Text has one position where images have three, so any sections do.
_ROPE_SECTIONS = (11, 11, 10)

_BOTH = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FULL_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
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
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    key_width, value_width = config.linear_key_head_dim, config.linear_value_head_dim
    refused = {
        "attention_bias": (config.attention_bias, bool(config.attention_bias)),
        "rope_parameters.rope_type": (rope_type, rope_type != "default"),
        "hidden_act": (config.hidden_act, config.hidden_act != "silu"),
        "linear_value_head_dim": (value_width, value_width != key_width),
        "layer_types": (config.layer_types, _interval(config) is None),
    }
    for key, (value, is_refused) in refused.items():
        if is_refused:
            raise UnsupportedArchitectureError(
                f"{path / 'config.json'}: '{key}' is {value!r}, for which GGUF export is not supported yet"
            )


def _interval(config: PretrainedConfig) -> int | None:
    """Every how many layers attention is full; None where it follows no such rule."""
    if _FULL not in config.layer_types:
        return None
    interval: int = config.layer_types.index(_FULL) + 1
    expected = [_LINEAR if (layer + 1) % interval else _FULL for layer in range(config.num_hidden_layers)]
    return interval if list(config.layer_types) == expected else None


def tensor_names(config: PretrainedConfig) -> list[str]:
    """The checkpoint's weights."""
    return [source for tensor in _tensors(config) for source in tensor.sources]


def plan_graph(config: PretrainedConfig, _export: ExportConfig, _quantization: Quantization) -> GraphPlan:
    """llama.cpp's own `qwen35`."""
    rope = config.rope_parameters or {}
    interval = _interval(config)
    assert interval is not None, "check_variant refuses other models"
    sections = tuple(rope.get("mrope_section", _ROPE_SECTIONS))
    return GraphPlan(
        architecture="qwen35",
        n_layers=config.num_hidden_layers,
        metadata={
            "block_count": config.num_hidden_layers,
            "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
            "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
            "full_attention_interval": interval,
            "rope.freq_base": float(rope.get("rope_theta", 10_000.0)),
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
