"""The eight tools that the evaluation is written against, and the loader for a user's own."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from tinydispatch.tools import Tool, ToolError


@lru_cache(maxsize=1)
def bundled_tools() -> tuple[Tool, ...]:
    """The eight tools of `bundled_tools.json`, in its order."""
    text = resources.files("tinydispatch").joinpath("bundled_tools.json").read_text("utf-8")
    return tuple(Tool.from_openai(value) for value in json.loads(text))


def load_tools(path: Path) -> tuple[Tool, ...]:
    """Tools from a JSON file: an array in OpenAI shape, or MCP's `tools/list` result (`{"tools": [...]}`), bare or as
    the JSON-RPC answer that holds it.

    Raises:
        ToolError: names the file and what is wrong in it.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ToolError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ToolError(f"{path}: not JSON: {error}") from error
    try:
        return tools_from_json(value)
    except ToolError as error:
        raise ToolError(f"{path}: {error}") from error


def tools_from_json(value: Any) -> tuple[Tool, ...]:
    """Tools from what `load_tools` reads, or one tool by itself.

    Raises:
        ToolError: says what is wrong.
    """
    if isinstance(value, dict) and isinstance(value.get("result"), dict):
        value = value["result"]
    if isinstance(value, dict) and "tools" not in value and ("name" in value or "function" in value):
        value = [value]
    entries = value.get("tools") if isinstance(value, dict) else value
    if not isinstance(entries, list) or not entries:
        raise ToolError("expected a non-empty array of tools, or an object with 'tools'")
    tools = tuple(Tool.from_openai(entry) for entry in entries)
    names = [tool.name for tool in tools]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ToolError(f"tool names occur twice: {', '.join(twice)}")
    return tools
