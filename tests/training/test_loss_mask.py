"""Exactly the assistant's tokens and their end token carry loss, in both families of templates."""

from __future__ import annotations

import copy
import itertools
from importlib import resources

import pytest
from transformers import PreTrainedTokenizerBase

from tests.training.samples import conversation, simple_conversation, weather_call
from tinydispatch import formats
from tinydispatch.tools import Conversation, Message, Role
from training.dataset import IGNORED, Example, build_dataset, count_tokens, encode_conversation
from training.errors import PromptMismatchError, TokenizerError, TrainingDataError

OSLO_CALL = '<tool_call>{"name": "get_weather", "arguments": {"location": "Oslo"}}</tool_call><|im_end|>'
QWEN_OSLO_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Oslo"}}\n</tool_call><|im_end|>'

# Where each role speaks, and what the assistant says has merges, accents, quotes and an emoji of several tokens.
TWO_TURNS = conversation(
    Message(Role.SYSTEM, "Be brief."),
    Message(Role.USER, "Weather in Oslo?"),
    Message(Role.ASSISTANT, tool_calls=(weather_call("Oslo"),)),
    Message(Role.TOOL, '{"temperature": -3}', tool_name="get_weather"),
    Message(Role.ASSISTANT, 'It is "−3 °C" in Oslo 🥶'),
)


