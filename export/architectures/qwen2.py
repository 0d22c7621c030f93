"""Qwen2 and Qwen2.5: Llama's layers with a bias on queries, keys and values, and halves turned against each other."""

from __future__ import annotations

from pathlib import Path

from transformers import PretrainedConfig

from export.architectures import plain
from export.config import ExportConfig, Quantization
from export.graph import Family, GraphPlan

_BIASES = {name: plain.ATTENTION[name] for name in ("attn_q", "attn_k", "attn_v")}


def check_variant(path: Path, config: PretrainedConfig) -> None:
    """Refuse settings that the graph does not have.

    Raises:
        UnsupportedArchitectureError: the message names the setting.
    """
    plain.refuse(path, plain.common_settings(config) | plain.only_full_attention(config))


def plan_graph(config: PretrainedConfig, _export: ExportConfig, _quantization: Quantization) -> GraphPlan:
    """llama.cpp's own `qwen2`: every weight as it stands."""
    tensors = plain.tensors(config, plain.ATTENTION | plain.FEED_FORWARD, _BIASES)
    return GraphPlan("qwen2", config.num_hidden_layers, plain.metadata(config), tensors)


FAMILY = Family("Qwen2ForCausalLM", check_variant, plan_graph)
