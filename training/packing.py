"""Several conversations in one row that never see each other, checked on the model at hand before it trains.

TRL lays conversations end to end, restarts their positions and hands the model their boundaries. Whether a model obeys
is the model's affair: Qwen3 builds its mask from the positions; OPT builds it without them, so under TRL each of its
conversations reads all that stand before it in the row. The attention here takes the boundaries themselves, needs no
mask, and computes nothing between conversations.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from training.errors import PackingError

logger = logging.getLogger(__name__)

ATTENTION = "per_conversation"

# Lengths of the two conversations of the check: unequal, and long enough that attention across them shows.
_PROBE_LENGTHS = (11, 7)


def attend_per_conversation(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each conversation of a packed row; rows that are not packed go to plain sdpa.

    Args:
        query: (1, heads, T, width); `key` and `value` may have fewer heads.
        cu_seq_lens_q: where each conversation begins, and T; None for rows that are not packed.
        max_length_q: length of the longest conversation.

    Returns:
        (1, T, heads, width), and no attention weights.
    """
    if cu_seq_lens_q is None:
        plain: torch.Tensor
        plain, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **keywords
        )
        return plain, None
    assert query.shape[0] == 1, "a packed batch is one row"
    is_grouped = key.shape[1] != query.shape[1]
    # Norms of queries and keys (Qwen3) leave them in their weights' format; products are made in that of autocast.
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (tensor.to(torch.get_autocast_dtype(query.device.type)) for tensor in (query, key, value))
    if _has_varlen_kernel(query, dropout):
        assert max_length_q is not None
        return _in_one_call(query, key, value, cu_seq_lens_q, max_length_q, scaling, is_grouped), None
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=is_grouped,
        )
        for start, end in itertools.pairwise(cu_seq_lens_q.tolist())
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _in_one_call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    scaling: float | None,
    is_grouped: bool,
) -> torch.Tensor:
    """All conversations by flash attention, which wants (T, heads, width)."""
    query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    output = varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=is_grouped
    )
    assert isinstance(output, torch.Tensor)
    return output[None]


def _has_varlen_kernel(query: torch.Tensor, dropout: float) -> bool:
    """Whether flash attention takes all conversations in one call: half precision on an Ampere card or newer."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] <= 256
        and dropout == 0.0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _mask(
    batch_size: int, q_length: int, kv_length: int, *arguments: Any, attention_mask: Any = None, **keywords: Any
) -> Any:
    """No mask where the kernel needs none (packed, or nothing padded); sdpa's for padded rows and cached decoding."""
    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(batch_size, q_length, kv_length, *arguments, attention_mask=attention_mask, **keywords)


AttentionInterface.register(ATTENTION, attend_per_conversation)
AttentionMaskInterface.register(ATTENTION, _mask)


@dataclass(frozen=True)
class PackingCheck:
    """How far a packed conversation's logits move, relative to their standard deviation.

    `contamination`: when the tokens of the conversation before it change; nothing but 0 is right.
    `difference`: from the same conversation alone; rounding is all that is right.
    """

    contamination: float
    difference: float
    tolerance: float

    @property
    def is_exact(self) -> bool:
        """Whether packed conversations are computed as if each were alone."""
        return self.contamination <= 1e-6 and self.difference <= self.tolerance


def check_packing(model: PreTrainedModel, autocast: torch.dtype | None = None) -> PackingCheck:
    """Run two short conversations packed as TRL packs them, with two different first ones, and the second one alone.

    Args:
        autocast: the number format of the matrix products in training, where it is not that of the weights.
    """
    first, length = _PROBE_LENGTHS
    device = model.get_input_embeddings().weight.device
    vocabulary = min(model.get_input_embeddings().num_embeddings, 1_000)
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(vocabulary, (2, first + length), generator=generator)
    ids_BT[1, first:] = ids_BT[0, first:]
    packed = [_logits(model, ids_T, [first, length], autocast, device)[first:] for ids_T in ids_BT]
    alone = _logits(model, ids_BT[0, first:], [length], autocast, device)
    spread = float(alone.std()) or 1.0
    is_coarse = autocast is not None or alone.dtype != torch.float32 or model.dtype != torch.float32
    return PackingCheck(
        contamination=float((packed[0] - packed[1]).abs().max()) / spread,
        difference=float((packed[0] - alone).abs().max()) / spread,
        tolerance=0.2 if is_coarse else 1e-3,
    )


def _logits(
    model: PreTrainedModel, ids_T: torch.Tensor, lengths: list[int], autocast: torch.dtype | None, device: torch.device
) -> torch.Tensor:
    """Logits (T, vocabulary) of one packed row, with the inputs that TRL's collator makes."""
    ends = torch.tensor([0, *lengths]).cumsum(0)
    inputs: dict[str, Any] = {
        "input_ids": ids_T[None].to(device),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None].to(device),
        "seq_idx": torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None].int().to(device),
        "cu_seq_lens_q": ends.int().to(device),
        "cu_seq_lens_k": ends.int().to(device),
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            logits: torch.Tensor = model(**inputs, use_cache=False).logits
    finally:
        model.train(was_training)
    return logits[0].float()


def make_packable(model: PreTrainedModel, autocast: torch.dtype | None = None) -> str:
    """Give the model an attention under which packing is exact, and return the attention's name.

    First choice is the one of this module; a model that does not take it, or has other kinds of layers beside full
    attention, keeps its own if that passes the check.

    Raises:
        PackingError: under neither do conversations stay apart; the model's own attention is in place again.
    """
    own = str(model.config._attn_implementation)
    reason = ""
    for attention in ([ATTENTION] if _has_full_attention_only(model) else []) + [own]:
        model.set_attn_implementation(attention)
        try:
            check = check_packing(model, autocast)
        except (ValueError, RuntimeError) as error:  # how a model says that a kernel for packed rows is missing
            reason = str(error).strip().splitlines()[0]
            continue
        if check.is_exact:
            return attention
        reason = (
            f"changing the first of two moves the second's logits by {check.contamination:.2g} of their spread, "
            f"packing at all by {check.difference:.2g}"
        )
    raise PackingError(f"conversations of {model.config.model_type} would not stay apart when packed ({reason})")


def _has_full_attention_only(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and bool(model._supports_sdpa)


@contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model attends by sdpa, as it will wherever it is loaded; for generating during training."""
    before = str(model.config._attn_implementation)
    if before != ATTENTION:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
