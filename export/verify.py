"""Compares a written GGUF file with the checkpoint that it was made from: ids of texts and logits of prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from export.config import Tolerance
from tinydispatch.ggml.runtime import Runtime

# Positions compared at a time: 64-bit copies of the logits of a large vocabulary then stay in the processor's caches.
_ROWS = 8
# Positions decoded at a time: of a vocabulary of 152,000 their logits are 156 MB, those of 2,048 positions 1.2 GB.
_DECODED = 256


@dataclass(frozen=True)
class Reference:
    """What the checkpoint computes for one prompt: ids, and logits of shape (len(ids), vocabulary)."""

    ids: tuple[int, ...]
    logits: npt.NDArray[np.float32]


@dataclass(frozen=True)
class LogitComparison:
    """A file's logits against the checkpoint's over `n_positions`; `mean_kl` is KL(checkpoint ‖ file) in nats.

    Differences are of logits from which each position's mean is taken. `logit_std` is the checkpoint's spread within a
    position, the measure of what a difference means.
    """

    n_prompts: int
    n_positions: int
    max_difference: float
    mean_difference: float
    logit_std: float
    mean_kl: float
    top1_agreement: float

    def excesses(self, tolerance: Tolerance) -> list[str]:
        """What lies outside the tolerance, in words; empty when the file is good."""
        found = []
        # Written so that NaN, which compares false with everything, counts as outside.
        spread = f"of which their standard deviation is {self.logit_std:.3g}"
        if not self.max_difference <= tolerance.max_difference * self.logit_std:
            found.append(
                f"a logit differs by {self.max_difference:.3g}, {spread} (allowed {tolerance.max_difference:g} of it)"
            )
        if not self.mean_kl <= tolerance.max_mean_kl:
            found.append(f"the mean KL divergence is {self.mean_kl:.3g} nats (allowed {tolerance.max_mean_kl:g})")
        if not self.mean_difference <= tolerance.max_mean_difference * self.logit_std:
            found.append(
                f"logits differ by {self.mean_difference:.3g} on average, {spread} "
                f"(allowed {tolerance.max_mean_difference:g} of it)"
            )
        if not self.top1_agreement >= tolerance.min_top1_agreement:
            found.append(
                f"the best token agrees at {self.top1_agreement:.1%} (at least {tolerance.min_top1_agreement:.1%})"
            )
        return found


@dataclass(frozen=True)
class TokenMismatch:
    """A text that the file tokenizes otherwise than the checkpoint."""

    text: str
    expected: tuple[int, ...]
    actual: tuple[int, ...]


def tokenizer_mismatches(
    model: Runtime, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[TokenMismatch]:
    """The texts whose ids differ between the file and the checkpoint's tokenizer."""
    found = []
    for text in texts:
        expected = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        actual = tuple(model.tokenize(text, parse_special=True))
        if expected != actual:
            found.append(TokenMismatch(text, expected, actual))
    return found


def is_rounding(found: LogitComparison, rounded: LogitComparison, tolerance: Tolerance) -> bool:
    """Whether a file lies off its checkpoint on average for no other reason than that its weights are rounded.

    Rounding forgets every move of a weight that is under half a step of the format. The moves of a few training steps
    point the same way, so forgetting them shifts logits more than rounding at random would. The file must then
    compute what the rounded weights do, and be close to the checkpoint in every other respect.

    Args:
        found: the file against the checkpoint.
        rounded: the file against the checkpoint with its weights rounded as in the file.
    """
    others = tolerance.model_copy(update={"max_mean_difference": math.inf})
    return not found.excesses(others) and not rounded.excesses(tolerance)


def reference_logits(
    checkpoint: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_tokens: int,
    halves: Mapping[str, float] = MappingProxyType({}),
) -> list[Reference]:
    """Run the checkpoint in 32 bits on the CPU over prompts, until `max_tokens` positions are computed.

    The prompt where that limit falls is cut there, and one longer than the model's context at the context's end.

    Args:
        halves: weights to round to 16 bits first, by name, each times its factor.
    """
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)
    model = model.to("cpu").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if factor := halves.get(name):
                weight.copy_((weight * factor).to(torch.float16).to(torch.float32) / factor)
    references: list[Reference] = []
    room = max_tokens
    for prompt in prompts:
        ids = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])[:room]
        ids = ids[: model.config.max_position_embeddings]
        if not ids:
            continue
        room -= len(ids)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        references.append(Reference(ids, logits.to(torch.float32).numpy()))
    return references


def compare_logits(model: Runtime, references: Sequence[Reference]) -> LogitComparison:
    """Run the file over the same ids.

    Raises:
        ValueError: there is nothing to compare, or a prompt does not fit the model's context.
    """
    if not references:
        raise ValueError("nothing to compare: the verification prompts hold no token")
    maximum, difference, std, divergence, agreeing = 0.0, 0.0, 0.0, 0.0, 0
    n_positions = sum(len(reference.ids) for reference in references)
    for reference in references:
        model.truncate(0)
        for start, logits in _pieces(model, reference.ids):
            expected = _centred(reference.logits[start : start + len(logits)])
            actual = _centred(logits[:, : expected.shape[1]])
            delta = np.abs(expected - actual)
            maximum = float(np.maximum(maximum, delta.max()))  # unlike max(), keeps a NaN
            difference += float(delta.mean(axis=1).sum())
            std += float(expected.std(axis=1).sum())
            divergence += float(_kl(expected, actual).sum())
            agreeing += int((expected.argmax(axis=1) == actual.argmax(axis=1)).sum())
    return LogitComparison(
        n_prompts=len(references),
        n_positions=n_positions,
        max_difference=maximum,
        mean_difference=difference / n_positions,
        logit_std=std / n_positions,
        mean_kl=divergence / n_positions,
        top1_agreement=agreeing / n_positions,
    )


def _pieces(model: Runtime, ids: Sequence[int]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Where a few positions begin, and their logits; those of a whole prompt never lie in memory together."""
    for begin in range(0, len(ids), _DECODED):
        logits = model.decode_all(ids[begin : begin + _DECODED])
        for start in range(0, len(logits), _ROWS):
            yield begin + start, logits[start : start + _ROWS]


def _centred(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Logits from which each position's mean is taken: what all have in common changes no probability."""
    wide = logits.astype(np.float64)
    centred: npt.NDArray[np.float64] = wide - wide.mean(axis=1, keepdims=True)
    return centred


def _kl(expected: npt.NDArray[np.float64], actual: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    log_p, log_q = _log_softmax(expected), _log_softmax(actual)
    result: npt.NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return result


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
