"""The rule of the Berkeley Function Calling Leaderboard for one turn, as its checker for Python signatures applies it.

Written after `ast_checker.py` of the package bfcl-eval 2026.3.23. It is laxer than ours (capitals, spaces and some
punctuation of texts do not count, an optional argument may be left out wherever the answers allow it) and in places
stricter (an integer where its answer says 5.0 is no array element). Its score stands beside ours, never for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tinydispatch.formats import ParsedReply
from tinydispatch.tools import ToolCall

_TYPES: Mapping[str, type] = {
    "string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict,
    "any": str,
}  # fmt: skip
_IGNORED = re.compile(r"[ ,./\-_*^]")
_ABSENT = ""  # stands among the answers of an argument that may be left out

Answers = Mapping[str, Sequence[Any]]


def passes(reply: ParsedReply, functions: Sequence[Mapping[str, Any]], gold: Sequence[Mapping[str, Answers]]) -> bool:
    """Whether a reply counts as right there.

    Args:
        functions: as the question file lists them.
        gold: the calls wanted, each `{name: {argument: accepted values}}`; () where none may be made.
    """
    calls = () if reply.unparsed else reply.calls
    if len(calls) != len(gold):
        return False
    left = list(calls)
    for wanted in gold:
        ((name, answers),) = wanted.items()
        function = next((function for function in functions if function["name"] == name), functions[0])
        # Greedy, as there: the first call that fits is taken, whichever answer it would fit better.
        found = next((call for call in left if _is_call(call, function, answers)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _is_call(call: ToolCall, function: Mapping[str, Any], answers: Answers) -> bool:
    properties = function["parameters"]["properties"]
    required = function["parameters"].get("required", [])
    if call.name != function["name"] or any(name not in call.arguments for name in required):
        return False
    for name, value in call.arguments.items():
        if name not in properties or name not in answers:
            return False
        if not _is_value(value, properties[name], answers[name]):
            return False
    return all(name in call.arguments or _ABSENT in accepted for name, accepted in answers.items())


def _is_value(value: Any, schema: Mapping[str, Any], accepted: Sequence[Any]) -> bool:
    wanted = _TYPES[schema["type"]]
    inner = _TYPES[schema["items"]["type"]] if schema["type"] in ("array", "tuple") else None
    if wanted is float and type(value) is int:
        value = float(value)
    is_typed, is_variable = _type_of(value, accepted, wanted, inner)
    if not is_typed:
        return False
    if is_variable:
        return value in accepted
    if wanted is dict:
        return _is_dict(value, accepted)
    if wanted is list and inner is dict:
        return any(
            len(value) == len(option) and all(_is_dict(one, [other]) for one, other in zip(value, option, strict=True))
            for option in accepted
        )
    if wanted is str:
        return _plain(value) in [_plain(option) for option in accepted if isinstance(option, str)]
    if wanted is list:
        return [_plain(item) for item in value] in [[_plain(item) for item in option] for option in accepted]
    return value in accepted


def _type_of(value: Any, accepted: Sequence[Any], wanted: type[Any], inner: type[Any] | None) -> tuple[bool, bool]:
    """Whether the type will do, and whether the value is compared as it is: an answer of another type is a variable."""
    answered = next((type(option) for option in accepted if option != _ABSENT), None)
    is_variable = answered is not None and answered is not wanted
    if type(value) is wanted:
        if inner is None:
            return True, is_variable
        for option in accepted:
            # An answer that is no list accepts any list; the values are compared later.
            if not isinstance(option, list) or all(_type_of(item, option, inner, None)[0] for item in value):
                return True, is_variable
    return answered is not None and type(value) is answered, True


def _is_dict(value: Any, accepted: Sequence[Any]) -> bool:
    return any(_has_entries(value, option) for option in accepted if option != _ABSENT)


def _has_entries(value: Mapping[str, Any], option: Mapping[str, Sequence[Any]]) -> bool:
    for key, entry in value.items():
        if key not in option or _plain(entry) not in [_plain(other) for other in option[key]]:
            return False
    return all(key in value or _ABSENT in entries for key, entries in option.items())


def _plain(value: Any) -> Any:
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value
