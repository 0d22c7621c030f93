"""Tiny quantized files that the native decoder computes: every kind of layer, activation and table that it knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from export.config import ExportConfig, OptGraph, Quantization
from export.export import export_gguf
from tests.fixtures_gguf import scratch, tiny_export
from tests.fixtures_models import make_tiny_qwen3
from tests.fixtures_opt import make_tiny_opt, post_norm_export, pre_norm_export


def _odd_opt() -> Path:
    """Pre-layer-norm OPT with GELU, a vocabulary that fills no whole vector, and heads of a single one."""
    folder = scratch()
    sizes = {"do_layer_norm_before": True, "word_embed_proj_dim": 64, "vocab_size": 331, "activation_function": "gelu"}
    config = ExportConfig(quantizations=(Quantization.Q8_0,), opt_graph=OptGraph.OPT, max_verification_tokens=32)
    return export_gguf(make_tiny_opt(folder / "checkpoint", **sizes), folder, "odd", config).files[0].path


def _k_quantized(checkpoint: Path) -> Path:
    """Q4_K and Q6_K, whose rows are whole blocks of 256, and Q8_0 for the looked-up rows of some."""
    config = ExportConfig(quantizations=(Quantization.Q4_K_M,), max_verification_tokens=32)
    return export_gguf(checkpoint, checkpoint.parent, "k", config).files[0].path


def _k_qwen() -> Path:
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 1,
    }
    return _k_quantized(make_tiny_qwen3(scratch() / "checkpoint", **sizes))


def _k_opt() -> Path:
    sizes = {
        "hidden_size": 512,
        "ffn_dim": 512,
        "word_embed_proj_dim": 256,
        "vocab_size": 323,
        "num_hidden_layers": 1,
        "init_std": 0.05,
    }
    return _k_quantized(make_tiny_opt(scratch() / "checkpoint", **sizes))


# name → where it is, once it is made
NATIVE_FILES: dict[str, Callable[[], Path]] = {
    "qwen": lambda: tiny_export().files[1].path,
    "opt-350m": lambda: post_norm_export().files[2].path,
    "opt-125m": lambda: pre_norm_export(OptGraph.OPT).files[2].path,
    "galactica": _odd_opt,
    "qwen-k": _k_qwen,
    "opt-k": _k_opt,
}
