from __future__ import annotations

import datetime as dt
import random
from dataclasses import replace
from itertools import groupby, islice

import pytest
from transformers import PreTrainedTokenizerFast

from data.synth.generate import generate_invented
from tinydispatch.bundled import bundled_tools
from tinydispatch.formats import TURN_END, render_calls
from tinydispatch.tools import Conversation, Message, Role, ToolCall
from training.nano.corpus import (
    PROMPT_WEIGHT,
    Mixture,
    PackedRows,
    conversation_text,
    copy_document,
    recall_document,
    to_document,
)

BROAD = Mixture(exercise_rows=0, exercise_share=0.0, disguised_share=0.0, drill_share=0.0)
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
    document = copy_document(random.Random(1), 500)
    half = len(document.ids) // 2
    assert document.ids[:half] == document.ids[half:]
    assert document.weights == [0.0] * half + [1.0] * half
    assert max(document.ids) < 500


@pytest.mark.parametrize("seed", range(20))
def test_what_a_recall_document_trains_on_stands_in_its_table_beside_the_key(seed: int) -> None:
    document = recall_document(random.Random(seed), 10_000)
    first = document.weights.index(1.0)
    runs = [
        [token for _, token in group]
        for is_answer, group in groupby(
            zip(document.weights, document.ids, strict=True), key=lambda weighted: weighted[0] == 1.0
        )
        if is_answer
    ]
    table = document.ids[:first]
    assert runs
    for answer in runs:
        assert any(table[at : at + len(answer)] == answer for at in range(len(table)))


@pytest.mark.parametrize("length", [128, 512])
def test_every_row_has_the_wanted_length_and_the_first_are_pure_copying(
    length: int, nano_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = list(islice(PackedRows(nano_tokenizer, 3, length, replace(BROAD, exercise_rows=2)), 5))
    for row in rows:
        assert row["ids"].shape == row["weights"].shape == (length,)
        assert sum(row["lengths"]) == length
        assert min(row["lengths"]) > 0
    assert all(set(row["weights"].tolist()) <= {0.0, 1.0} for row in rows[:2])
    prompt_weight = pytest.approx(PROMPT_WEIGHT)
    assert all(any(weight == prompt_weight for weight in row["weights"].tolist()) for row in rows[2:])


def test_documents_stand_in_a_row_whole_padded_to_few_different_lengths(
    nano_tokenizer: PreTrainedTokenizerFast,
) -> None:
    padding = nano_tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for row in islice(PackedRows(nano_tokenizer, 3, 2048, BROAD), 4):
        assert all(length % 32 == 0 for length in row["lengths"])
        parts = list(zip(row["ids"].split(row["lengths"]), row["weights"].split(row["lengths"]), strict=True))
        filled = [(ids, weights) for ids, weights in parts if weights.any()]
        assert len(filled) > 1
        for ids, weights in filled:
            assert weights[0] == 0.0  # its first token would be foretold from another document
            n_weighted = int(weights.nonzero().max()) + 1
            assert ids[n_weighted - 1] == padding  # the end of the document, which is learned
            assert set(ids[n_weighted:].tolist()) <= {padding}
            text = nano_tokenizer.decode(ids[: n_weighted - 1])
            assert text.startswith("<|im_start|>system")
            assert text.endswith("<|im_end|>\n")


def test_rows_are_nearly_full_of_conversations(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = list(islice(PackedRows(nano_tokenizer, 3, 2048, BROAD), 4))
    assert min(int((row["weights"] > 0).sum()) for row in rows) > 0.8 * 2048


def test_the_rows_depend_on_the_seed_alone_and_can_be_read_again(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    mixture = Mixture(exercise_rows=1, exercise_share=0.1, disguised_share=0.5, drill_share=0.2)

    def ids(rows: PackedRows) -> list[list[int]]:
        return [row["ids"].tolist() for row in islice(rows, 3)]

    rows = PackedRows(nano_tokenizer, 5, 256, mixture)
    assert ids(rows) == ids(rows) == ids(PackedRows(nano_tokenizer, 5, 256, mixture))
    assert ids(rows) != ids(PackedRows(nano_tokenizer, 6, 256, mixture))
