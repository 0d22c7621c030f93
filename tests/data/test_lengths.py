from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from data.lengths import TokenCounter
from tinydispatch import formats
from tinydispatch.tools import Conversation, Message, Role

Weather = Callable[..., Conversation]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A small byte-level tokenizer with the special tokens of our template."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([Path(__file__).read_text("utf-8")], trainer)
    made.add_tokens([AddedToken(token, normalized=False) for token in formats.SPECIAL_TOKENS])
    return made


def counter_of(tokenizer: Tokenizer) -> TokenCounter:
    return TokenCounter(tokenizer.to_str(), formats.default_chat_template(), {})


def test_parts_counted_alone_add_up_to_the_whole(tokenizer: Tokenizer, weather: Weather) -> None:
    texts = ("hi", "ein  Täst\n\n with <|im_end|> quoted", "", " 日本 ")
    for text in texts:
        conversation = weather(text)
        rendered = formats.render_prompt(conversation.messages, conversation.tools, add_generation_prompt=False)
        assert counter_of(tokenizer)(conversation) == len(tokenizer.encode(rendered, add_special_tokens=False).ids)


def test_what_follows_the_last_trained_turn_does_not_count(tokenizer: Tokenizer, weather: Weather) -> None:
    counter, short = counter_of(tokenizer), weather()
    later = (
        Message(Role.TOOL, "sun " * 50, tool_name="get_weather"),
        Message(Role.ASSISTANT, "Sun.", is_trained=False),
    )
    assert counter(weather(messages=(*short.messages, *later))) == counter(short)


def test_a_tokenizer_whose_tokens_take_spaces_along_is_asked_as_a_whole(tokenizer: Tokenizer, weather: Weather) -> None:
    greedy = Tokenizer.from_str(tokenizer.to_str())
    greedy.add_tokens([AddedToken("<eats>", lstrip=True, rstrip=True, normalized=False)])
    conversation = weather("a   <eats>   b")
    rendered = formats.render_prompt(conversation.messages, conversation.tools, add_generation_prompt=False)
    assert counter_of(greedy)(conversation) == len(greedy.encode(rendered, add_special_tokens=False).ids)


def test_it_can_be_handed_to_another_process(tokenizer: Tokenizer, weather: Weather) -> None:
    counter = counter_of(tokenizer)
    before = counter(weather())
    copy: Any = pickle.loads(pickle.dumps(counter))
    assert copy(weather()) == before
    assert copy.fingerprint == counter.fingerprint != TokenCounter(tokenizer.to_str(), "x", {}).fingerprint


def test_it_counts_as_the_training_side_does(weather: Weather) -> None:
    from training.dataset import count_tokens
    from training.tokenizer import load_tokenizer

    model = load_tokenizer(Path(__file__).resolve().parents[2] / "training" / "nano" / "weights")
    for conversation in (weather("hello <tool_call> there"), weather("日本 weather?")):
        assert TokenCounter.of(model)(conversation) == count_tokens(conversation, model)
