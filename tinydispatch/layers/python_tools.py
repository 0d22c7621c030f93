"""Python functions as tools: the schema comes from the type hints, the descriptions from the docstring."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import inspect
import re
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from tinydispatch.layers.tool_calls import BoundTool, CallContext, ToolsetError
from tinydispatch.tools import Tool

F = TypeVar("F", bound=Callable[..., Any])

_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    dt.date: {"type": "string", "format": "date"},
    dt.datetime: {"type": "string", "format": "local-date-time"},
    types.NoneType: {"type": "null"},
    Any: {},
    list: {"type": "array"},
    dict: {"type": "object"},
}


def read_only(function: F) -> F:
    """Mark a function that changes nothing, so that it is called without asking anybody: `@read_only`."""
    function.has_side_effects = False  # type: ignore[attr-defined]
    return function


def tool_from_function(function: Callable[..., Any], *, name: str = "", **settings: Any) -> BoundTool:
    """A tool that calls `function` with the arguments as keywords.

    A parameter annotated with `CallContext` gets the idempotency key and the time limit, and is not shown to models;
    the function is then taken to do nothing a second time for the same key. To report that nothing was done, it
    raises `ToolFailure(…, did_act=False)`: after any other exception of a function with side effects, nobody knows.

    Args:
        settings: the fields of `BoundTool`, such as `has_side_effects=False`.

    Raises:
        ToolsetError: a parameter has no annotation, or one that has no JSON schema; names function and parameter.
    """
    name = name or function.__name__
    hints = get_type_hints(function, include_extras=True)
    summary, descriptions = _docstring(inspect.getdoc(function) or "")
    properties: dict[str, Any] = {}
    required, context_name = [], ""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ToolsetError(f"function '{name}', parameter '{parameter.name}': *args and **kwargs have no schema")
        if parameter.name not in hints:
            raise ToolsetError(f"function '{name}', parameter '{parameter.name}': no type annotation")
        if hints[parameter.name] is CallContext:
            context_name = parameter.name
            continue
        schema = _schema(hints[parameter.name], f"function '{name}', parameter '{parameter.name}'")
        if text := descriptions.get(parameter.name):
            schema = {"description": text, **schema}
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)

    def run(arguments: Mapping[str, Any], context: CallContext) -> Any:
        given = {key: _converted(hints[key], value) for key, value in arguments.items()}
        return _plain(function(**given, **({context_name: context} if context_name else {})))

    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    result = hints.get("return")
    result_schema = {} if result in (None, inspect.Signature.empty) else _schema_or_nothing(result)
    known = {"takes_key": bool(context_name), "result_schema": result_schema}
    settings = {**known, "has_side_effects": getattr(function, "has_side_effects", True), **settings}
    return BoundTool(Tool(name, summary, parameters), run, **settings)


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph, and what an "Args:" section says about each parameter."""
    summary = " ".join(text.split("\n\n", 1)[0].split())
    section = re.search(r"^(?:Args|Arguments|Parameters):\n((?:[ \t]+.*\n?|\n)+)", text, re.MULTILINE)
    found: dict[str, str] = {}
    last, indent = "", None
    for line in section.group(1).splitlines() if section else ():
        depth = len(line) - len(line.lstrip())
        entry = re.match(r"\s+\**(\w+)(?:\s*\([^)]*\))?:\s*(.*)", line)
        indent = depth if indent is None else indent
        if entry and depth == indent:
            last = entry.group(1)
            found[last] = entry.group(2).strip()
        elif last and line.strip():
            found[last] += f" {line.strip()}"
    return summary, found


def _schema_or_nothing(hint: Any) -> Mapping[str, Any]:
    try:
        return _schema(hint, "result")
    except ToolsetError:
        return {}  # of a result, nothing need be known


def _schema(hint: Any, place: str) -> dict[str, Any]:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        text = next((item for item in inner[1:] if isinstance(item, str)), "")
        return {**({"description": text} if text else {}), **_schema(inner[0], place)}
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    if origin is Literal:
        return {"enum": list(inner)} | ({"type": "string"} if all(isinstance(item, str) for item in inner) else {})
    if origin in (Union, types.UnionType):
        # None as a default is said by leaving the argument out.
        kinds = [kind for kind in inner if kind is not types.NoneType]
        return _schema(kinds[0], place) if len(kinds) == 1 else {"anyOf": [_schema(kind, place) for kind in kinds]}
    if origin in (list, set, frozenset) or (origin is tuple and len(inner) == 2 and inner[1] is ...):
        return {"type": "array", "items": _schema(inner[0], place)}
    if origin is dict and inner[0] is str:
        return {"type": "object", "additionalProperties": _schema(inner[1], place)}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"enum": [item.value for item in hint]}
    if is_typeddict(hint) or dataclasses.is_dataclass(hint):
        return _object_schema(hint, place)
    raise ToolsetError(f"{place}: {hint!r} has no JSON schema here")


def _object_schema(hint: Any, place: str) -> dict[str, Any]:
    hints = get_type_hints(hint, include_extras=True)
    if dataclasses.is_dataclass(hint):
        missing = dataclasses.MISSING
        fields = dataclasses.fields(hint)
        required = [item.name for item in fields if item.default is missing and item.default_factory is missing]
    else:
        required = sorted(hint.__required_keys__)
    properties = {key: _schema(value, f"{place}.{key}") for key, value in hints.items()}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _converted(hint: Any, value: Any) -> Any:
    """JSON values as the objects that the function expects: dates, enums, dataclasses."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _converted(inner[0], value)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in inner if kind is not types.NoneType]
        return _converted(kinds[0], value) if len(kinds) == 1 and value is not None else value
    if origin in (list, set, frozenset, tuple) and isinstance(value, list):
        return origin(_converted(inner[0], item) for item in value)
    if hint is dt.date and isinstance(value, str):
        return dt.date.fromisoformat(value)
    if hint is dt.datetime and isinstance(value, str):
        return dt.datetime.fromisoformat(value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        hints = get_type_hints(hint, include_extras=True)
        return hint(**{key: _converted(hints[key], item) for key, item in value.items()})
    return value


def _plain(value: Any) -> Any:
    """A function's result as JSON has it, as far as it can be told."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, dt.date | dt.datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple | set | frozenset) else value
