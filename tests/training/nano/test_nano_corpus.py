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
    NOT_ASKED,
    PROMPT_WEIGHT,
    SHAPES,
    Batches,
    Mixture,
    conversation_text,
    copy_document,
    recall_document,
    to_batch,
    to_document,
)

BROAD = Mixture(exercise_share=0.0, disguised_share=0.0, drill_share=0.0, plain_share=0.0, long_share=0.5)
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


def test_every_batch_has_one_of_the_shapes_and_both_occur(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    batches = list(islice(Batches(nano_tokenizer, 3, BROAD), 12))
    shapes = {tuple(batch["ids"].shape) for batch in batches}
    assert shapes == set(SHAPES)
    assert all(batch["ids"].shape == batch["weights"].shape == batch["known"].shape for batch in batches)


def test_a_row_holds_one_conversation_from_its_start_to_the_end_of_an_answer(
    nano_tokenizer: PreTrainedTokenizerFast,
) -> None:
    padding = nano_tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for batch in islice(Batches(nano_tokenizer, 3, BROAD), 8):
        for ids, weights in zip(batch["ids"], batch["weights"], strict=True):
            count = int(weights.nonzero().max()) + 1
            assert set(ids[count:].tolist()) <= {padding}
            text = nano_tokenizer.decode(ids[:count])
            assert text.startswith("<|im_start|>system")
            assert text.endswith(("<|im_end|>", "<|im_end|>\n<|endoftext|>"))
            assert "<|endoftext|>" not in text[:-13]


def test_a_cut_ends_after_the_last_answer_that_fits(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    document = to_document(conversation_text(CONVERSATION), nano_tokenizer)
    assert document.cut(len(document.ids)) == document
    shorter = document.cut(len(document.ids) - 4)
    assert shorter is not None
    assert nano_tokenizer.decode(shorter.ids).endswith(f"{render_calls([CALL])}{TURN_END}")
    assert document.cut(20) is None


def test_what_a_position_should_know_stands_at_that_position(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    document = replace(to_document(conversation_text(CONVERSATION), nano_tokenizer), lookups=((2, 77), (9_999, 78)))
    batch = to_batch([document, document], SHAPES[0], padding=0)
    assert batch["known"][:, 2].tolist() == [77, 77]
    assert (batch["known"] != NOT_ASKED).sum() == 2


def test_the_batches_depend_on_the_seed_alone_and_can_be_read_again(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    mixture = replace(BROAD, exercise_share=0.1, disguised_share=0.5, drill_share=0.2)

    def ids(batches: Batches) -> list[list[int]]:
        return [batch["ids"].tolist() for batch in islice(batches, 3)]

    batches = Batches(nano_tokenizer, 5, mixture)
    assert ids(batches) == ids(batches) == ids(Batches(nano_tokenizer, 5, mixture))
    assert ids(batches) != ids(Batches(nano_tokenizer, 6, mixture))
