"""A Hugging Face byte-level BPE tokenizer in GGUF's terms: token texts, types, merges and pre-tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from export.errors import ExportError, UnsupportedTokenizerError
from tinydispatch import formats
from tinydispatch.ggml import pre_tokenizers


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`: control tokens arise from special parsing only, user-defined ones from any text."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says about its tokenizer; `tokens[id]` in the byte-level alphabet."""

    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    pre_tokenizer: str
    normalizer: str | None
    eos_id: int
    pad_id: int | None
    chat_template: str


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, as training loads it.

    Raises:
        ExportError: there is none, or none with a `tokenizer.json`.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ExportError(f"{path}: no tokenizer can be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise UnsupportedTokenizerError(f"{path}: the tokenizer has no tokenizer.json; save a fast tokenizer")
    return tokenizer


def read_vocabulary(path: Path, tokenizer: PreTrainedTokenizerBase, n_rows: int) -> Vocabulary:
    """Translate a tokenizer; `n_rows` is the embedding's number of rows, those without a token become unused ones.

    Raises:
        UnsupportedTokenizerError: llama.cpp would split or merge text otherwise.
        ExportError: no chat template or end token, or more tokens than rows.
    """
    value = json.loads(tokenizer.backend_tokenizer.to_str())
    model = value["model"]
    _check_model(path, model)
    if tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise UnsupportedTokenizerError(f"{path}: the tokenizer adds tokens around every text, which is not supported")
    tokens, types = _tokens(path, model["vocab"], value["added_tokens"], n_rows)
    if not isinstance(tokenizer.chat_template, str):
        raise ExportError(f"{path}: the tokenizer carries no chat template (one Jinja text), so no server can render")
    return Vocabulary(
        tokens=tokens,
        types=types,
        merges=tuple(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]),
        pre_tokenizer=pre_tokenizer_name(path, value["pre_tokenizer"]),
        normalizer=_normalizer(path, value["normalizer"]),
        eos_id=_end_id(path, tokenizer),
        pad_id=tokenizer.pad_token_id,
        chat_template=tokenizer.chat_template,
    )


def _check_model(path: Path, model: Mapping[str, Any]) -> None:
    if model.get("type") != "BPE":
        raise UnsupportedTokenizerError(f"{path}: a {model.get('type')} tokenizer; supported is byte-level BPE")
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise UnsupportedTokenizerError(f"{path}: tokenizer.json: model.{key} is {model[key]!r}, not supported")
    if model.get("ignore_merges"):
        raise UnsupportedTokenizerError(f"{path}: tokenizer.json: model.ignore_merges is not supported")


def _tokens(
    path: Path, vocab: Mapping[str, int], added: list[dict[str, Any]], n_rows: int
) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    tokens = [f"[PAD{token}]" for token in range(n_rows)]
    types = [TokenType.UNUSED] * n_rows
    highest = max([*vocab.values(), *(entry["id"] for entry in added)])
    if highest >= n_rows:
        raise ExportError(f"{path}: the tokenizer has an id {highest}, the embedding only {n_rows} rows")
    for text, token in vocab.items():
        tokens[token], types[token] = text, TokenType.NORMAL
    for entry in added:
        if entry["lstrip"] or entry["rstrip"] or entry["single_word"]:
            raise UnsupportedTokenizerError(f"{path}: token {entry['content']!r} strips its neighbours, not supported")
        tokens[entry["id"]] = entry["content"]
        types[entry["id"]] = _added_type(entry)
    if len(set(tokens)) != n_rows:  # llama.cpp ends the process on such a file
        raise UnsupportedTokenizerError(f"{path}: two ids of the tokenizer have the same text")
    return tuple(tokens), tuple(types)


def _added_type(entry: Mapping[str, Any]) -> TokenType:
    text = entry["content"]
    is_control = entry["special"] or (text.startswith("<|") and text.endswith("|>"))
    return TokenType.CONTROL if is_control else TokenType.USER_DEFINED


def pre_tokenizer_name(path: Path, value: Mapping[str, Any] | None) -> str:
    """llama.cpp's name of a `tokenizer.json` pre-tokenizer, by comparing what it does, not a hash of its output.

    Raises:
        UnsupportedTokenizerError: llama.cpp has none that splits the same way.
    """
    name = pre_tokenizers.name_of(value)
    if name is None:
        raise UnsupportedTokenizerError(
            f"{path}: tokenizer.json: 'pre_tokenizer' is none of {', '.join(pre_tokenizers.NAMES)}, and llama.cpp "
            f"would split text otherwise than the model was trained: {json.dumps(value, ensure_ascii=False)[:300]}"
        )
    return name


def _normalizer(path: Path, value: Mapping[str, Any] | None) -> str | None:
    if value is None:
        return None
    if value.get("type") == "NFC":
        return "NFC"
    raise UnsupportedTokenizerError(f"{path}: tokenizer.json: 'normalizer' is {value.get('type')}; supported is NFC")


def _end_id(path: Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """The turn's end: what a server must stop at, whatever the tokenizer calls its end of sequence."""
    known = tokenizer.get_vocab()
    token = known.get(formats.TURN_END, tokenizer.eos_token_id)
    if token is None:
        raise ExportError(f"{path}: the tokenizer has no end token ({formats.TURN_END} or an eos_token)")
    return int(token)
