"""Qwen3: settings that its GGUF graph depends on, and its weights under GGUF's names."""

from __future__ import annotations

from pathlib import Path

from transformers import PretrainedConfig

from export.architectures import plain
from export.config import ExportConfig, Quantization
from export.graph import Family, GraphPlan


def check_variant(path: Path, config: PretrainedConfig) -> None:
    """Refuse settings that the graph does not have.

    Raises:
        UnsupportedArchitectureError: the message names the setting.
    """
    plain.refuse(path, plain.common_settings(config) | plain.only_full_attention(config))


def plan_graph(config: PretrainedConfig, _export: ExportConfig, _quantization: Quantization) -> GraphPlan:
    """llama.cpp's own `qwen3`: every weight as it stands."""
    tensors = plain.tensors(config, plain.ATTENTION | plain.HEAD_NORMS | plain.FEED_FORWARD)
    return GraphPlan("qwen3", config.num_hidden_layers, plain.metadata(config), tensors)


FAMILY = Family("Qwen3ForCausalLM", check_variant, plan_graph)
