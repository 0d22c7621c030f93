"""Floating-point operations that training asks for, counted from a model's shape."""

from __future__ import annotations

from typing import Any

import torch

from training.config import Method


def flops_per_token(
    model: Any, method: Method, *, trained_share: float, context: float, is_recomputed: bool = False
) -> float:
    """Operations for each token of a training step, as arXiv 2204.02311, appendix B, counts them.

    A product costs two for each weight and token, and as many again for each gradient that is made of it: two under
    full training, one beside frozen weights. The head counts at trained tokens alone.

    Args:
        model: weights are not read; it may lie on the meta device.
        trained_share: of all tokens, those that carry loss.
        context: tokens that a token attends to, on average; in a causal model half of its conversation's length.
        is_recomputed: with a second forward pass (gradient checkpointing), which the measure of efficiency leaves out.
    """
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    products = 2 * (sum(module.weight.numel() for module in linear) + head.weight.numel() * trained_share)
    attention = 4 * config.num_hidden_layers * width * context
    passes = (3 if method is Method.FULL else 2) + (1 if is_recomputed else 0)
    return float(products * passes + attention * (4 if is_recomputed else 3))


def mean_context(lengths: list[int]) -> float:
    """Tokens that a token of these conversations attends to, on average."""
    return sum(length * length for length in lengths) / sum(lengths) / 2
