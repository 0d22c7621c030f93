"""`python -m scripts.data_shapes`: files as other programs write them, and what becomes of their rows, as a table.

The files are written on the spot: Parquet and JSON Lines by `datasets` where it is installed, with TRL's columns; the
others as the documentation of Axolotl, LLaMA-Factory, OpenAI and Anthropic shows them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.clean import check_conversation
from data.config import FileSource, HermesSource, OpenAIJsonlSource, ShareGptSource
from data.rejected import Rejected
from data.sources import read_source

_PROPERTIES = {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["c", "f"]}}
PARAMETERS = {"type": "object", "properties": _PROPERTIES, "required": ["city"]}
BARE = {"name": "get_weather", "description": "Weather", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": BARE}
NOTE = {
    "type": "function",
    "function": {
        "name": "take_note",
        "description": "A note",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    },
}
USER = {"role": "user", "content": "weather in Oslo?"}
CALL = {"name": "get_weather", "arguments": {"city": "Oslo"}}
OTHER = {"name": "get_weather", "arguments": {"city": "Rome"}}
LISTED = {"id": "1", "type": "function", "function": CALL}
TEXT = json.dumps(CALL)


def _turn(content: Any = "", **rest: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **rest}


def _row(*messages: Mapping[str, Any], **rest: Any) -> dict[str, Any]:
    return {"messages": [USER, *messages], "tools": [TOOL], **rest}


def _function(arguments: Any) -> dict[str, Any]:
    return _turn(tool_calls=[{"id": "1", "function": {"name": "get_weather", "arguments": arguments}}])


def _share(*turns: tuple[str, str], **rest: Any) -> dict[str, Any]:
    said = [{"from": speaker, "value": value} for speaker, value in (("human", "weather in Oslo?"), *turns)]
    return {"conversations": said, "tools": json.dumps([BARE]), **rest}


@dataclass(frozen=True)
class Shape:
    """Rows of one shape; `kept` of them are to be kept, under the repair or the reason for rejecting the others."""

    writer: str
    name: str
    rows: tuple[Mapping[str, Any], ...]
    kept: int
    why: str = ""
    kind: str = "openai_jsonl"
    suffix: str = ".jsonl"


_COLUMNS = (
    _row(_turn(tool_calls=[LISTED]), tools=[TOOL, NOTE]),
    _row(
        _turn(
            tool_calls=[{"id": "2", "type": "function", "function": {"name": "take_note", "arguments": {"text": "x"}}}]
        ),
        tools=[TOOL, NOTE],
    ),
)
_USE = {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Oslo"}}
_RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "rain"}]}
_OLDER = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
_NOTHING: tuple[Any, ...] = (None, "", [], "null")
SHAPES = (
    Shape("TRL", "messages and tools", (_row(_turn(tool_calls=[LISTED])),), 1),
    Shape("TRL", "tools as JSON text", (_row(_turn(tool_calls=[LISTED]), tools=json.dumps([TOOL])),), 1),
    Shape(
        "TRL",
        "prompt and completion",
        ({"prompt": [USER], "completion": [_turn(tool_calls=[LISTED])], "tools": [TOOL]},),
        1,
    ),
    Shape("datasets to_json", "columns filled with nulls", _COLUMNS, 2, "filled_nulls_dropped", suffix=".arrow.jsonl"),
    Shape("datasets to_parquet", "columns filled with nulls", _COLUMNS, 2, "filled_nulls_dropped", suffix=".parquet"),
    Shape(
        "Axolotl",
        "arguments as text, a turn with train: false",
        (
            _row(
                _function('{"city": "Oslo"}'),
                {"role": "tool", "tool_call_id": "1", "content": "rain"},
                _turn("Rain.", train=False),
            ),
        ),
        1,
    ),
    Shape(
        "Axolotl",
        "ShareGPT, a turn with weight: 0",
        (
            {
                "conversations": [
                    {"from": "human", "value": "weather in Oslo?"},
                    {"from": "gpt", "value": "Hm.", "weight": 0},
                    {"from": "function_call", "value": TEXT},
                ],
                "tools": json.dumps([BARE]),
            },
        ),
        1,
        kind="sharegpt",
    ),
    Shape(
        "LLaMA-Factory",
        "function_call and observation",
        (_share(("function_call", TEXT), ("observation", "rain"), ("gpt", "Rain."), system="Be brief."),),
        1,
        kind="sharegpt",
    ),
    Shape(
        "LLaMA-Factory",
        "two calls, as a list and one after the other",
        (
            _share(("function_call", json.dumps([CALL, OTHER]))),
            _share(("function_call", f"{TEXT}\n{json.dumps(OTHER)}")),
        ),
        2,
        kind="sharegpt",
    ),
    Shape(
        "LLaMA-Factory",
        "a thought before the call",
        (_share(("function_call", f"<think>hm</think>\n{TEXT}")),),
        1,
        "thought_dropped",
        kind="sharegpt",
    ),
    Shape(
        "Anthropic",
        "input_schema, tool_use, tool_result, system",
        (
            {
                "system": "Be brief.",
                "messages": [USER, _turn([{"type": "text", "text": "Let me see."}, _USE]), _RESULT, _turn("Rain.")],
                "tools": [{"name": "get_weather", "description": "d", "input_schema": PARAMETERS}],
            },
        ),
        1,
    ),
    Shape(
        "Anthropic",
        "thinking blocks",
        (_row(_turn([{"type": "thinking", "thinking": "hm"}, _USE])),),
        1,
        "thought_dropped",
    ),
    Shape(
        "OpenAI, older",
        "functions and function_call",
        (
            {
                "messages": [
                    USER,
                    _turn(None, function_call=_OLDER),
                    {"role": "function", "name": "get_weather", "content": "rain"},
                    _turn("Rain."),
                ],
                "functions": [BARE],
            },
        ),
        1,
    ),
    Shape(
        "OpenAI",
        "several system and developer messages",
        (
            {
                "messages": [
                    {"role": "system", "content": "a"},
                    {"role": "developer", "content": "b"},
                    USER,
                    _turn(tool_calls=[LISTED]),
                ],
                "tools": [TOOL],
            },
        ),
        1,
    ),
    Shape(
        "Axolotl, ms-swift",
        "a turn with training: false, with loss: false",
        (
            _row(_turn("Hm.", training=False), USER, _turn(tool_calls=[LISTED])),
            _row(_turn("Hm.", loss=False), USER, _turn(tool_calls=[LISTED])),
        ),
        2,
    ),
    Shape(
        "TRL",
        "chosen and rejected, with a prompt and without",
        (
            {"prompt": [USER], "chosen": [_turn(tool_calls=[LISTED])], "rejected": [_turn("No.")], "tools": [TOOL]},
            {"chosen": [USER, _turn(tool_calls=[LISTED])], "rejected": [USER, _turn("No.")], "tools": [TOOL]},
        ),
        2,
    ),
    Shape(
        "OpenAI",
        "preferred_output",
        ({"input": {"messages": [USER], "tools": [TOOL]}, "preferred_output": [_turn(tool_calls=[LISTED])]},),
        1,
    ),
    Shape(
        "OpenAI",
        "items of Responses",
        (
            {
                "instructions": "Be brief.",
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "weather in Oslo?"}]},
                    {"type": "function_call", "call_id": "c", **_OLDER},
                    {"type": "function_call_output", "call_id": "c", "output": "rain"},
                    _turn([{"type": "output_text", "text": "Rain."}], type="message"),
                ],
                "tools": [{"type": "function", **BARE}],
            },
        ),
        1,
    ),
    Shape(
        "OpenAI",
        "a refusal, and an image",
        (
            _row(_turn([{"type": "refusal", "refusal": "No."}])),
            _row({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, _turn("A cat.")),
        ),
        1,
        "unsupported_content",
    ),
    Shape(
        "Gemini, Vertex",
        "contents with functionCall parts",
        (
            {
                "systemInstruction": {"parts": [{"text": "Be brief."}]},
                "contents": [
                    {"role": "user", "parts": [{"text": "weather in Oslo?"}]},
                    {"role": "model", "parts": [{"functionCall": {"name": "get_weather", "args": {"city": "Oslo"}}}]},
                    {"role": "user", "parts": [{"functionResponse": {"name": "get_weather", "response": {"t": 3}}}]},
                    {"role": "model", "parts": [{"text": "3 degrees."}]},
                ],
                "tools": [
                    {
                        "functionDeclarations": [
                            {
                                "name": "get_weather",
                                "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}},
                            }
                        ]
                    }
                ],
            },
        ),
        1,
    ),
    Shape(
        "Bedrock",
        "toolUse and toolResult",
        (
            {
                "system": [{"text": "Be brief."}],
                "messages": [
                    {"role": "user", "content": [{"text": "weather in Oslo?"}]},
                    _turn([{"toolUse": {"toolUseId": "t", "name": "get_weather", "input": {"city": "Oslo"}}}]),
                    {"role": "user", "content": [{"toolResult": {"toolUseId": "t", "content": [{"text": "rain"}]}}]},
                    _turn([{"text": "Rain."}]),
                ],
                "toolConfig": {"tools": [{"toolSpec": {"name": "get_weather", "inputSchema": {"json": PARAMETERS}}}]},
            },
        ),
        1,
    ),
    Shape(
        "Mistral",
        "results by name",
        (
            _row(
                _turn(tool_calls=[{"id": "9Ae3bDc2F", "function": CALL}]),
                {"role": "tool", "name": "get_weather", "tool_call_id": "9Ae3bDc2F", "content": "{}"},
                _turn("Dry.", prefix=False),
            ),
        ),
        1,
    ),
    Shape(
        "ms-swift",
        "roles tool_call and tool_response",
        (_row({"role": "tool_call", "content": TEXT}, {"role": "tool_response", "content": "rain"}, _turn("Rain.")),),
        1,
        "call_read_from_text",
    ),
    Shape(
        "any",
        "messages and tools as JSON text",
        ({key: json.dumps(value) for key, value in _row(_turn("Hi.")).items()},),
        1,
    ),
    Shape(
        "OpenAI",
        "a call of a custom tool",
        (_row(_turn(tool_calls=[{"id": "1", "type": "custom"}])),),
        0,
        "malformed_call",
    ),
    Shape(
        "servers",
        "reasoning_content",
        (_row(_turn(tool_calls=[LISTED], reasoning_content="hm")),),
        1,
        "thought_dropped",
    ),
    Shape(
        "any",
        "arguments null, empty, [] and as text",
        tuple(
            {
                "messages": [USER, _turn(tool_calls=[{"function": {"name": "now", "arguments": a}}])],
                "tools": [{"name": "now", "parameters": {"type": "object", "properties": {}}}],
            }
            for a in _NOTHING
        ),
        4,
        "empty_arguments",
    ),
    Shape(
        "any",
        "two objects in one call's arguments",
        (_row(_function('{"city": "Oslo"}{"city": "Rome"}')),),
        0,
        "malformed_call",
    ),
    Shape(
        "Hermes",
        "two calls in one tag",
        (
            {
                "conversations": [
                    {"from": "human", "value": "both?"},
                    {"from": "gpt", "value": f"<tool_call>{TEXT}\n{json.dumps(OTHER)}</tool_call>"},
                ],
                "tools": json.dumps([BARE]),
            },
        ),
        1,
        kind="hermes",
    ),
    *(
        Shape(writer, f"call as text: {text.splitlines()[0][:24]}…", (_row(_turn(text)),), kept, why)
        for writer, text, kept, why in (
            ("Hermes, Qwen", f"<tool_call>\n{TEXT}\n</tool_call>", 1, "call_read_from_text"),
            ("Llama 3.1", '<function=get_weather>{"city": "Oslo"}</function>', 1, "call_read_from_text"),
            (
                "Llama 3.1",
                '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Oslo"}}<|eom_id|>',
                1,
                "call_read_from_text",
            ),
            ("Mistral", f"[TOOL_CALLS] [{TEXT}]", 1, "call_read_from_text"),
            ("Firefunction", f"functools[{TEXT}]", 1, "call_read_from_text"),
            ("Phi, Granite", f"<|tool_call|>[{TEXT}]<|/tool_call|>", 1, "call_read_from_text"),
            ("Qwen-Agent", '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Oslo"}', 1, "call_read_from_text"),
            ("any", f"```json\n{TEXT}\n```", 1, "call_read_from_text"),
            ("any", f"Sure: {TEXT}", 0, "call_in_text"),
            ("Gemma", "```tool_code\nprint(get_weather(city='Oslo'))\n```", 1, "call_read_from_text"),
            ("Llama 4", "[get_weather(city='Oslo'), get_weather(city='Rome', unit='c')]", 1, "call_read_from_text"),
            ("Llama 4", "<|python_start|>[get_weather(city='Oslo')]<|python_end|>", 1, "call_read_from_text"),
            ("Llama 3.1", '<|python_tag|>get_weather.call(city="Oslo")', 1, "call_read_from_text"),
            ("Llama 4", "[get_weather(city=__import__('os').name)]", 0, "call_in_text"),
            ("Llama 4", "[get_weather('Oslo')]", 0, "call_in_text"),
            ("Mistral", '[TOOL_CALLS]get_weather{"city": "Oslo"}</s>', 1, "call_read_from_text"),
            (
                "Mistral",
                '[TOOL_CALLS]get_weather[CALL_ID]a1[ARGS]{"city": "Oslo"}[TOOL_CALLS]get_weather[ARGS]{"city": "[R]"}',
                1,
                "call_read_from_text",
            ),
            (
                "Qwen3-Coder",
                "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
                1,
                "call_read_from_text",
            ),
            (
                "Qwen3-Coder",
                "<function=get_weather><parameter=city>Oslo</parameter></function>",
                1,
                "call_read_from_text",
            ),
            ("Qwen3-Coder", "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo", 0, "malformed_call"),
            ("ReAct", "Thought: hm\nAction: get_weather\nAction Input: {'city': 'Oslo'}", 1, "call_read_from_text"),
            (
                "GLM",
                "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
                1,
                "call_read_from_text",
            ),
            (
                "DeepSeek",
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
                '{"city": "Oslo"}\n```'
                "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
                1,
                "call_read_from_text",
            ),
            (
                "Kimi",
                "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
                '{"city": "Oslo"}<|tool_call_end|><|tool_calls_section_end|>',
                1,
                "call_read_from_text",
            ),
            (
                "gpt-oss",
                '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Oslo"}<|call|>',
                1,
                "call_read_from_text",
            ),
            ("LM Studio", f"[TOOL_REQUEST]{TEXT}[END_TOOL_REQUEST]", 1, "call_read_from_text"),
            ("LFM2", '<|tool_call_start|>[get_weather(city="Oslo")]<|tool_call_end|>', 1, "call_read_from_text"),
            ("Functionary", '>>>get_weather\n{"city": "Oslo"}', 1, "call_read_from_text"),
            (
                "Command R7B",
                '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Oslo"}}]'
                "<|END_ACTION|>",
                1,
                "call_read_from_text",
            ),
            (
                "LangChain",
                '```json\n{"action": "get_weather", "action_input": {"city": "Oslo"}}\n```',
                1,
                "call_read_from_text",
            ),
            (
                "Anthropic",
                '<invoke name="get_weather"><parameter name="city">Oslo</parameter></invoke>',
                1,
                "call_read_from_text",
            ),
            (
                "Anthropic",
                '<function_calls>\n<invoke name="get_weather">\n<parameter name="city">Oslo</parameter>\n</invoke>\n'
                "</function_calls>",
                1,
                "call_read_from_text",
            ),
            ("Hermes", '<tool_call>{"name": "delete_all", "arguments": {}}</tool_call>', 0, "unknown_tool"),
        )
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a shape's rows: how many are kept, and repairs and reasons by name."""

    shape: Shape
    kept: int
    rejected: int
    names: Mapping[str, int]

    @property
    def is_expected(self) -> bool:
        """Every row is kept or rejected, and for the stated reason."""
        is_whole = self.kept + self.rejected == len(self.shape.rows)
        return is_whole and self.kept == self.shape.kept and (not self.shape.why or self.shape.why in self.names)


