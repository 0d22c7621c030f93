"""Tiny Q8_0 files that the native decoder computes: every kind of layer, activation and table that it knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from export.config import ExportConfig, OptGraph, Quantization
from export.export import export_gguf
from tests.fixtures_gguf import scratch, tiny_export
from tests.fixtures_opt import make_tiny_opt, post_norm_export, pre_norm_export


def _odd_opt() -> Path:
    """Pre-layer-norm OPT with GELU, a vocabulary that fills no whole vector, and heads of a single one."""
    folder = scratch()
    sizes = {"do_layer_norm_before": True, "word_embed_proj_dim": 64, "vocab_size": 331, "activation_function": "gelu"}
    config = ExportConfig(quantizations=(Quantization.Q8_0,), opt_graph=OptGraph.OPT, max_verification_tokens=32)
    return export_gguf(make_tiny_opt(folder / "checkpoint", **sizes), folder, "odd", config).files[0].path


# name → where it is, once it is made
NATIVE_FILES: dict[str, Callable[[], Path]] = {
    "qwen": lambda: tiny_export().files[1].path,
    "opt-350m": lambda: post_norm_export().files[2].path,
    "opt-125m": lambda: pre_norm_export(OptGraph.OPT).files[2].path,
    "galactica": _odd_opt,
}
