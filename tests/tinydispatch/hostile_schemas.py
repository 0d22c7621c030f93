"""`python -m tests.tinydispatch.hostile_schemas`: what huge schemas, and those that mean harm, cost until they compile
or are refused.
"""

from __future__ import annotations

import logging
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import llguidance

from tinydispatch.decoding.reply import CallFormat, ReplyShape, check_grammar, reply_grammar
from tinydispatch.patterns import byte_table
from tinydispatch.tools import Tool

Schema = dict[str, Any]


def _of(properties: Mapping[str, Any], **more: Any) -> Schema:
    return {"type": "object", "properties": dict(properties), **more}


def _deep(levels: int, wrap: Callable[[Schema], Schema]) -> Schema:
    schema: Schema = {"type": "string"}
    for _ in range(levels):
        schema = wrap(schema)
    return _of({"v": schema})


def _fan_out(depth: int, level: Callable[[str], Schema]) -> Schema:
    levels = {f"d{i}": level(f"#/$defs/d{i + 1}") for i in range(depth)}
    return {**_of({"v": {"$ref": "#/$defs/d0"}}), "$defs": {**levels, f"d{depth}": {"type": "string"}}}


def _each(n: int, schema: Callable[[int], Any], name: str = "key number {}") -> Schema:
    return {name.format(i): schema(i) for i in range(n)}


def _subsets() -> Schema:
    def node(i: int) -> Schema:
        ref = lambda a, b: {"$ref": f"#/$defs/d{(i * a + b) % 30}"}  # noqa: E731
        return {"allOf": [_of({"a": ref(7, 1), "b": ref(5, 3)}), _of({"a": ref(3, 2), "b": ref(11, 5)})]}

    return {**_of({"v": {"$ref": "#/$defs/d0"}}), "$defs": _each(30, node, "d{}")}


def _refs_to_refs() -> Schema:
    inner = _deep(72, lambda schema: _of({"v": schema}))["properties"]["v"]
    refs = _each(3_000, lambda i: {"$ref": "#/properties/p0" + "/properties/v" * (i % 70 + 1)}, "p{}")
    return _of({**refs, "p0": inner})


