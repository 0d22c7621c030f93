"""The model families that can be exported, by the name that a checkpoint gives its architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig

from export import opt, qwen3, qwen35
from export.config import ExportConfig, Quantization
from export.graph import GraphPlan


@dataclass(frozen=True)
class Family:
    """What a family knows: which settings it refuses, its checkpoint's weights, and its file."""

    check_variant: Callable[[Path, PretrainedConfig], None]
    tensor_names: Callable[[PretrainedConfig], list[str]]
    plan_graph: Callable[[PretrainedConfig, ExportConfig, Quantization], GraphPlan]


FAMILIES: Mapping[str, Family] = {
    "Qwen3ForCausalLM": Family(qwen3.check_variant, qwen3.tensor_names, qwen3.plan_graph),
    "Qwen3_5ForCausalLM": Family(qwen35.check_variant, qwen35.tensor_names, qwen35.plan_graph),
    "OPTForCausalLM": Family(opt.check_variant, opt.tensor_names, opt.plan_graph),
}
