from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tinydispatch.formats import DOCUMENT_END, SPECIAL_TOKENS, TURN_END, default_chat_template
from training.nano.tokenizer import train_tokenizer

TORTURE = [
    "",
    " ",
    "  two  spaces and a tab\t.",
    "line\r\nline\n\n\nline",
    "naïve Zürich Łódź Ñandú ﬁ",
    "東京 서울 Москва العربية",
    "👩🏽‍🚀 zero\u200bwidth \u00a0nbsp",
    '{"name": "get_weather", "arguments": {"x": [1, -2.5e10, null]}}',
    "don't I'VE 12345 $5,000.00 a@b.io https://x.y/z?q=1#f",
    "\x00\x07\x7f",
    "<tool_call>{}</tool_call><|im_end|>",
]


@pytest.mark.parametrize("text", TORTURE, ids=range(len(TORTURE)))
def test_any_text_comes_back_as_it_was(text: str, nano_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = nano_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert nano_tokenizer.decode(ids) == text


@settings(deadline=None)
@given(st.text(max_size=60))
def test_random_text_comes_back_as_it_was(text: str) -> None:
    tokenizer = _tiny()
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


_TINY: list[PreTrainedTokenizerFast] = []


def _tiny() -> PreTrainedTokenizerFast:
    if not _TINY:
        _TINY.append(train_tokenizer(["set a reminder for tomorrow at nine"], 390, 128))
    return _TINY[0]


def test_a_day_a_month_an_hour_and_a_minute_are_one_token_each(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    pieces = [nano_tokenizer.decode(i) for i in nano_tokenizer("-11-26T14:30", add_special_tokens=False)["input_ids"]]
    assert pieces == ["-", "11", "-", "26", "T", "14", ":", "30"]


def test_words_that_are_asked_for_are_one_token_each() -> None:
    tokenizer = train_tokenizer(["set a reminder"], 420, 128, whole_words=["Wednesday", "march"])
    for word in ("Wednesday", "march"):
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1


def test_no_merge_contains_a_space(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    learned = [token for token in nano_tokenizer.get_vocab() if token not in SPECIAL_TOKENS and len(token) > 1]
    assert len(learned) > 100
    assert [token for token in learned if "Ġ" in token or "Ċ" in token] == []


def test_a_name_is_the_same_tokens_after_a_space_a_quote_and_a_bracket(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    name = nano_tokenizer("Vehaind", add_special_tokens=False)["input_ids"]
    for before in (" ", ' "', "in ", ': "', "("):
        ids = nano_tokenizer(f"x{before}Vehaind", add_special_tokens=False)["input_ids"]
        assert ids[-len(name) :] == name


def test_every_special_token_is_one_id_and_closes_what_it_should(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    for token in SPECIAL_TOKENS:
        assert len(nano_tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
    assert nano_tokenizer.eos_token == TURN_END
    assert nano_tokenizer.pad_token == DOCUMENT_END
    assert nano_tokenizer.chat_template == default_chat_template()


def test_the_vocabulary_has_the_wanted_size_and_survives_saving(
    nano_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    assert len(nano_tokenizer) == 500
    nano_tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = json.dumps({"query": "best ramen in Köln", "n": 12})
    assert loaded(text)["input_ids"] == nano_tokenizer(text)["input_ids"]
    assert loaded.model_max_length == 2048
