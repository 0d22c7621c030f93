from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from export.errors import ExportError, UnsupportedTokenizerError
from export.vocabulary import TokenType, Vocabulary, pre_tokenizer_name, read_vocabulary
from tests.fixtures_models import make_tiny_tokenizer
from tinydispatch import formats

_PATH = Path("checkpoint")
_Edit = Callable[[dict[str, Any]], object]


def _read(edit: _Edit = lambda _: None, n_rows: int = 408, template: str | None = "{{ messages }}") -> Vocabulary:
    value = json.loads(make_tiny_tokenizer().backend_tokenizer.to_str())
    edit(value)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(value)))
    tokenizer.chat_template = template
    return read_vocabulary(_PATH, tokenizer, n_rows)


def test_types_tell_control_tokens_from_markers_and_unused_rows() -> None:
    vocabulary = _read()
    types = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert types[formats.TURN_END] is TokenType.CONTROL
    assert types[formats.CALL_START] is TokenType.USER_DEFINED
    assert types["a"] is TokenType.NORMAL
    assert types["[PAD407]"] is TokenType.UNUSED
    assert vocabulary.tokens[vocabulary.eos_id] == formats.TURN_END


def test_a_token_that_looks_like_control_is_control_even_when_not_marked_so() -> None:
    def unmark(value: dict[str, Any]) -> None:
        for entry in value["added_tokens"]:
            entry["special"] = False

    vocabulary = _read(unmark)
    assert vocabulary.types[vocabulary.tokens.index(formats.TURN_START)] is TokenType.CONTROL


def test_merges_are_the_same_in_both_spellings_of_tokenizer_json() -> None:
    value = json.loads(make_tiny_tokenizer().backend_tokenizer.to_str())
    assert isinstance(value["model"]["merges"][0], list)
    assert _read().merges[0] == " ".join(value["model"]["merges"][0])


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda value: value["model"].update(ignore_merges=True), "ignore_merges"),
        (lambda value: value["model"].update(byte_fallback=True), "byte_fallback"),
        (lambda value: value["added_tokens"][0].update(lstrip=True), "strips its neighbours"),
        (lambda value: value.update(normalizer={"type": "Lowercase"}), "'normalizer' is Lowercase"),
        (lambda value: value.update(pre_tokenizer=None), "'pre_tokenizer' is none of"),
        (lambda value: value["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "'pre_tokenizer'"),
        (lambda value: value["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "'pre_tokenizer'"),
    ],
)
def test_what_llama_cpp_would_not_reproduce_is_refused(edit: _Edit, problem: str) -> None:
    with pytest.raises(UnsupportedTokenizerError, match=problem):
        _read(edit)


def test_a_tokenizer_that_adds_tokens_around_texts_is_refused() -> None:
    def add_end(value: dict[str, Any]) -> None:
        value["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [5], "tokens": ["a"]}},
        }

    with pytest.raises(UnsupportedTokenizerError, match="adds tokens around every text"):
        _read(add_end)


def test_more_tokens_than_rows_and_no_template_are_errors() -> None:
    with pytest.raises(ExportError, match="an id 399, the embedding only 300 rows"):
        _read(n_rows=300)
    with pytest.raises(ExportError, match="no chat template"):
        _read(template=None)


def test_gpt2_splitting_is_recognized_and_a_near_miss_is_not() -> None:
    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    assert pre_tokenizer_name(_PATH, gpt2) == "gpt-2"
    assert pre_tokenizer_name(_PATH, {"type": "Sequence", "pretokenizers": [gpt2]}) == "gpt-2"
    value = json.loads(make_tiny_tokenizer().backend_tokenizer.to_str())["pre_tokenizer"]
    assert pre_tokenizer_name(_PATH, value) == "qwen2"
    pattern = value["pretokenizers"][0]["pattern"]
    single = pattern["Regex"]
    pattern["Regex"] = single.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
    assert pre_tokenizer_name(_PATH, value) == "dbrx"
    pattern["Regex"] = single.replace(r"?\p{L}+|", r"?[\p{L}\p{M}]+|").replace(
        r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
    )
    assert pre_tokenizer_name(_PATH, value) == "qwen35"
    pattern["Regex"] = single.replace(r"|\p{N}|", r"|\p{N}{1,2}|")
    with pytest.raises(UnsupportedTokenizerError, match="none of gpt-2, smollm, qwen2, qwen35, dbrx"):
        pre_tokenizer_name(_PATH, value)
