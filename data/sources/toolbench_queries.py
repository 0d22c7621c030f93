"""ToolBench's query files (`api_list`) → tools, named and typed as the dialogues name and type them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from data.rejected import RejectReason, RowError
from data.sources.toolbench_tools import ToolSet, api_name, parameter_name, read_tools


def tools_of_query(row: Any) -> ToolSet:
    """The tools of one query row.

    Raises:
        RowError: no `api_list`, or an entry without names.
    """
    listed = row.get("api_list") if isinstance(row, Mapping) else None
    if not isinstance(listed, list) or not listed:
        raise RowError(RejectReason.INVALID_TOOLS, "no list 'api_list'")
    return read_tools(json.dumps([entry_of_api(api) for api in listed]))


def entry_of_api(api: Any) -> dict[str, Any]:
    """One API as a dialogue's list names it: `{"name", "description", "parameters"}`.

    Raises:
        RowError: it, its tool or a parameter has no name.
    """
    tool, name = (api.get("tool_name"), api.get("api_name")) if isinstance(api, Mapping) else (None, None)
    if not isinstance(tool, str) or not isinstance(name, str):
        raise RowError(RejectReason.INVALID_TOOLS, "an API without 'tool_name' and 'api_name'")
    properties: dict[str, Any] = {}
    required: list[str] = []
    for key, names in (("required_parameters", required), ("optional_parameters", [])):
        for spec in api.get(key) or []:
            if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
                raise RowError(RejectReason.INVALID_TOOLS, f"'{name}': a parameter without 'name'")
            properties[parameter_name(spec["name"])] = {
                "type": spec.get("type"),
                "description": spec.get("description"),
            }
            names.append(parameter_name(spec["name"]))
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"name": api_name(name, tool), "description": api.get("api_description"), "parameters": parameters}
