"""Log-probabilities of the trained tokens on a CPU: the logits are computed once and not again in the backward pass.

TRL scores a vocabulary tile by tile and computes every tile a second time for its gradient. That is made for GPUs,
whose memory is short and whose products are cheap. On a CPU the products with the output head are what costs.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import trl.trainer.utils as trl_internals
from torch.autograd.function import once_differentiable

logger = logging.getLogger(__name__)

# Logits at once; softmax runs over them while they are in the processor's outer cache.
_TILE_TOKENS = 128
# Probabilities kept for the gradient of the head; of tokens beyond, they are computed again.
_MAX_KEPT_BYTES = 2**29


class TokenLogProbs(torch.autograd.Function):
    """Log-probability of each target, the entropy (without gradient), and whether the target is the likeliest token.

    With p the probabilities of a token, W the head and h the token's state, the gradient of log p[target] is
    W[target] - p·W by h, and (one at target) - p times h by W. p·W comes right after the logits, so the backward pass
    has no product left for h, and p·W·h is what the entropy needs beside the log of the sum.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n, size = len(hidden_NH), weight_VH.shape[0] * hidden_NH.element_size()
        ctx.n_kept = min(n, _MAX_KEPT_BYTES // size) if any(ctx.needs_input_grad[1:3]) else 0
        kept = hidden_NH.new_empty(ctx.n_kept, weight_VH.shape[0])
        room = hidden_NH.new_empty(min(_TILE_TOKENS, n - ctx.n_kept), weight_VH.shape[0])
        log_probs, entropy, direction_NH = hidden_NH.new_empty(n), hidden_NH.new_empty(n), torch.empty_like(hidden_NH)
        is_top = torch.empty(n, dtype=torch.bool)
        for part in _tiles(n, ctx.n_kept):
            hidden, targets = hidden_NH[part], targets_N[part, None]
            logits = _logits(hidden, weight_VH, bias_V, kept[part] if part.stop <= ctx.n_kept else room[: len(hidden)])
            highest, top = logits.max(-1, keepdim=True)
            at_target = logits.gather(-1, targets)
            probs = torch.softmax(logits, -1, out=logits)
            log_sum = highest - probs.gather(-1, top).log()
            expected = torch.mm(probs, weight_VH)
            log_probs[part], is_top[part] = (at_target - log_sum)[:, 0], (top == targets)[:, 0]
            mean_logit = (expected * hidden).sum(-1)
            if bias_V is not None:
                mean_logit += probs @ bias_V
            entropy[part] = log_sum[:, 0] - mean_logit
            direction_NH[part] = torch.sub(weight_VH[targets[:, 0]], expected)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, direction_NH, kept)
        ctx.mark_non_differentiable(entropy, is_top)
        return log_probs, entropy, is_top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, targets_N, direction_NH, kept = ctx.saved_tensors
        grad_hidden = direction_NH * grad_N[:, None] if ctx.needs_input_grad[0] else None
        grad_weight = grad_bias = None
        if any(ctx.needs_input_grad[1:3]):
            pulled_NH = hidden_NH * grad_N[:, None]
            n_kept = ctx.n_kept
            grad_weight = torch.mm(kept.t(), pulled_NH[:n_kept]).neg_()
            grad_bias = None if bias_V is None else torch.mv(kept.t(), grad_N[:n_kept]).neg_()
            for part in _tiles(len(hidden_NH), n_kept):
                if part.start < n_kept:
                    continue
                room = hidden_NH.new_empty(part.stop - part.start, weight_VH.shape[0])
                probs = torch.softmax(_logits(hidden_NH[part], weight_VH, bias_V, room), -1, out=room)
                grad_weight.addmm_(probs.t(), pulled_NH[part], alpha=-1)
                if grad_bias is not None:
                    grad_bias.addmv_(probs.t(), grad_N[part], alpha=-1)
            grad_weight.index_add_(0, targets_N, pulled_NH)
            if grad_bias is not None:
                grad_bias.index_add_(0, targets_N, grad_N)
        return grad_hidden, grad_weight, grad_bias, None


def _tiles(n: int, n_kept: int) -> Iterator[slice]:
    """Parts of the tokens, none of which reaches across `n_kept`."""
    edges = sorted({*range(0, n_kept, _TILE_TOKENS), *range(n_kept, n, _TILE_TOKENS), n})
    return (slice(first, end) for first, end in itertools.pairwise(edges))


def _logits(
    hidden: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor | None, out: torch.Tensor
) -> torch.Tensor:
    torch.mm(hidden, weight_VH.t(), out=out)
    return out if bias_V is None else out.add_(bias_V)


class _OnCpuOurs:
    """Stands in TRL's place; what is not for a CPU in whole precision goes to TRL's own."""

    theirs = trl_internals._ChunkedLogProbFunction

    @classmethod
    def apply(
        cls,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk_size: int,
        softcapping: float | None,
        logit_scale: float,
        outputs: Sequence[str],
    ) -> Any:
        """Log-probs, entropy, log of the sum of squared probabilities, mean logit, is_top1; None if not asked for."""
        is_plain = temperature == 1.0 and softcapping is None and logit_scale == 1.0
        is_ours = is_plain and not {"log_sum_sq_probs", "mean_logits"} & set(outputs)
        is_whole = hidden.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled(hidden.device.type)
        if not (is_ours and is_whole and hidden.device.type == "cpu" and len(hidden)):
            return cls.theirs.apply(
                hidden, weight, bias, targets, temperature, chunk_size, softcapping, logit_scale, outputs
            )
        log_probs, entropy, is_top = TokenLogProbs.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
        return log_probs, entropy, None, None, is_top


@contextmanager
def trained_tokens_only() -> Iterator[None]:
    """Inside, TRL computes logits at trained tokens alone on a CPU too, as on GPUs, and there by `TokenLogProbs`.

    Without Triton it scores every token and masks afterwards, for compilers that want fixed shapes. Eager mode does
    not, and of a tool-calling example most tokens are prompt.
    """
    if not (hasattr(trl_internals, "_use_triton") and hasattr(trl_internals, "_ChunkedLogProbFunction")):
        logger.warning("this TRL has no switch for trained tokens: all logits are computed, which is slower")
        yield
        return
    before = trl_internals._use_triton, trl_internals._ChunkedLogProbFunction
    # Asked by this module for nothing else; the kernels themselves ask another module's copy.
    trl_internals._use_triton, trl_internals._ChunkedLogProbFunction = (lambda _device: True), _OnCpuOurs
    try:
        yield
    finally:
        trl_internals._use_triton, trl_internals._ChunkedLogProbFunction = before
