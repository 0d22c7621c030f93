from __future__ import annotations

import pytest
import torch

from training.lengths import with_few_lengths


@pytest.mark.parametrize(("length", "expected"), [(1, 32), (31, 32), (32, 32), (33, 64)])
def test_a_row_is_lengthened_to_the_next_multiple_without_loss_and_without_a_mask(length: int, expected: int) -> None:
    ids = torch.arange(length)[None]
    batch = {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones(1, length, dtype=torch.long)}
    longer = with_few_lengths(lambda _: batch, pad_id=7)([])
    assert all(value.shape == (1, expected) for value in longer.values())
    assert torch.equal(longer["input_ids"][:, :length], ids)
    assert torch.equal(longer["labels"][:, :length], ids)
    assert set(longer["input_ids"][0, length:].tolist()) <= {7}
    assert set(longer["labels"][0, length:].tolist()) <= {-100}
    assert longer["attention_mask"].all()
