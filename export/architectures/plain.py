"""What decoders of the common shape share: norm, attention with rotary positions, norm, gated feed-forward network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from export.errors import UnsupportedArchitectureError
from export.graph import PlannedTensor

Transform = Callable[[torch.Tensor], torch.Tensor]

# GGUF's name of a layer's weight → the checkpoint's; ".weight" is added to both.
ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
FEED_FORWARD = {
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def refuse(path: Path, settings: Mapping[str, tuple[Any, bool]]) -> None:
    """Stop at the first setting that is marked as one that llama.cpp's graph does not have.

    Args:
        settings: by the setting's name in config.json, its value and whether it is refused.

    Raises:
        UnsupportedArchitectureError: the message names the setting.
    """
    for key, (value, is_refused) in settings.items():
        if is_refused:
            raise UnsupportedArchitectureError(
                f"{path / 'config.json'}: '{key}' is {value!r}, for which GGUF export is not supported yet"
            )


def common_settings(config: PretrainedConfig, activation: str = "silu") -> dict[str, tuple[Any, bool]]:
    """Settings that none of these graphs has, as `refuse` takes them."""
    bias, rope_type = getattr(config, "attention_bias", False), rope(config).get("rope_type", "default")
    key = "hidden_activation" if hasattr(config, "hidden_activation") else "hidden_act"
    return {
        "attention_bias": (bias, bool(bias)),
        "rope_parameters.rope_type": (rope_type, rope_type != "default"),
        key: (getattr(config, key), getattr(config, key) != activation),
    }


def only_full_attention(config: PretrainedConfig) -> dict[str, tuple[Any, bool]]:
    """Layer types that are not all full attention, as `refuse` takes them."""
    types = getattr(config, "layer_types", None) or ["full_attention"]
    return {"layer_types": (types, set(types) != {"full_attention"})}


def rope(config: PretrainedConfig) -> Mapping[str, Any]:
    """The rotary positions' settings."""
    return getattr(config, "rope_parameters", None) or {}


def head_width(config: PretrainedConfig) -> int:
    """The width of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def metadata(config: PretrainedConfig) -> dict[str, int | float | str | tuple[int, ...]]:
    """The numbers of such a graph."""
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_width(config),
        "attention.value_length": head_width(config),
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(rope(config).get("rope_theta", 10_000.0)),
    }


def tensors(
    config: PretrainedConfig,
    layer: Mapping[str, str],
    biases: Mapping[str, str] | None = None,
    transforms: Mapping[str, Transform] | None = None,
) -> tuple[PlannedTensor, ...]:
    """All weights, in the order in which they are written.

    Args:
        layer: a layer's weights, GGUF's name → the checkpoint's.
        biases: those of the layer's matrices that have one, the same way.
        transforms: by GGUF's name without the layer in front.
    """

    def planned() -> Iterator[tuple[str, str, str]]:
        yield "", "token_embd.weight", "model.embed_tokens.weight"
        for index in range(config.num_hidden_layers):
            for kind, names in (("weight", layer), ("bias", biases or {})):
                for name, source in names.items():
                    yield f"blk.{index}.", f"{name}.{kind}", f"model.layers.{index}.{source}.{kind}"
        yield "", "output_norm.weight", "model.norm.weight"
        if not config.tie_word_embeddings:
            yield "", "output.weight", "lm_head.weight"

    given = transforms or {}
    return tuple(
        PlannedTensor(prefix + name, (source,), transform=given.get(name)) for prefix, name, source in planned()
    )
