"""Llama, and what shares its graph, such as SmolLM2.

transformers turns a head's first half against its second; llama.cpp's `llama` turns neighbours. The rows of queries and
keys are therefore written in another order: the first half's rows between those of the second. Attention only sees
products of queries with keys, in which the order of a head's numbers cancels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from transformers import PretrainedConfig

from export.architectures import plain
from export.config import ExportConfig, Quantization
from export.graph import Family, GraphPlan


def check_variant(path: Path, config: PretrainedConfig) -> None:
    """Refuse settings that the graph does not have.

    Raises:
        UnsupportedArchitectureError: the message names the setting.
    """
    plain.refuse(path, plain.common_settings(config) | {"mlp_bias": (config.mlp_bias, bool(config.mlp_bias))})


def plan_graph(config: PretrainedConfig, _export: ExportConfig, _quantization: Quantization) -> GraphPlan:
    """llama.cpp's own `llama`."""
    own = {"rope.dimension_count": plain.head_width(config), "vocab_size": config.vocab_size}
    transforms = {
        "attn_q.weight": partial(interleave_halves, n_heads=config.num_attention_heads),
        "attn_k.weight": partial(interleave_halves, n_heads=config.num_key_value_heads),
    }
    tensors = plain.tensors(config, plain.ATTENTION | plain.FEED_FORWARD, transforms=transforms)
    return GraphPlan("llama", config.num_hidden_layers, plain.metadata(config) | own, tensors)


def interleave_halves(rows: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Rows of heads, in each the halves taken in turns: of six rows 0 3 1 4 2 5."""
    return rows.reshape(n_heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


FAMILY = Family("LlamaForCausalLM", check_variant, plan_graph)
