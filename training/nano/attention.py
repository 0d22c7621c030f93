"""Attention for packed rows: every document sees itself alone, and its positions start at zero.

transformers offers this for GPU kernels only. On a CPU a loop over the documents is also less work: a row of three
documents costs a third of what one causal square over the whole row would.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface

ATTENTION_NAME = "tinydispatch_documents"
_PLAIN_UP_TO_TOKENS = 900  # plain matrix products beat the fused kernel on CPUs below this length


def document_logits(model: nn.Module, ids_1T: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Logits (1, T, V) of a row of documents whose lengths sum to T; `model` must use `ATTENTION_NAME`."""
    positions = torch.cat([torch.arange(length, device=ids_1T.device) for length in lengths])
    logits: torch.Tensor = model(
        input_ids=ids_1T, position_ids=positions[None], use_cache=False, document_lengths=list(lengths)
    ).logits
    return logits


def _document_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    document_lengths: list[int],
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """One row: query, key and value are (1, H, T, D); the result is (1, T, H, D)."""
    del module, attention_mask
    dtype = torch.get_autocast_dtype(query.device.type) if torch.is_autocast_enabled(query.device.type) else query.dtype
    parts = (torch.split(tensor[0].to(dtype), document_lengths, dim=1) for tensor in (query, key, value))
    attended = [_causal(q, k, v, scaling) for q, k, v in zip(*parts, strict=True)]
    return torch.cat(attended, dim=1).transpose(0, 1)[None], None


def _causal(q_HLD: torch.Tensor, k_HLD: torch.Tensor, v_HLD: torch.Tensor, scaling: float) -> torch.Tensor:
    heads, length, _ = q_HLD.shape
    if length > _PLAIN_UP_TO_TOKENS:
        fused = F.scaled_dot_product_attention(q_HLD[None], k_HLD[None], v_HLD[None], is_causal=True, scale=scaling)
        return fused[0]
    mask = _causal_mask(length, q_HLD.dtype, q_HLD.device).expand(heads, -1, -1)
    scores_HLL = torch.baddbmm(mask, q_HLD, k_HLD.transpose(-1, -2), alpha=scaling)
    return torch.bmm(torch.softmax(scores_HLL, dim=-1), v_HLD)


@lru_cache(maxsize=_PLAIN_UP_TO_TOKENS)
def _causal_mask(length: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu_(1)


AttentionInterface.register(ATTENTION_NAME, _document_attention)
