"""A small tokenizer of nano's kind, trained once."""

from __future__ import annotations

from itertools import islice

import pytest
from transformers import PreTrainedTokenizerFast

from data.synth.generate import generate_invented
from training.nano.corpus import conversation_text
from training.nano.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def nano_tokenizer() -> PreTrainedTokenizerFast:
    texts = (conversation_text(conversation) for conversation in islice(generate_invented(1), 40))
    return train_tokenizer(texts, vocab_size=500, max_positions=2048)
