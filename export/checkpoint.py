"""Opens a Hugging Face checkpoint directory and checks that its graph is one that we can write as GGUF."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig

from export.errors import ExportError, UnsupportedArchitectureError

SUPPORTED_ARCHITECTURES = ("Qwen3ForCausalLM",)

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


@dataclass(frozen=True)
class Checkpoint:
    """A directory with a supported model; `tensor_files` tells which safetensors file holds which tensor."""

    path: Path
    architecture: str
    config: PretrainedConfig
    tensor_files: Mapping[str, Path]

    def tensor(self, name: str) -> torch.Tensor:
        """One weight in the checkpoint's own dtype; only this one is read."""
        with safe_open(self.tensor_files[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """One weight's shape, without reading the weight."""
        with safe_open(self.tensor_files[name], framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())


def check_architecture(path: Path) -> str:
    """The checkpoint's architecture, read from `config.json` alone, so that a long run can ask before it starts.

    Raises:
        UnsupportedArchitectureError: there is no GGUF export of it yet.
        ExportError: no checkpoint there, or an adapter that was not merged.
    """
    file = path / "config.json"
    if not file.is_file():
        if (path / "adapter_config.json").is_file():
            raise ExportError(f"{path}: holds an adapter; merge it into its base model before exporting")
        raise ExportError(f"{path}: no checkpoint there (no config.json)")
    try:
        value = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ExportError(f"{file}: not JSON: {error}") from error
    named = value.get("architectures") if isinstance(value, dict) else None
    architecture = str(named[0]) if isinstance(named, list) and named else "a model that names no architecture"
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise UnsupportedArchitectureError(
            f"GGUF export of {architecture} is not supported yet "
            f"(supported: {', '.join(SUPPORTED_ARCHITECTURES)}); the checkpoint is at {path}"
        )
    if "quantization_config" in value:
        raise UnsupportedArchitectureError(
            f"{file}: 'quantization_config': the weights are quantized already; export from an unquantized checkpoint"
        )
    return architecture


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint and check every setting and weight that the GGUF graph depends on.

    Raises:
        UnsupportedArchitectureError: the graph cannot be expressed.
        ExportError: files or weights are missing or damaged.
    """
    path = Path(path)
    architecture = check_architecture(path)
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    _check_variant(path, config)
    files = _tensor_files(path)
    _check_tensors(path, config, set(files))
    return Checkpoint(path, architecture, config, files)


def _check_variant(path: Path, config: PretrainedConfig) -> None:
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


def _tensor_files(path: Path) -> dict[str, Path]:
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise ExportError(f"{path}: holds no model*.safetensors; save the model with save_pretrained")
    found: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                found.update(dict.fromkeys(opened.keys(), file))
        except (SafetensorError, OSError) as error:
            raise ExportError(f"{file}: damaged or truncated: {error}") from error
    return found


def tensor_names(config: PretrainedConfig) -> list[str]:
    """The weights of a Qwen3 model, in the order in which they are written."""
    names = ["model.embed_tokens.weight"]
    for layer in range(config.num_hidden_layers):
        names += [f"model.layers.{layer}.{name}.weight" for name in _LAYER_TENSORS]
    names.append("model.norm.weight")
    return names if config.tie_word_embeddings else [*names, "lm_head.weight"]


def _check_tensors(path: Path, config: PretrainedConfig, found: set[str]) -> None:
    expected = set(tensor_names(config))
    # Some savers write the output head beside the embedding that it shares its weights with.
    extra = found - expected - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    for problem, names in (("lacks", expected - found), ("holds unknown", extra)):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            raise ExportError(f"{path}: {problem} {len(names)} weights: {shown}")


def describe(config: PretrainedConfig) -> dict[str, Any]:
    """The numbers that make the graph, under the names of their GGUF keys."""
    rope = getattr(config, "rope_parameters", None) or {}
    return {
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
    }
