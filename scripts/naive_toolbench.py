"""ToolBench rows → chat JSONL as one writes it in an afternoon: the rival that `scripts.bench_data` measures.

One process; `json.load`, `ast.literal_eval`, `jsonschema.validate` and the tokenizer for each row, one after the other.
It does what the data stage does to a row by itself: reads tools and turns, drops what gives up, calls unknown tools,
contradicts its schema or is too long, and what is equal to an earlier row. It joins, shortens and counts nothing.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
from tokenizers import Tokenizer

from tinydispatch.formats import default_chat_template, render_prompt
from tinydispatch.tools import Message, Role, Tool, ToolCall, ToolError

_API_LIST = "Specifically, you have access to the following APIs: "
_STEP = re.compile(r"Action:\s*(\S+)\s*Action Input:\s*(\{.*\})", re.DOTALL)


def convert(file: Path, out: Path, tokenizer_json: Path, max_length_tokens: int = 2048) -> int:
    """Write what can be trained on; returns how many rows were kept."""
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    template = default_chat_template()
    with file.open(encoding="utf-8") as stream:
        rows = json.load(stream)
    seen: set[str] = set()
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as lines:
        for row in rows:
            try:
                tools, messages = _read(row)
            except (ValueError, KeyError, SyntaxError, ToolError, jsonschema.ValidationError):
                continue
            text = render_prompt(messages, tools, template, add_generation_prompt=False)
            if len(tokenizer.encode(text, add_special_tokens=False).ids) > max_length_tokens:
                continue
            line = json.dumps(
                {"messages": [m.to_openai() for m in messages], "tools": [t.to_openai() for t in tools]},
                ensure_ascii=False,
            )
            if line not in seen:
                seen.add(line)
                lines.write(line + "\n")
    return len(seen)


def _read(row: dict[str, Any]) -> tuple[list[Tool], list[Message]]:
    tools: list[Tool] = []
    messages: list[Message] = []
    for turn in row["conversations"]:
        role, value = turn["from"], turn["value"]
        if role == "system":
            listed = ast.literal_eval(value.partition(_API_LIST)[2])
            tools = [Tool(t["name"], t["description"], t["parameters"]) for t in listed if t["name"] != "Finish"]
        elif role == "user":
            messages.append(Message(Role.USER, value.strip().removesuffix("Begin!").strip()))
        elif role == "function":
            messages.append(Message(Role.TOOL, value, tool_name=messages[-1].tool_calls[0].name))
        else:
            messages.append(_assistant(value))
    schemas = {tool.name: tool.parameters for tool in tools}
    for call in messages[-1].tool_calls:
        jsonschema.validate(call.arguments, schemas[call.name])
    return tools, messages


def _assistant(text: str) -> Message:
    step = _STEP.search(text)
    if step is None:
        raise ValueError("no action")
    arguments = json.loads(step[2])
    if step[1] != "Finish":
        return Message(Role.ASSISTANT, tool_calls=(ToolCall(step[1], arguments),))
    if arguments["return_type"] != "give_answer":
        raise ValueError("gave up")
    return Message(Role.ASSISTANT, arguments["final_answer"])
