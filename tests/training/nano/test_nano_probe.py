from __future__ import annotations

import random

import torch
from transformers import PreTrainedTokenizerFast

from data.synth.generate import bundled_conversation, disguised_conversation
from tinydispatch.tools import Role
from training.nano.corpus import conversation_text
from training.nano.probe import judge, spans


class Oracle(torch.nn.Module):
    """Foretells every token rightly, but for the spelling of one token."""

    def __init__(self, vocab_size: int, blind_to: int | None = None) -> None:
        super().__init__()
        self.vocab_size, self.blind_to = vocab_size, blind_to
        self.config = type("Config", (), {"max_position_embeddings": 4096})

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
        del use_cache
        following = input_ids.roll(-1, dims=1)
        if self.blind_to is not None:
            following = torch.where(following == self.blind_to, (following + 1) % self.vocab_size, following)
        logits = torch.nn.functional.one_hot(following, self.vocab_size).float()
        return type("Output", (), {"logits": logits})


def test_every_tool_name_and_every_argument_is_found_where_it_stands() -> None:
    for index in range(20):
        conversation = disguised_conversation(random.Random(index), "x")
        text = conversation_text(conversation)
        found = list(spans(conversation, text))
        names = [text[first:end] for skill, first, end in found if skill == "tool name"]
        assert names == [f'"{call.name}"' for call in conversation.calls]
        assert len([s for s in found if s[0] not in {"tool name", "reply in words", "whole turn of calls"}]) == sum(
            len(call.arguments) for call in conversation.calls
        )
        turns = [text[first:end] for skill, first, end in found if skill == "reply in words"]
        said = [m.content for m in conversation.messages if m.role is Role.ASSISTANT and m.content]
        assert turns == said


def test_a_value_with_one_wrong_token_is_wrong_and_the_others_stay_right(
    nano_tokenizer: PreTrainedTokenizerFast,
) -> None:
    conversations = [bundled_conversation(random.Random(index), "x", (1, 2)) for index in range(12)]
    perfect = judge(Oracle(len(nano_tokenizer)), nano_tokenizer, conversations)
    assert all(right == total for right, total in perfect.values())
    comma = nano_tokenizer.convert_tokens_to_ids("@")
    blind = judge(Oracle(len(nano_tokenizer), comma), nano_tokenizer, conversations)
    assert blind["tool name"] == perfect["tool name"]
    assert blind["array"][0] == 0 < blind["array"][1]
