"""Tools of a live MCP server, through the official package."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tinydispatch.bundled import load_tools
from tinydispatch.layers.mcp import tools_from_mcp
from tinydispatch.layers.tool_calls import ToolsetError

_SERVER = '''
from mcp.server.mcpserver import MCPServer

server = MCPServer("kitchen")


@server.tool()
def set_light(room: str, is_on: bool) -> str:
    """Switch the light of a room."""
    return "done"


server.run()
'''


@pytest.mark.slow  # two processes that import the package
def test_a_command_that_speaks_mcp_is_asked_for_its_tools(tmp_path: Path) -> None:
    pytest.importorskip("mcp")
    path = tmp_path / "kitchen.py"
    path.write_text(_SERVER)
    (tool,) = tools_from_mcp(f"{sys.executable} {path}", timeout_s=120)
    assert (tool.name, tool.description) == ("set_light", "Switch the light of a room.")
    assert tool.parameters["properties"]["is_on"]["type"] == "boolean"
    assert tool.violations({"room": "kitchen"})


def test_a_command_that_does_not_exist_is_named() -> None:
    pytest.importorskip("mcp")
    with pytest.raises(ToolsetError, match="'no-such-command-at-all': no connection"):
        tools_from_mcp("no-such-command-at-all")


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_an_answer_to_tools_list_is_read_from_a_file(tmp_path: Path, is_wrapped: bool) -> None:
    result = {"tools": [{"name": "now", "description": "The time", "inputSchema": {"type": "object"}}]}
    path = tmp_path / "tools.json"
    path.write_text(json.dumps({"jsonrpc": "2.0", "id": 1, "result": result} if is_wrapped else result))
    assert [tool.name for tool in load_tools(path)] == ["now"]
