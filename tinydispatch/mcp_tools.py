"""Tools from a live MCP server, asked for its `tools/list`; needs the extra `tinydispatch[mcp]`."""

from __future__ import annotations

import asyncio
import logging
import shlex
from typing import Any

from tinydispatch.tools import Tool, ToolError

_LOG = logging.getLogger(__name__)
_MAX_PAGES = 100


def tools_from_mcp(server: str, timeout_s: float = 30.0) -> tuple[Tool, ...]:
    """Every tool that a server lists.

    Args:
        server: a URL (streamable HTTP), or a command that speaks MCP on its standard input and output.

    Raises:
        ToolError: the server cannot be asked, or lists nothing that is a tool; names the server. One odd tool among
            others is left out with a warning.
    """
    try:
        import mcp  # noqa: F401 (a better message than the one that would come later)
    except ImportError as error:
        raise ToolError("tools of an MCP server need the package mcp: pip install 'tinydispatch[mcp]'") from error
    try:
        entries = asyncio.run(_with_timeout(server, timeout_s))
    except TimeoutError as error:
        raise ToolError(f"{server}: did not list its tools within {timeout_s:g} seconds") from error
    except Exception as error:  # the client raises groups of its transports' errors
        raise ToolError(f"{server}: cannot be asked for its tools: {_first(error)}") from error
    tools, problems = [], []
    for entry in entries:
        try:
            tools.append(Tool.from_openai(entry))
        except ToolError as error:
            problems.append(error)
    if not tools:
        raise ToolError(f"{server}: {problems[0] if problems else 'lists no tools'}")
    for problem in problems:
        _LOG.warning("%s: %s; it is left out", server, problem)
    names = [tool.name for tool in tools]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ToolError(f"{server}: tool names occur twice: {', '.join(twice)}")
    return tuple(tools)


async def _with_timeout(server: str, timeout_s: float) -> list[dict[str, Any]]:
    async with asyncio.timeout(timeout_s):
        return await _list_tools(server)


async def _list_tools(server: str) -> list[dict[str, Any]]:
    from mcp import Client, StdioServerParameters

    target: Any = server
    if not server.startswith(("http://", "https://")):
        command, *arguments = shlex.split(server)
        target = StdioServerParameters(command=command, args=arguments)
    entries: list[dict[str, Any]] = []
    cursor: str | None = None
    async with Client(target) as client:
        for _ in range(_MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            for tool in page.tools:
                schema = tool.input_schema
                entries.append({"name": tool.name, "description": tool.description or "", "inputSchema": schema})
            cursor = page.next_cursor
            if cursor is None:
                return entries
    raise ToolError(f"lists its tools on more than {_MAX_PAGES} pages")


def _first(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    lines = str(error).splitlines() or [type(error).__name__]
    # pydantic's own lists every place, three lines each.
    return (
        lines[0] if len(lines) == 1 else "the answer does not fit the protocol: " + " ".join(map(str.strip, lines[1:3]))
    )
