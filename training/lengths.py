"""Few different lengths on a CPU, where every new one costs a compilation.

The kernels for matrix products there are generated for their exact shape at its first use, and memory is taken from
the system anew for each. Conversations one at a time have nearly as many lengths as there are conversations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

_MULTIPLE = 32
_IGNORED = -100

Collator = Callable[[Any], dict[str, torch.Tensor]]


def with_few_lengths(collate: Collator, pad_id: int) -> Collator:
    """The collator with its rows lengthened at their end to a multiple of 32 tokens.

    The added tokens carry no loss and are not masked: in a causal model nothing before them sees them, and a batch
    without a mask gets the fused attention kernel.
    """

    def collate_to_multiple(examples: Any) -> dict[str, torch.Tensor]:
        batch = collate(examples)
        missing = -batch["input_ids"].shape[1] % _MULTIPLE
        fill = {"input_ids": pad_id, "labels": _IGNORED, "attention_mask": 1}
        return {key: F.pad(value, (0, missing), value=fill[key]) for key, value in batch.items()}

    return collate_to_multiple
