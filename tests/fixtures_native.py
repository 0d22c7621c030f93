"""Tiny quantized files that the native decoder computes: every kind of layer, activation and table that it knows."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import gguf

from export.config import ExportConfig, OptGraph, Quantization
from export.export import export_gguf
from tests.fixtures_gguf import scratch, tiny_export, tiny_llama_export
from tests.fixtures_models import make_tiny_qwen2, make_tiny_qwen3
from tests.fixtures_opt import make_tiny_opt, post_norm_export, pre_norm_export
from tinydispatch.ggml.mixtures import quantize_rows


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


def _qwen2() -> Path:
    folder = scratch()
    config = ExportConfig(quantizations=(Quantization.Q8_0,), max_verification_tokens=32)
    return export_gguf(make_tiny_qwen2(folder / "checkpoint"), folder, "qwen2", config).files[0].path


@lru_cache
def of_one_type(type_name: str) -> Path:
    """The tiny Llama with every matrix in one format, which no mixture of ours writes."""
    reader, path = gguf.GGUFReader(tiny_llama_export().files[0].path), scratch() / f"{type_name}.gguf"
    kind = gguf.GGMLQuantizationType[type_name]
    writer = gguf.GGUFWriter(path, "llama")
    for name, entry in reader.fields.items():
        if not name.startswith("GGUF.") and name != gguf.Keys.General.ARCHITECTURE:
            item, *rest = entry.types
            writer.add_key_value(name, entry.contents(), item, rest[-1] if rest else None)
    for tensor in reader.tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, tensor.data)
        else:
            writer.add_tensor(tensor.name, quantize_rows(tensor.data, kind.value), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# name → where it is, once it is made
NATIVE_FILES: dict[str, Callable[[], Path]] = {
    "qwen": lambda: tiny_export().files[1].path,
    "opt-350m": lambda: post_norm_export().files[2].path,
    "opt-125m": lambda: pre_norm_export(OptGraph.OPT).files[2].path,
    "galactica": _odd_opt,
    "qwen-k": _k_qwen,
    "opt-k": _k_opt,
    "qwen2": _qwen2,
    "llama": lambda: tiny_llama_export().files[2].path,
    "llama-5": lambda: tiny_llama_export().files[3].path,
    "llama-4": lambda: tiny_llama_export().files[4].path,
    "llama-q4_0": lambda: of_one_type("Q4_0"),
    "llama-q4_1": lambda: of_one_type("Q4_1"),
}