SCHEMAS: Mapping[str, Callable[[], Schema]] = {
    "3,000 optional keys": lambda: _of(_each(3_000, lambda _: {"type": "string"})),
    "3,000 required keys": lambda: _of(
        _each(3_000, lambda _: {"type": "string"}), required=[*_each(3_000, lambda _: None)]
    ),
    "1,000 keys of 1,000 kinds": lambda: _of(_each(1_000, lambda i: {"type": "integer", "maximum": i})),
    "30,000 keys": lambda: _of(_each(30_000, lambda _: {"type": "string", "description": "d"})),
    "allOf of references, fan-out of depth 40": lambda: _fan_out(40, lambda ref: {"allOf": [{"$ref": ref}] * 2}),
    "anyOf of references, fan-out of depth 40": lambda: _fan_out(40, lambda ref: {"anyOf": [{"$ref": ref}] * 2}),
    "properties of references, fan-out of depth 40": lambda: _fan_out(
        40, lambda ref: _of({"a": {"$ref": ref}, "b": {"$ref": ref}}, required=["a", "b"])
    ),
    "anyOf under allOf, fan-out of depth 40": lambda: _fan_out(
        40, lambda ref: {"allOf": [{"anyOf": [{"$ref": ref}, {"minLength": 1}]}, {"anyOf": [{"$ref": ref}, {}]}]}
    ),
    "30 definitions whose parts combine without end": _subsets,
    "4,000 references": lambda: {
        **_of(_each(4_000, lambda i: {"$ref": f"#/$defs/d{i}"})),
        "$defs": _each(4_000, lambda i: _of({"a": {"type": "string", "minLength": i % 50}}), "d{}"),
    },
    "3,000 references into a path of 72 objects": _refs_to_refs,
    "an enum of 10,000": lambda: _of({"v": {"enum": [f"value number {i}" for i in range(10_000)]}}),
    "an enum of 10,000 beside a pattern": lambda: _of(
        {"v": {"enum": [f"value number {i}" for i in range(10_000)], "pattern": "1"}}
    ),
    "oneOf of 3,000 constants": lambda: _of({"v": {"oneOf": [{"const": f"c{i}"} for i in range(3_000)]}}),
    "anyOf of 1,000 objects": lambda: _of({"v": {"anyOf": [_of({"kind": {"const": i}}) for i in range(1_000)]}}),
    "75 objects deep": lambda: _deep(75, lambda schema: _of({"a": schema}, required=["a"])),
    "100,000 arrays deep": lambda: _deep(100_000, lambda schema: {"items": schema}),
    "a length of a billion": lambda: _of({"v": {"type": "string", "minLength": 10**9}}, required=["v"]),
    "arrays of arrays of arrays of 100 each": lambda: _of(
        {"v": {"minItems": 100, "items": {"minItems": 100, "items": {"minItems": 100, "items": {"minLength": 100}}}}}
    ),
    "a tuple of 5,000": lambda: _of({"v": {"type": "array", "prefixItems": [{"type": "string"}] * 5_000}}),
    "a pattern of nested repetitions": lambda: _of(
        {"v": {"type": "string", "pattern": "^(" + "(a?){100}" * 20 + "){100}$"}}
    ),
    "a pattern that backtracks without end": lambda: _of(
        {"v": {"type": "string", "pattern": r"^(?!x)(([a-z])+.)+[A-Z]([a-z])+$"}}
    ),
    "16 patterns at one place": lambda: _of(
        {"v": {"type": "string", "allOf": [{"pattern": f"(.*{char}){{20}}"} for char in "abcdefghijklmnop"]}}
    ),
    "500 large patterns": lambda: _of(
        _each(500, lambda i: {"type": "string", "pattern": f"^(.*[a-f]{{{i}}}.*){{{i % 9 + 2}}}$"})
    ),
    "500 patterns of names": lambda: _of(
        {"v": {"type": "object", "patternProperties": _each(500, lambda _: {"type": "integer"}, "^x{}")}}
    ),
    "it refers to itself": lambda: {**_of({"a": {"type": "string"}}), "allOf": [{"$ref": "#"}]},
    "it requires itself": lambda: _of({"a": {"$ref": "#"}}, required=["a"]),
    "a number of 4,000 digits": lambda: _of({"v": {"type": "integer", "maximum": 10**4_000}}),
    "1e400": lambda: _of({"v": {"type": "number", "maximum": float("inf"), "multipleOf": 10**400}}),
    "a description of 3 MB": lambda: _of({"v": {"type": "string", "description": "x" * 3_000_000}}),
}  # fmt: skip


def cost(name: str) -> tuple[float, int, str]:
    """Processor seconds, megabytes and what came of it, of one schema in this process."""
    document = SCHEMAS[name]()
    byte_table()
    memory, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    try:
        tools, shape, form = [Tool("f", "", document)], ReplyShape(), CallFormat()
        grammar = reply_grammar(tools, shape, form)
        check_grammar(grammar, tools, shape, form)
        matcher = llguidance.LLMatcher(byte_table(), grammar, log_level=0)
        matcher.consume_tokens(list(b'<tool_call>{"name": "f", "arguments": {'))
        matcher.compute_bitmask()
        outcome = "compiles" if not matcher.get_error() else f"FAILS: {matcher.get_error()[:80]}"
    except ValueError as error:
        outcome = str(error).partition("'parameters': ")[2].partition(":")[0] or str(error)
    seconds = time.thread_time() - started
    return seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) // 1024, outcome


def main(arguments: list[str]) -> int:
    """A row of a table for each schema, each measured in a process of its own."""
    if arguments:
        logging.disable(logging.CRITICAL)
        seconds, megabytes, outcome = cost(arguments[0])
        print(f"| {arguments[0]} | {seconds:.2f} | {megabytes} | {outcome} |")
        return 0
    print("| schema | seconds | MB | what comes of it |\n| --- | --- | --- | --- |", flush=True)
    for name in SCHEMAS:
        subprocess.run([sys.executable, "-m", "tests.tinydispatch.hostile_schemas", name], check=False, timeout=600)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
