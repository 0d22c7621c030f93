from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_nano_pretrain import TINY
from transformers import PreTrainedTokenizerFast

from training.nano import attention
from training.nano.attention import document_logits
from training.nano.pretrain import new_model

LENGTHS = [7, 1, 20]


@pytest.mark.parametrize("plain_up_to", [900, 10], ids=["plain products", "fused kernel for the long ones"])
def test_documents_in_one_row_give_the_logits_and_gradients_of_each_alone(
    plain_up_to: int, nano_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_PLAIN_UP_TO_TOKENS", plain_up_to)
    model = new_model(replace(TINY, layers=2), nano_tokenizer)
    ids = torch.randint(0, 400, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    together = document_logits(model, ids, LENGTHS)
    together.square().mean().backward()
    gradient = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    alone = torch.cat([model(input_ids=document).logits for document in ids.split(LENGTHS, dim=1)], dim=1)
    alone.square().mean().backward()
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradient, model.model.embed_tokens.weight.grad, atol=1e-6, rtol=1e-3)
