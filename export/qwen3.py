"""Qwen3: settings that its GGUF graph depends on, and its weights under GGUF's names."""

from __future__ import annotations

from pathlib import Path

import gguf
from transformers import PretrainedConfig

from export.config import ExportConfig, Quantization
from export.errors import UnsupportedArchitectureError
from export.graph import GraphPlan, PlannedTensor

_LAYER_TENSORS = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "self_attn.q_norm",
    "self_attn.k_norm",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def check_variant(path: Path, config: PretrainedConfig) -> None:
    """Refuse settings that llama.cpp's graph does not have.

    Raises:
        UnsupportedArchitectureError: the message names the setting.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    refused = {
        "attention_bias": bool(getattr(config, "attention_bias", False)),
        "rope_parameters.rope_type": rope.get("rope_type", "default") != "default",
        "layer_types": layer_types != {"full_attention"},
        "hidden_act": config.hidden_act != "silu",
    }
    for key, is_refused in refused.items():
        if is_refused:
            value = rope.get("rope_type") if "rope" in key else getattr(config, key)
            raise UnsupportedArchitectureError(
                f"{path / 'config.json'}: '{key}' is {value!r}, for which GGUF export is not supported yet"
            )


def tensor_names(config: PretrainedConfig) -> list[str]:
    """The checkpoint's weights, in the order in which they are written."""
    names = ["model.embed_tokens.weight"]
    for layer in range(config.num_hidden_layers):
        names += [f"model.layers.{layer}.{name}.weight" for name in _LAYER_TENSORS]
    names.append("model.norm.weight")
    return names if config.tie_word_embeddings else [*names, "lm_head.weight"]


def plan_graph(config: PretrainedConfig, _export: ExportConfig, _quantization: Quantization) -> GraphPlan:
    """llama.cpp's own `qwen3`: every weight as it stands."""
    rope = getattr(config, "rope_parameters", None) or {}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
    tensors = []
    for source in tensor_names(config):
        name = names.get_name(source, try_suffixes=(".weight",))
        assert name is not None, f"gguf knows no name for {source}"
        tensors.append(PlannedTensor(name, (source,)))
    return GraphPlan(
        architecture="qwen3",
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
            "rope.freq_base": float(rope.get("rope_theta", 10_000.0)),
        },
        tensors=tuple(tensors),
    )
