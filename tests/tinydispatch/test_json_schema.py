"""Our check and `jsonschema`'s give the same verdict on random values for random schemas of draft 2020-12."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from jsonschema.validators import Draft202012Validator

from tinydispatch.json_schema import Schema

_KEYS = ("a", "b", "xa")
_NESTING = frozenset(
    ["items", "contains", "additionalProperties", "not", "if", "unevaluatedProperties", "unevaluatedItems"]
)
_LISTING, _MAPPING = (
    frozenset({"prefixItems", "allOf", "anyOf", "oneOf"}),
    frozenset({"properties", "dependentSchemas"}),
)
_PLAIN = {
    "type": (
        "object",
        "array",
        "string",
        "integer",
        "number",
        "null",
        "boolean",
        ["object", "array"],
        ["string", "null"],
    ),
    "enum": ([0, "a"], [[1], {"a": 1}], [True, None, 1.5]),
    "const": (1, "ab", {"a": 0}, [], False),
    "minimum": (0, 1, 1.5),
    "exclusiveMaximum": (1, 2),
    "multipleOf": (1, 2, 0.5),
    "minLength": (0, 1, 2),
    "maxLength": (0, 1, 2),
    "minItems": (1, 2),
    "maxItems": (0, 1, 2),
    "minProperties": (1, 2),
    "maxProperties": (0, 1),
    "pattern": ("^a", "b$", "a|b", "^x-?a$"),
    "uniqueItems": (True,),
    "required": (["a"], ["b", "xa"]),
    "dependentRequired": ({"a": ["b"]}, {"xa": ["a"]}),
    "propertyNames": ({"minLength": 2}, {"pattern": "^x"}, {"enum": ["a", "b"]}, False),
    "$ref": ("#/$defs/d", "#/$defs/e"),
}


def _schema(rng: random.Random, depth: int) -> Any:
    if rng.random() < 0.06:
        return rng.random() < 0.7
    schema: dict[str, Any] = {}
    nested = [*_NESTING, *_LISTING, *_MAPPING, "patternProperties", "properties"] if depth else []
    for keyword in rng.sample(sorted({*_PLAIN, *nested}), rng.randrange(1, 4)):
        if keyword in _PLAIN:
            schema[keyword] = rng.choice(_PLAIN[keyword])  # type: ignore[arg-type]
        elif keyword in _NESTING:
            schema[keyword] = _schema(rng, depth - 1)
            if keyword == "if":
                schema["then"], schema["else"] = _schema(rng, depth - 1), _schema(rng, depth - 1)
        elif keyword in _LISTING:
            schema[keyword] = [_schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))]
        elif keyword in _MAPPING:
            schema[keyword] = {key: _schema(rng, depth - 1) for key in rng.sample(_KEYS, rng.randrange(1, 3))}
        else:
            schema[keyword] = {rng.choice(("^x", "a$", ".")): _schema(rng, depth - 1)}
    return schema


def _value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(8 if depth else 5)
    if kind < 5:
        return rng.choice((None, True, False, 0, 1, 2, 3, -1, 0.5, 1.0, 2.5, "", "a", "ab", "abc", "xa"))
    if kind < 6:
        return [_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {key: _value(rng, depth - 1) for key in rng.sample(_KEYS, rng.randrange(4))}


def _compare(seed: int, n: int) -> None:
    rng = random.Random(seed)
    for _ in range(n):
        document = {**_schema_object(rng), "$defs": {"d": _schema(rng, 2), "e": _schema(rng, 1)}}
        ours, theirs = Schema(document), Draft202012Validator(document)
        for _ in range(5):
            value = _value(rng, 3)
            try:
                expected = theirs.is_valid(value)
            except RecursionError:  # it follows a reference to itself without end
                continue
            assert (ours.violations(value) == []) is expected, (json.dumps(document), value)


def _schema_object(rng: random.Random) -> dict[str, Any]:
    schema = _schema(rng, 3)
    return schema if isinstance(schema, dict) else {"properties": {"a": schema}}


def test_the_check_agrees_with_jsonschema() -> None:
    _compare(seed=1, n=150)


@pytest.mark.slow
def test_the_check_agrees_with_jsonschema_on_twenty_thousand_values() -> None:
    _compare(seed=2, n=4_000)
