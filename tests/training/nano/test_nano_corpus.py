from __future__ import annotations

import datetime as dt
import random
from itertools import islice

import pytest
from transformers import PreTrainedTokenizerFast

from data.synth.generate import generate_invented
from tinydispatch.bundled import bundled_tools
from tinydispatch.formats import TURN_END, render_calls
from tinydispatch.tools import Conversation, Message, Role, ToolCall
from training.nano.corpus import PROMPT_WEIGHT, PackedRows, conversation_text, copy_document, to_document

NEVER = (0, 0.0)  # no share of disguised conversations
CALL = ToolCall("get_weather", {"location": "Zürich"})
CONVERSATION = Conversation(
    (
        Message(Role.USER, "Is it raining in Zürich?"),
        Message(Role.ASSISTANT, "", (CALL,)),
        Message(Role.TOOL, '{"conditions": "rain"}', tool_name="get_weather"),
        Message(Role.ASSISTANT, "Yes."),
    ),
    bundled_tools()[:1],
    "test",
    "single_call",
    reference_date=dt.date(2026, 3, 19),
)


def test_the_assistants_words_and_end_tokens_have_full_weight_and_nothing_else_has(
    nano_tokenizer: PreTrainedTokenizerFast,
) -> None:
    document = to_document(conversation_text(CONVERSATION), nano_tokenizer)
    trained = [token for token, weight in zip(document.ids, document.weights, strict=True) if weight == 1.0]
    assert nano_tokenizer.decode(trained) == f"{render_calls([CALL])}{TURN_END}Yes.{TURN_END}"
    assert set(document.weights) == {1.0, PROMPT_WEIGHT}


def test_a_document_is_the_rendered_text_and_one_end_of_document(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    for conversation in (CONVERSATION, *islice(generate_invented(11), 5)):
        text = conversation_text(conversation)
        document = to_document(text, nano_tokenizer)
        assert nano_tokenizer.decode(document.ids) == text + "<|endoftext|>"
        assert len(document.ids) == len(document.weights)


def test_a_text_that_speaks_of_the_assistant_is_no_turn_of_its(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    asked = Conversation((Message(Role.USER, "assistant\nhello"),), (), "test", "no_call")
    assert set(to_document(conversation_text(asked), nano_tokenizer).weights) == {PROMPT_WEIGHT}


def test_a_copy_document_says_random_tokens_twice_and_trains_on_the_second_half() -> None:
    document = copy_document(random.Random(1), 500, 12)
    assert document.ids[:12] == document.ids[12:]
    assert document.weights == [0.0] * 12 + [1.0] * 12
    assert max(document.ids) < 500


@pytest.mark.parametrize("length", [128, 512])
def test_every_row_has_the_wanted_length_and_the_first_are_pure_copying(
    length: int, nano_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = list(islice(PackedRows(nano_tokenizer, 3, length, 2, 0.1, NEVER), 5))
    assert all(row["ids"].shape == row["weights"].shape == (length,) for row in rows)
    assert all(set(row["weights"].tolist()) <= {0.0, 1.0} for row in rows[:2])
    prompt_weight = pytest.approx(PROMPT_WEIGHT)
    assert all(any(weight == prompt_weight for weight in row["weights"].tolist()) for row in rows[2:])


def test_rows_are_nearly_full_of_conversations(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = list(islice(PackedRows(nano_tokenizer, 3, 2048, 0, 0.0, NEVER), 4))
    filled = [int((row["weights"] > 0).sum()) / 2048 for row in rows]
    assert min(filled) > 0.8


def test_the_rows_depend_on_the_seed_alone(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    def ids(seed: int) -> list[list[int]]:
        return [row["ids"].tolist() for row in islice(PackedRows(nano_tokenizer, seed, 256, 1, 0.1, NEVER), 3)]

    assert ids(5) == ids(5)
    assert ids(5) != ids(6)


def test_disguised_conversations_begin_at_their_row(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    def ids(disguised: tuple[int, float]) -> list[list[int]]:
        rows = PackedRows(nano_tokenizer, 5, 512, 0, 0.0, disguised)
        return [row["ids"].tolist() for row in islice(rows, 55)]

    without, late = ids(NEVER), ids((2, 1.0))
    assert late[:2] == without[:2]
    assert late != without


def test_the_rows_can_be_read_again_from_the_start(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = PackedRows(nano_tokenizer, 5, 256, 1, 0.0, (2, 1.0))
    first = [row["ids"].tolist() for row in islice(rows, 4)]
    assert [row["ids"].tolist() for row in islice(rows, 4)] == first
