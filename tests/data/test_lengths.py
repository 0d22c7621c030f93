from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data.lengths import TokenCounter
from tinydispatch import formats
from tinydispatch.tools import Conversation, Message, Role, Tool

Weather = Callable[..., Conversation]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A small byte-level tokenizer with the special tokens of our template."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    # A space before a line break is one token where nothing follows, and two where a word does.
    made.train_from_iterator([Path(__file__).read_text("utf-8"), *[" \n"] * 200], trainer)
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


TOOLS = st.builds(
    Tool,
    st.from_regex(r"[A-Za-z0-9_.\-]{1,6}", fullmatch=True),
    st.text(alphabet="ab1.:)_\n \t\u65e5\u0130<|", max_size=8),
    st.sampled_from(
        [
            {"type": "object", "properties": {}},
            {
                "type": "object",
                "properties": {"a\n b": {"enum": ["x\n", " "]}, "c": {"type": "array"}},
                "required": ["c"],
            },
            {"type": "object", "properties": {"d": {"type": "object", "properties": {"e": {"format": "date"}}}}},
        ]
    ),
)
# The expressions of Qwen, Llama 3 and nano; GPT-2's and OPT's is built in.
NEWER = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
NEWER += r"|\s*[\r\n]+|\s+(?!\S)|\s+"


def with_newer_split(tokenizer: Tokenizer) -> Tokenizer:
    made = Tokenizer.from_str(tokenizer.to_str())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(NEWER), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return made


@given(
    tools=st.lists(TOOLS, max_size=4, unique_by=lambda tool: tool.name),
    system=st.sampled_from([None, "", "Be brief.", " \n padded", "\nline"]),
    text=st.text(alphabet="ab \n.\u65e5", max_size=6),
    is_newer=st.booleans(),
)
def test_tools_counted_alone_add_up_to_the_whole(
    tokenizer: Tokenizer, tools: list[Tool], system: str | None, text: str, is_newer: bool
) -> None:
    used = with_newer_split(tokenizer) if is_newer else tokenizer
    counter = counter_of(used)
    assert counter._counts_tools_alone
    messages = (Message(Role.USER, text), Message(Role.ASSISTANT, "ok"))
    if system is not None:
        messages = (Message(Role.SYSTEM, system), *messages)
    conversation = Conversation(messages, tuple(tools), "test", "no_call")
    rendered = formats.render_prompt(messages, tools, add_generation_prompt=False)
    assert counter(conversation) == len(used.encode(rendered, add_special_tokens=False).ids)


def test_a_tokenizer_whose_tokens_reach_over_lines_reads_the_whole_list(tokenizer: Tokenizer) -> None:
    reaching = Tokenizer.from_str(tokenizer.to_str())
    reaching.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert not counter_of(reaching)._counts_tools_alone
    assert not TokenCounter(tokenizer.to_str(), "{{ tools }}", {})._counts_tools_alone


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
