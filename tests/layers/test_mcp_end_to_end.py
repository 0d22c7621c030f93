"""An MCP server in a process of its own, whose tools a stack uses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.layers.kitchen import FREE, ScriptedDispatcher
from tinydispatch.layers.mcp import McpServer
from tinydispatch.layers.policy import StackPolicy
from tinydispatch.layers.stack import EndState, Stack
from tinydispatch.layers.tool_calls import BoundTool, CallStatus, ToolsetError
from tinydispatch.layers.toolbox import Permission, Toolbox
from tinydispatch.layers.trace import Tracer
from tinydispatch.tools import ToolCall

MCP_SERVER = '''
from mcp.server import MCPServer
from mcp_types import ToolAnnotations

server = MCPServer("Demo")
sent = []

@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b

@server.tool()
def send(to: str) -> dict[str, int]:
    """Send something."""
    sent.append(to)
    return {"count": len(sent)}

@server.tool()
def fail() -> str:
    """Always fails."""
    raise ValueError("the pipe is cold")

@server.tool(name="odd one")
def odd() -> str:
    """No model can say its name."""
    return ""

server.run()
'''


def test_an_mcp_server_is_used_end_to_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("mcp")
    (tmp_path / "server.py").write_text(MCP_SERVER)
    with McpServer([sys.executable, str(tmp_path / "server.py")], timeout_s=120) as server:
        tools = server.tools()
        by_name: dict[str, BoundTool] = {tool.tool.name: tool for tool in tools}
        assert {name: tool.has_side_effects for name, tool in by_name.items()} == {
            "add": False, "send": True, "fail": True,
        }  # fmt: skip
        (said,) = caplog.messages
        assert "tool name 'odd one': expected 1 to 64 of A-Z a-z 0-9 _ . -; it is left out" in said
        dispatcher = ScriptedDispatcher(
            [ToolCall("add", {"a": 2, "b": 40})], [ToolCall("send", {"to": "Jo"})], "42, and sent."
        )
        policy = StackPolicy(dispatch="scripted.gguf", tools=FREE)
        end = Stack(policy, tools, dispatcher, tracer=Tracer(is_otel=False)).run("Add 2 and 40 and send it")
        assert (end.state, end.reply) == (EndState.ANSWERED, "42, and sent.")
        assert [outcome.value for outcome in end.outcomes] == [{"result": 42}, {"count": 1}]
        failed = Toolbox(tools, FREE).execute(ToolCall("fail", {}), "k", Permission())
        assert failed.error == "Error executing tool fail"
        assert failed.status is CallStatus.UNKNOWN


def test_an_mcp_server_that_is_none_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("mcp")
    (tmp_path / "server.py").write_text("print('hello')")
    with pytest.raises(ToolsetError, match="no connection"):
        McpServer([sys.executable, str(tmp_path / "server.py")], timeout_s=60)
    with pytest.raises(ToolsetError, match="expected a URL"):
        McpServer("server.py")


def test_a_package_that_is_not_installed_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ToolsetError, match=r"pip install 'tinydispatch\[mcp\]'"):
        McpServer(["server"])