def trained_texts(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each run of trained tokens."""
    pairs = zip(example.input_ids, example.is_trained, strict=True)
    runs = itertools.groupby(pairs, key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for trained, run in runs if trained]


def only(examples: list[Example]) -> Example:
    assert len(examples) == 1
    return examples[0]


def test_opt_trains_exactly_the_assistants_tokens_and_end_tokens(opt_tokenizer: PreTrainedTokenizerBase) -> None:
    example = only(encode_conversation(TWO_TURNS, opt_tokenizer))
    expected = [OSLO_CALL, 'It is "−3 °C" in Oslo 🥶<|im_end|>']
    assert trained_texts(example, opt_tokenizer) == expected
    trained = [token for token, bit in zip(example.input_ids, example.is_trained, strict=True) if bit]
    assert trained == [token for text in expected for token in opt_tokenizer(text)["input_ids"]]


def test_the_whole_sequence_is_what_the_template_renders(opt_tokenizer: PreTrainedTokenizerBase) -> None:
    example = only(encode_conversation(TWO_TURNS, opt_tokenizer))
    messages = formats.with_reference_date(TWO_TURNS.messages, TWO_TURNS.reference_date)
    rendered = formats.render_prompt(messages, TWO_TURNS.tools, add_generation_prompt=False)
    assert opt_tokenizer.decode(example.input_ids) == rendered.rstrip("\n")


def test_labels_are_the_trained_tokens_and_nothing_else(opt_tokenizer: PreTrainedTokenizerBase) -> None:
    example = only(encode_conversation(TWO_TURNS, opt_tokenizer))
    for token, label, trained in zip(example.input_ids, example.labels, example.is_trained, strict=True):
        assert label == (token if trained else IGNORED)


def test_tool_results_carry_no_loss(opt_tokenizer: PreTrainedTokenizerBase) -> None:
    example = only(encode_conversation(TWO_TURNS, opt_tokenizer))
    assert "temperature" not in "".join(trained_texts(example, opt_tokenizer))


def test_a_turn_that_is_not_trained_carries_no_loss(opt_tokenizer: PreTrainedTokenizerBase) -> None:
    history = Message(Role.ASSISTANT, "Earlier words.", is_trained=False)
    talk = conversation(Message(Role.USER, "Hi"), history, *simple_conversation("Oslo").messages)
    example = only(encode_conversation(talk, opt_tokenizer))
    assert trained_texts(example, opt_tokenizer) == [OSLO_CALL]
    assert "Earlier words." in opt_tokenizer.decode(example.input_ids)


def test_what_follows_the_last_trained_turn_is_left_off(opt_tokenizer: PreTrainedTokenizerBase) -> None:
    talk = conversation(*simple_conversation("Oslo").messages, Message(Role.USER, "Thanks"))
    example = only(encode_conversation(talk, opt_tokenizer))
    assert example.is_trained[-1]
    assert "Thanks" not in opt_tokenizer.decode(example.input_ids)


def test_a_conversation_without_a_trained_turn_gives_no_sequence(opt_tokenizer: PreTrainedTokenizerBase) -> None:
    talk = conversation(Message(Role.USER, "Hi"), Message(Role.ASSISTANT, "Ho", is_trained=False))
    assert encode_conversation(talk, opt_tokenizer) == []
    assert count_tokens(talk, opt_tokenizer) > 0


def test_each_prompt_is_token_for_token_what_a_server_renders(
    opt_tokenizer: PreTrainedTokenizerBase, qwen_tokenizer: PreTrainedTokenizerBase
) -> None:
    for tokenizer in (opt_tokenizer, qwen_tokenizer):
        messages = formats.with_reference_date(TWO_TURNS.messages, TWO_TURNS.reference_date)
        prompt = formats.render_prompt(messages[:2], TWO_TURNS.tools, tokenizer.chat_template)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        first = encode_conversation(TWO_TURNS, tokenizer)[0]
        assert list(first.input_ids[: len(ids)]) == ids
        assert first.is_trained.index(True) == len(ids)


def test_qwens_own_template_trains_the_reply_and_its_end_token(qwen_tokenizer: PreTrainedTokenizerBase) -> None:
    example = only(encode_conversation(simple_conversation("Oslo"), qwen_tokenizer))
    assert trained_texts(example, qwen_tokenizer) == [QWEN_OSLO_CALL]


def test_a_template_that_rewrites_earlier_turns_gives_one_sequence_per_turn(
    qwen_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Qwen3 drops the thinking block of a turn once another follows, which no server does before writing it."""
    talk = conversation(*simple_conversation("Oslo").messages, *simple_conversation("Oslo").messages)
    first, second = encode_conversation(talk, qwen_tokenizer)
    for example in (first, second):
        assert trained_texts(example, qwen_tokenizer) == [QWEN_OSLO_CALL]
    assert len(second.input_ids) > len(first.input_ids)


def test_a_template_that_keeps_earlier_turns_gives_one_sequence_for_all(
    qwen_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = "'\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n')"
    assert opening in qwen_tokenizer.chat_template
    plain = qwen_tokenizer.chat_template.replace(opening, "'\\n' + content").replace(
        "enable_thinking = false", "enable_thinking = true"
    )
    monkeypatch.setattr(qwen_tokenizer, "chat_template", plain)
    talk = conversation(*simple_conversation("Oslo").messages, *simple_conversation("Oslo").messages)
    example = only(encode_conversation(talk, qwen_tokenizer))
    assert trained_texts(example, qwen_tokenizer) == [QWEN_OSLO_CALL, QWEN_OSLO_CALL]


def test_a_template_that_leaves_the_end_token_untrained_is_refused(
    opt_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = formats.default_chat_template()
    moved = template.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    assert moved != template
    monkeypatch.setattr(opt_tokenizer, "chat_template", moved)
    with pytest.raises(TokenizerError, match="end token out of"):
        encode_conversation(simple_conversation("Oslo"), opt_tokenizer)


def test_a_template_whose_prompt_is_no_beginning_of_the_turn_is_refused(
    opt_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opt_tokenizer, "chat_template", formats.default_chat_template() + "Speak:")
    with pytest.raises(PromptMismatchError, match="beginning of that turn"):
        build_dataset([simple_conversation("Oslo")], opt_tokenizer, 2048)


def test_one_odd_reply_among_many_is_left_out_and_counted(opt_tokenizer: PreTrainedTokenizerBase) -> None:
    odd = conversation(Message(Role.USER, "Hi"), Message(Role.ASSISTANT, "\n\nHo"))  # its line breaks merge with ours
    with pytest.raises(PromptMismatchError):
        encode_conversation(odd, opt_tokenizer)
    data = build_dataset([odd, *[simple_conversation("Oslo")] * 100], opt_tokenizer, 2048)
    assert data.rejected == {"prompt_mismatch": 1}
    assert len(data.dataset) == 100


def test_a_conversation_that_is_too_long_is_left_out_as_a_whole(opt_tokenizer: PreTrainedTokenizerBase) -> None:
    short = simple_conversation("Oslo")
    long = simple_conversation("Oslo " * 50)
    length = len(only(encode_conversation(short, opt_tokenizer)).input_ids)
    data = build_dataset([long, short], opt_tokenizer, length)
    assert data.rejected == {"too_long": 1}
    assert [len(ids) for ids in data.dataset["input_ids"]] == [length]
    assert data.tokens == length
    assert data.trained_tokens == sum(label != IGNORED for label in data.dataset["labels"][0])
    with pytest.raises(TrainingDataError, match=r"1 too_long \(data.max_length_tokens is"):
        build_dataset([short], opt_tokenizer, length - 1)


def test_a_call_that_elements_cannot_hold_is_left_out_under_its_name(qwen_tokenizer: PreTrainedTokenizerBase) -> None:
    elements = copy.deepcopy(qwen_tokenizer)
    elements.chat_template = resources.files("trl").joinpath("chat_templates/qwen3_5_nothink.jinja").read_text("utf-8")
    talks = [simple_conversation("Oslo"), simple_conversation("<p>\n</parameter>\nOslo")]
    assert build_dataset(talks, elements, 2048).rejected == {"unwritable_call": 1}
    assert not build_dataset(talks, qwen_tokenizer, 2048).rejected, "JSON has an escape"


def test_the_data_stages_count_is_the_length_of_the_sequence(
    opt_tokenizer: PreTrainedTokenizerBase, qwen_tokenizer: PreTrainedTokenizerBase
) -> None:
    talks: list[Conversation] = [TWO_TURNS, simple_conversation("Oslo")]
    for tokenizer, talk in itertools.product((opt_tokenizer, qwen_tokenizer), talks):
        longest = max(len(example.input_ids) for example in encode_conversation(talk, tokenizer))
        assert longest <= count_tokens(talk, tokenizer) <= longest + 1


def test_the_trainer_is_handed_ids_and_labels_only(opt_tokenizer: PreTrainedTokenizerBase) -> None:
    data = build_dataset([simple_conversation("Oslo")], opt_tokenizer, 2048)
    assert data.dataset.column_names == ["input_ids", "labels"]
