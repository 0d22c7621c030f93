"""How byte-level BPE tokenizers split text before they merge: llama.cpp's names and `tokenizer.json`'s steps.

llama.cpp picks its splitting code by name, so a name stands for exactly the steps behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_Step = dict[str, Any]

_WORDS_AND_DIGITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# With combining marks, which Qwen3.5 keeps with their letters.
_LETTERS_WITH_MARKS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bytes(*, use_regex: bool) -> _Step:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(expression: str) -> tuple[_Step, ...]:
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return split, _bytes(use_regex=False)


_STEPS: Mapping[str, tuple[_Step, ...]] = {
    "gpt-2": (_bytes(use_regex=True),),
    "smollm": ({"type": "Digits", "individual_digits": True}, _bytes(use_regex=True)),
    "qwen2": _split(_WORDS_AND_DIGITS % r"\p{N}"),
    "qwen35": _split(_LETTERS_WITH_MARKS),
    "dbrx": _split(_WORDS_AND_DIGITS % r"\p{N}{1,3}"),
}
NAMES = tuple(_STEPS)


def to_json(name: str) -> dict[str, Any] | None:
    """`tokenizer.json`'s value of `pre_tokenizer` for llama.cpp's name; None for a name that is not known here."""
    steps = _STEPS.get(name)
    if steps is None:
        return None
    return dict(steps[0]) if len(steps) == 1 else {"type": "Sequence", "pretokenizers": [dict(step) for step in steps]}


def name_of(value: Mapping[str, Any] | None) -> str | None:
    """llama.cpp's name for `tokenizer.json`'s value of `pre_tokenizer`; None where no name splits the same way."""
    if value is None:
        return None
    steps = value["pretokenizers"] if value.get("type") == "Sequence" else [value]
    found = [_splitting(step) for step in steps]
    return next((name for name, known in _STEPS.items() if found == [_splitting(step) for step in known]), None)


def _splitting(step: Mapping[str, Any]) -> _Step:
    """A step without what does not change where text is split."""
    return {key: value for key, value in step.items() if key != "trim_offsets"}
