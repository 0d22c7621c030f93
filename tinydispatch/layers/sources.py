"""Opens the tools that a stack file names: Python files, MCP servers and OpenAPI documents."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinydispatch.layers.mcp import McpServer
from tinydispatch.layers.openapi import read_openapi
from tinydispatch.layers.policy import ToolSource
from tinydispatch.layers.python_tools import tool_from_function
from tinydispatch.layers.tool_calls import BoundTool, ToolsetError


@dataclass(frozen=True)
class OpenedTools:
    """Tools that can be run, and what of their sources could not be offered, a line each."""

    tools: tuple[BoundTool, ...]
    left_out: tuple[str, ...] = ()


def open_source(source: ToolSource, folder: Path, closing: contextlib.ExitStack) -> OpenedTools:
    """The tools of one source; what has to be ended with them, such as an MCP server, is given to `closing`.

    Raises:
        ToolsetError: names the source, and what of it cannot be used.
    """
    left_out: tuple[str, ...] = ()
    if source.python:
        tools = _from_python(folder / source.python, source)
    elif source.mcp:
        command = source.mcp if isinstance(source.mcp, str) else list(source.mcp)
        given = {name: _variable(name, f"mcp {source.mcp}") for name in source.environment}
        server = McpServer(command, environment=given, timeout_s=source.timeout_s)
        closing.callback(server.close)
        tools = [bound for bound in server.tools() if not source.only or bound.tool.name in source.only]
        _check_names(source.only, [bound.tool.name for bound in tools], f"mcp {source.mcp}", "only")
    else:
        found = read_openapi(
            _document(folder / source.openapi),
            source.base_url,
            {name: _variable(variable, source.openapi) for name, variable in source.headers_env.items()},
            only=source.only,
            hosts=source.hosts,
            variables=source.variables,
            timeout_s=source.timeout_s,
        )
        tools = list(found.tools)
        left_out = tuple(f"{source.openapi}: {operation}: {reason}" for operation, reason in found.refused.items())
        if not tools:
            raise ToolsetError("\n".join([f"{source.openapi}: no operation can be offered", *left_out[:20]]))
    return OpenedTools(tuple(_as_told(tools, source)), left_out)


def _as_told(tools: Sequence[BoundTool], source: ToolSource) -> list[BoundTool]:
    """The user's word about single tools stands above the source's."""
    names = [bound.tool.name for bound in tools]
    place = source.python or source.openapi or f"mcp {source.mcp}"
    for key in ("side_effects", "read_only"):
        _check_names(getattr(source, key), names, place, key)
    effects = dict.fromkeys(source.side_effects, True) | dict.fromkeys(source.read_only, False)
    told = [effects.get(bound.tool.name, bound.has_side_effects) for bound in tools]
    return [replace(bound, has_side_effects=has_effects) for bound, has_effects in zip(tools, told, strict=True)]


def _check_names(wanted: Sequence[str], names: Sequence[str], place: str, key: str) -> None:
    if absent := sorted(set(wanted) - set(names)):
        raise ToolsetError(f"{place}: {key}: there is no {', '.join(absent)}; there are {', '.join(sorted(names))}")


def _variable(name: str, place: str) -> str:
    if not os.environ.get(name):
        raise ToolsetError(f"{place}: the environment variable {name} is not set")
    return os.environ[name]


def _from_python(path: Path, source: ToolSource) -> list[BoundTool]:
    """The public functions that a file defines, in its order."""
    if not path.is_file():
        raise ToolsetError(f"python: {path}: there is no such file")
    name = f"tinydispatch_tools_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ToolsetError(f"python: {path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where annotations are looked up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file is the user's, and may raise whatever it likes
        raise ToolsetError(f"python: {path}: {type(error).__name__}: {error}") from error
    functions = {
        key: value
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == name and not key.startswith("_")
    }
    _check_names(source.only, list(functions), f"python: {path}", "only")
    chosen = [function for key, function in functions.items() if not source.only or key in source.only]
    if not chosen:
        raise ToolsetError(f"python: {path}: defines no public function")
    return [tool_from_function(function, timeout_s=source.timeout_s) for function in chosen]


def _document(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ToolsetError(f"openapi: {path}: cannot be read: {error.strerror}") from error
    try:
        import yaml

        value = json.loads(text) if path.suffix == ".json" else yaml.load(text, _loader(yaml))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ToolsetError(f"openapi: {path}: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(value, dict):
        raise ToolsetError(f"openapi: {path}: expected an object, not {value!r:.60}")
    return value


def _loader(yaml: Any) -> Any:
    """Dates stay text, as JSON has them."""
    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith(":timestamp")]
        for first, pairs in base.yaml_implicit_resolvers.items()
    }
    return type("_Loader", (base,), {"yaml_implicit_resolvers": resolvers})
