"""Grammar and check draw the same line: random schemas, values written by the grammar, values that the check takes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import llguidance
import pytest

from scripts.random_schemas import KEYS, TEXTS, VALUES, random_tool
from tinydispatch import formats
from tinydispatch.decoding.reply import CallFormat, ReplyShape, ToolChoice, reply_grammar
from tinydispatch.decoding.rules import GrammarError, Rules
from tinydispatch.decoding.schema import KeyOrder, SchemaCompiler
from tinydispatch.patterns import byte_table
from tinydispatch.tools import Tool, ToolCall

_SHAPE = ReplyShape(ToolChoice.REQUIRED, is_parallel=False)


def _written(rng: random.Random, matcher: llguidance.LLMatcher) -> str | None:
    """What a random walk through the grammar writes, None where it does not come to an end."""
    written = bytearray()
    for _ in range(600):
        if matcher.is_stopped():
            break
        mask = matcher.compute_bitmask()
        assert not matcher.get_error(), matcher.get_error()
        allowed = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
        closing = [byte for byte in b'"]}' if byte in allowed]
        byte = rng.choice(closing if closing and rng.random() < 0.4 else allowed)
        assert matcher.consume_token(byte), matcher.get_error()
        written.append(byte)
    return written.decode() if matcher.is_accepting() else None


def _value(rng: random.Random, schema: Any, root: dict[str, Any], depth: int) -> Any:
    """A value that may well fit the schema; the check has the last word."""
    if not isinstance(schema, dict) or depth <= 0 or rng.random() < 0.05:
        return rng.choice(VALUES)
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2].replace("%20", " ").lstrip("#")
        return _value(rng, root["$defs"][name], root, depth - 1)
    for key in ("anyOf", "allOf"):
        if key in schema:
            return _value(rng, rng.choice(schema[key]), root, depth - 1)
    if "enum" in schema or "const" in schema:
        return rng.choice(schema["enum"]) if "enum" in schema else schema["const"]
    kind = schema.get("type", "any")
    kind = rng.choice(kind) if isinstance(kind, list) else kind
    if kind == "object":
        listed = schema.get("properties", {})
        keys = [key for key in listed if key in schema.get("required", ()) or rng.random() < 0.6]
        keys += [key for key in schema.get("required", ()) if key not in listed]
        keys += [key for key in KEYS if key not in keys and key not in listed and rng.random() < 0.1]
        rest = schema.get("additionalProperties", schema.get("unevaluatedProperties", {}))
        rest = schema.get("patternProperties", {"": rest})
        return {key: _value(rng, listed.get(key, next(iter(rest.values()))), root, depth - 1) for key in keys}
    if kind == "array":
        items = schema.get("prefixItems", schema.get("items"))
        if isinstance(items, list):
            return [_value(rng, item, root, depth - 1) for item in items] + rng.choice(([], [1]))
        size = schema.get("minItems", 0) + rng.randrange(2)
        return [_value(rng, items, root, depth - 1) for _ in range(size)]
    if kind == "integer":
        return rng.randrange(-6, 35)
    if kind == "number":
        return rng.choice((rng.randrange(-6, 35), round(rng.uniform(-6, 35), 2), 1e-7, 1e-5, 0.5))
    if kind == "string":
        return rng.choice(TEXTS)
    return rng.choice(VALUES)


def _in_order(tool: Tool, value: dict[str, Any]) -> dict[str, Any]:
    """The arguments with their listed keys first, in the schema's order."""
    listed = [*tool.parameters["properties"], *tool.parameters.get("required", [])]
    return {key: value[key] for key in [*dict.fromkeys(listed), *value] if key in value}


def _notes(tool: Tool) -> list[str]:
    compiler = SchemaCompiler(tool, Rules(), KeyOrder.SCHEMA)
    compiler.arguments()
    return [note.text for note in compiler.notes]


def _cases(seed: int, n: int) -> Iterator[tuple[Tool, str, random.Random]]:
    rng = random.Random(seed)
    n_made = 0
    while n_made < n:
        tool = random_tool(rng)
        try:
            grammar = reply_grammar([tool], _SHAPE, CallFormat())
        except GrammarError:
            continue
        n_made += 1
        yield tool, grammar, rng


def _check_that_what_is_written_is_accepted(seed: int, n: int) -> int:
    n_written = 0
    for tool, grammar, rng in _cases(seed, n):
        whole = llguidance.LLMatcher(byte_table(), grammar)
        assert not whole.get_error(), (tool.parameters, whole.get_error())
        notes = _notes(tool)
        for _ in range(4):
            text = _written(rng, whole.deep_copy())
            if text is None:
                continue
            parsed = formats.parse_reply(text)
            if not parsed.calls and parsed.unparsed[0].error.endswith("a key occurs twice"):
                continue
            assert len(parsed.calls) == 1, (text, parsed.unparsed)
            violations = tool.violations(parsed.calls[0].arguments)
            assert not violations or notes, (json.dumps(tool.parameters), text, violations)
            n_written += 1
    return n_written


def _check_that_what_is_accepted_can_be_written(seed: int, n: int) -> int:
    n_accepted = 0
    for tool, grammar, rng in _cases(seed, n):
        whole = llguidance.LLMatcher(byte_table(), grammar)
        for _ in range(6):
            value = _value(rng, tool.parameters, dict(tool.parameters), 5)
            if not isinstance(value, dict) or tool.violations(value):
                continue
            text = formats.render_calls([ToolCall("t", _in_order(tool, value))])
            if "e+" in text:
                continue  # an integer is never written with an exponent
            ids = list(text.encode())
            matcher = whole.deep_copy()
            can_write = matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()
            assert can_write, (json.dumps(tool.parameters), text)
            n_accepted += 1
    return n_accepted


def test_what_the_grammar_writes_the_check_accepts() -> None:
    assert _check_that_what_is_written_is_accepted(seed=1, n=60) > 100


def test_what_the_check_accepts_the_grammar_can_write() -> None:
    assert _check_that_what_is_accepted_can_be_written(seed=2, n=100) > 100


@pytest.mark.slow
def test_in_twenty_thousand_values_there_is_no_disagreement() -> None:
    n_written = sum(_check_that_what_is_written_is_accepted(seed, 500) for seed in range(100, 107))
    n_accepted = sum(_check_that_what_is_accepted_can_be_written(seed, 500) for seed in range(200, 216))
    assert n_written >= 10_000
    assert n_accepted >= 10_000
