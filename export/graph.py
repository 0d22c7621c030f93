"""A model in GGUF's terms: an architecture, its numbers, and where each weight of the file comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig

from export.config import ExportConfig, Quantization


@dataclass(frozen=True)
class PlannedTensor:
    """A weight of the file: the checkpoint's `sources` joined row by row, without their first rows, times `factor`.

    Without sources it is a tensor of `shape` filled with `fill`: what a checkpoint leaves out and a graph needs.
    `transform` computes what a factor cannot; where it changes the shape, `shape` is that afterwards.
    """

    name: str
    sources: tuple[str, ...]
    factor: float = 1.0
    first_row: int = 0
    shape: tuple[int, ...] = ()
    fill: float = 0.0
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True)
class GraphPlan:
    """`metadata` are the architecture's own keys, without its name in front."""

    architecture: str
    n_layers: int
    metadata: Mapping[str, int | float | str | tuple[int, ...]]
    tensors: tuple[PlannedTensor, ...]


@dataclass(frozen=True)
class Family:
    """What is known about checkpoints of one architecture.

    Args:
        name: what the checkpoint calls its architecture.
        check_variant: refuses settings that the graph lacks, each by its name in config.json.
        plan_graph: the file for a configuration that `check_variant` let pass.
        other_names: architectures that hold such a model of text beside parts that are left out.
        prefix: what such a checkpoint puts before the names of the text model's weights; a model of text that was
            loaded from one is saved with it, too.
        left_out: beginnings of the names of those other parts.
    """

    name: str
    check_variant: Callable[[Path, PretrainedConfig], None]
    plan_graph: Callable[[PretrainedConfig, ExportConfig, Quantization], GraphPlan]
    other_names: tuple[str, ...] = ()
    prefix: str = ""
    left_out: tuple[str, ...] = ()

    def own_name(self, name: str) -> str | None:
        """A weight's name as the plan has it, whatever stands around the text model; None for another part's."""
        if name.startswith(self.left_out or ("\0",)):
            return None
        return f"model.{name.removeprefix(self.prefix)}" if self.prefix and name.startswith(self.prefix) else name

    def tensor_names(self, config: PretrainedConfig) -> list[str]:
        """The checkpoint's weights."""
        plan = self.plan_graph(config, ExportConfig(), Quantization.F32)
        return [source for tensor in plan.tensors for source in tensor.sources]
