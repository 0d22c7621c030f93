"""Random schemas of the kinds that the grammar says exactly, and values that occur in them."""

from __future__ import annotations

import random
from typing import Any

from tinydispatch.tools import Tool

KEYS = ("a", "b", "x-a", "x-b", 'q"', "ä")
PATTERNS = (r"^a|b$", r"^[a-c]{1,3}$", r"\S", r"^\d+-?\d*$", r"^(?=.*[0-9])[a-z0-9]{2,5}$", r"b\.?c", r'"')
FORMATS: tuple[str, ...] = (
    "date",
    "local-date-time",
    "date-time",
    "time",
    "duration",
    "email",
    "uri",
    "uuid",
    "ipv4",
    "ipv6",
)
FORMATS = (*FORMATS, "hostname", "currency", "iana-time-zone", "unheard-of")
TEXTS = (
    "",
    "a",
    "ab",
    "abc",
    "xb",
    "1-2",
    "a1",
    "b.c",
    'say "hi"\n',
    "ä\x7f",
    "a" * 50,
    "a@b.co",
    "2026-03-19",
    "UTC",
    "::1",
)
VALUES: tuple[Any, ...] = (None, True, False, 0, 1, -3, 7, 20, 2.5, 0.07, 19.99, 1e-7, 1e22, [], {}, *TEXTS)


def random_schema(rng: random.Random, depth: int) -> Any:
    """A schema of the kinds that the grammar says exactly."""
    kinds = ["string", "text", "integer", "number", "boolean", "null", "enum", "const", "format", "any"]
    if depth:
        kinds += ["array", "tuple", "object", "object", "map", "anyOf", "allOf", "ref", "types", "nullable"]
    match rng.choice(kinds):
        case "string":
            low = rng.randrange(3)
            return {"type": "string", "minLength": low, "maxLength": low + rng.choice((0, 1, 3, 60))}
        case "text":
            return {"type": "string", **({"pattern": rng.choice(PATTERNS)} if rng.random() < 0.7 else {})}
        case "format":
            return {"type": "string", "format": rng.choice(FORMATS)}
        case "integer" | "number" as kind:
            bounds = {
                key: rng.choice((-5, 0, 0, 1, 2, 10, 30))
                for key in ("minimum", "exclusiveMaximum")
                if rng.random() < 0.4
            }
            step = (
                {"multipleOf": rng.choice((1, 2, 5) if kind == "integer" else (0.01, 0.5))}
                if rng.random() < 0.2
                else {}
            )
            return {"type": kind, **bounds, **step}
        case "boolean" | "null" as kind:
            return {"type": kind}
        case "enum":
            return {"enum": rng.sample(VALUES, rng.randrange(1, 6))}
        case "const":
            return {"const": rng.choice(VALUES)}
        case "any":
            return rng.choice(({}, True))
        case "array":
            low = rng.randrange(3)
            return {
                "type": "array",
                "items": random_schema(rng, depth - 1),
                "minItems": low,
                "maxItems": low + rng.randrange(3),
            }
        case "tuple":
            key, rest = rng.choice((("prefixItems", "items"), ("items", "additionalItems")))
            first = [random_schema(rng, depth - 1) for _ in range(rng.randrange(1, 3))]
            return {"type": "array", key: first, rest: rng.choice((False, {"type": "integer"}))}
        case "object":
            return _object(rng, depth)
        case "map":
            return {
                "type": "object",
                rng.choice(("additionalProperties", "unevaluatedProperties")): random_schema(rng, depth - 1),
            }
        case "anyOf":
            return {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))]}
        case "allOf":
            return {"allOf": [random_schema(rng, depth - 1), rng.choice(({}, random_schema(rng, depth - 1)))]}
        case "types":
            return {"type": rng.sample(("string", "integer", "null", "boolean"), 2)}
        case "nullable":
            return {"type": "string", "maxLength": 2, "nullable": True}
        case _:
            return {"$ref": rng.choice(("#/$defs/node", "#/$defs/leaf", "#leaf", "#/$defs/odd%20name"))}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    properties = {key: random_schema(rng, depth - 1) for key in rng.sample(KEYS, rng.randrange(4))}
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.5:
        schema["required"] = rng.sample(KEYS, rng.randrange(3))
    if rng.random() < 0.6:
        schema["additionalProperties"] = rng.choice((False, False, True, random_schema(rng, depth - 1)))
        if schema["additionalProperties"] is False and rng.random() < 0.3:
            schema["patternProperties"] = {"^x-": random_schema(rng, depth - 1)}
    if rng.random() < 0.2:
        schema["minProperties"] = 1
    return schema


def random_tool(rng: random.Random) -> Tool:
    """A tool of such a schema, with definitions that it may refer to."""
    node = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/node"}},
        "required": ["a"],
    }
    definitions = {"node": node, "leaf": {"$anchor": "leaf", **_object(rng, 1)}, "odd name": {"enum": ["a", 1]}}
    return Tool("t", "", {**_object(rng, 3), "$defs": definitions})