def read_shape(shape: Shape, folder: Path, number: int) -> Outcome:
    """Write a shape's file and read it as the data stage does."""
    path = folder / f"{number:02}{shape.suffix}"
    if shape.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in shape.rows), "utf-8")
    else:
        import datasets

        columns = datasets.Dataset.from_list([dict(row) for row in shape.rows])
        (columns.to_parquet if shape.suffix == ".parquet" else columns.to_json)(str(path))
    source: FileSource
    match shape.kind:
        case "sharegpt":
            source = ShareGptSource(kind="sharegpt", path=path)
        case "hermes":
            source = HermesSource(kind="hermes", path=path)
        case _:
            source = OpenAIJsonlSource(kind="openai_jsonl", path=path)
    names: Counter[str] = Counter()
    kept = rejected = 0
    for row in read_source(source, seed=0, default_tools=()):
        found = row if isinstance(row, Rejected) else check_conversation(row) or row
        if isinstance(found, Rejected):
            rejected += 1
            names[str(found.reason)] += 1
        else:
            kept += 1
            names.update(found.metadata.get("repairs", ()))
    return Outcome(shape, kept, rejected, names)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a row is lost or something else than stated became of it."""
    parser = argparse.ArgumentParser(prog="python -m scripts.data_shapes", description=__doc__)
    parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = [read_shape(shape, Path(folder), number) for number, shape in enumerate(SHAPES)]
    print("| written by | shape | `kind` | rows | kept | rejected | under the name |\n" + "| --- " * 7 + "|")
    for outcome in outcomes:
        shape, names = outcome.shape, ", ".join(f"`{name}`" for name in outcome.names) or "read as it stands"
        name = shape.name.replace("|", "\\|")
        mark = "" if outcome.is_expected else f" **expected {shape.kept} kept, {shape.why}**"
        print(
            f"| {shape.writer} | {name} | `{shape.kind}` | {len(shape.rows)} | {outcome.kept} | {outcome.rejected} "
            f"| {names}{mark} |"
        )
    return 0 if all(outcome.is_expected for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
