"""OPT as a GGUF file: under its own architecture, or, with layer norms before attention, in the clothes of GPT-2.

GPT-2's graph differs from such an OPT in one thing: GELU instead of ReLU. ReLU(x) is GELU(kx)/k up to 0.17/k, and
ggml's GELU is exactly 0 or x beyond |x| = 10. So fc1 is scaled by k, and instead of shrinking fc2 by k, which small
number formats cannot hold, everything that is added to the residual stream grows by k: embeddings, attention's output,
fc2's bias. Layer norms undo a scale by themselves (their epsilon grows by k²), and the last one divides by k what the
tied output matrix has too much. With k a power of two nothing is rounded: only the GELU differs.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PretrainedConfig

from export.config import ExportConfig, OptGraph, Quantization
from export.errors import UnsupportedArchitectureError
from export.graph import Family, GraphPlan, PlannedTensor
from tinydispatch.ggml.architectures import POST_NORMS, PRE_NORMS

_PREFIX = "model.decoder."
# OPT's learned positions begin at 2; nothing ever looks the first two rows up.
_POSITION_OFFSET = 2
_EPSILON = 1e-5  # torch's default, which the model takes
# 16-bit weights make ggml round activations to 16 bits, which end at 65,504: a smaller k leaves ReLU 256 to grow to.
_RESIDUAL_SCALE, _RESIDUAL_SCALE_F16 = 1024.0, 256.0

_ATTENTION = (("attn_q", "q_proj"), ("attn_k", "k_proj"), ("attn_v", "v_proj"))


def check_variant(path: Path, config: PretrainedConfig) -> None:
    """Refuse settings that neither graph has.

    Raises:
        UnsupportedArchitectureError: the message names the setting.
    """
    if config.activation_function not in ("relu", "gelu"):
        raise UnsupportedArchitectureError(
            f"{path / 'config.json'}: 'activation_function' is {config.activation_function!r}, "
            "for which GGUF export is not supported yet"
        )


def plan_graph(config: PretrainedConfig, export: ExportConfig, quantization: Quantization) -> GraphPlan:
    """The graph that the configuration asks for.

    Raises:
        UnsupportedArchitectureError: `export.opt_graph` asks for gpt2, which cannot compute this model.
    """
    obstacle = _gpt2_obstacle(config)
    if export.opt_graph is OptGraph.GPT2 and obstacle is not None:
        raise UnsupportedArchitectureError(
            f"'export.opt_graph' is gpt2, whose graph cannot compute this model: {obstacle}; take auto or opt"
        )
    if export.opt_graph is OptGraph.OPT or obstacle is not None:
        return _opt(config)
    is_relu = config.activation_function == "relu"
    scale = _RESIDUAL_SCALE_F16 if quantization is Quantization.F16 else _RESIDUAL_SCALE
    return _gpt2(config, scale if is_relu else 1.0)


def _gpt2_obstacle(config: PretrainedConfig) -> str | None:
    if not config.do_layer_norm_before:
        return "its layer norms stand after attention ('do_layer_norm_before' is false)"
    if config.word_embed_proj_dim != config.hidden_size:
        return f"'word_embed_proj_dim' is {config.word_embed_proj_dim}, 'hidden_size' {config.hidden_size}"
    return None if _has_final_norm(config) else "it has no final layer norm"


def _has_final_norm(config: PretrainedConfig) -> bool:
    return bool(config.do_layer_norm_before and not config._remove_final_layer_norm)


def _metadata(config: PretrainedConfig, epsilon: float) -> dict[str, int | float | str | tuple[int, ...]]:
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.ffn_dim,
        "attention.head_count": config.num_attention_heads,
        "attention.layer_norm_epsilon": epsilon,
    }


def _opt(config: PretrainedConfig) -> GraphPlan:
    tensors = _embeddings(config, 1.0)
    for name in ("project_in", "project_out"):
        if config.word_embed_proj_dim != config.hidden_size:
            tensors.append(PlannedTensor(f"{name}.weight", (f"{_PREFIX}{name}.weight",)))
    norms = PRE_NORMS if config.do_layer_norm_before else POST_NORMS
    for layer in range(config.num_hidden_layers):
        source, target = f"{_PREFIX}layers.{layer}.", f"blk.{layer}."
        linears = [(name, f"self_attn.{part}") for name, part in (*_ATTENTION, ("attn_output", "out_proj"))]
        for name, part in (*linears, ("ffn_up", "fc1"), ("ffn_down", "fc2")):
            for kind in ("weight", "bias") if config.enable_bias else ("weight",):
                tensors.append(PlannedTensor(f"{target}{name}.{kind}", (f"{source}{part}.{kind}",)))
        tensors += _norm(config, target + norms[0], source + "self_attn_layer_norm")
        tensors += _norm(config, target + norms[1], source + "final_layer_norm")
    if _has_final_norm(config):
        tensors += _norm(config, "output_norm", _PREFIX + "final_layer_norm")
    metadata = _metadata(config, _EPSILON) | {"hidden_activation": config.activation_function}
    return GraphPlan("opt", config.num_hidden_layers, metadata, tuple(tensors))


def _gpt2(config: PretrainedConfig, k: float) -> GraphPlan:
    width = config.hidden_size
    tensors = _embeddings(config, k)
    for layer in range(config.num_hidden_layers):
        source, target = f"{_PREFIX}layers.{layer}.", f"blk.{layer}."
        joined = [f"{source}self_attn.{part}" for _, part in _ATTENTION]
        tensors += _norm(config, target + "attn_norm", source + "self_attn_layer_norm")
        tensors += _linear(config, target + "attn_qkv", joined, 3 * width)
        tensors += _linear(config, target + "attn_output", [source + "self_attn.out_proj"], width, k, k)
        tensors += _norm(config, target + "ffn_norm", source + "final_layer_norm")
        tensors += _linear(config, target + "ffn_up", [source + "fc1"], config.ffn_dim, k, k)
        # Its input is k times too large already, its bias is not.
        tensors += _linear(config, target + "ffn_down", [source + "fc2"], width, 1.0, k)
    tensors += _norm(config, "output_norm", _PREFIX + "final_layer_norm", 1 / k if config.tie_word_embeddings else 1.0)
    metadata = _metadata(config, _EPSILON * k * k)
    return GraphPlan("gpt2", config.num_hidden_layers, metadata, tuple(tensors))


def _embeddings(config: PretrainedConfig, factor: float) -> list[PlannedTensor]:
    positions = (f"{_PREFIX}embed_positions.weight",)
    tensors = [
        PlannedTensor("token_embd.weight", (f"{_PREFIX}embed_tokens.weight",), factor),
        PlannedTensor("position_embd.weight", positions, factor, _POSITION_OFFSET),
    ]
    # A head of its own meets the last norm's output as it is.
    return tensors if config.tie_word_embeddings else [*tensors, PlannedTensor("output.weight", ("lm_head.weight",))]


def _norm(config: PretrainedConfig, name: str, source: str, factor: float = 1.0) -> list[PlannedTensor]:
    """A layer norm's two vectors; where the model has none, the neutral ones."""
    if config.layer_norm_elementwise_affine:
        return [PlannedTensor(f"{name}.{kind}", (f"{source}.{kind}",), factor) for kind in ("weight", "bias")]
    shape = (config.hidden_size,)
    return [
        PlannedTensor(f"{name}.weight", (), shape=shape, fill=factor),
        PlannedTensor(f"{name}.bias", (), shape=shape),
    ]


def _linear(
    config: PretrainedConfig,
    name: str,
    sources: list[str],
    n_out: int,
    weight_factor: float = 1.0,
    bias_factor: float = 1.0,
) -> list[PlannedTensor]:
    weight = PlannedTensor(f"{name}.weight", tuple(f"{source}.weight" for source in sources), weight_factor)
    if not config.enable_bias:  # GPT-2 always has one
        return [weight, PlannedTensor(f"{name}.bias", (), shape=(n_out,))]
    return [weight, PlannedTensor(f"{name}.bias", tuple(f"{source}.bias" for source in sources), bias_factor)]


FAMILY = Family("OPTForCausalLM", check_variant, plan_graph)
