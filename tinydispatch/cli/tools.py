"""`tools`: the tools of a file or an MCP server as JSON, for `--tools` of the other commands."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # checking tools takes a library that `call` imports while its model is being loaded
    from tinydispatch.tools import Tool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = "Prints tools in OpenAI shape: those of a file, of a live MCP server, or the bundled eight."
    add_source(parser)


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add `--tools` and `--mcp`, of which one may be given."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--tools", type=Path, help="JSON file: an array of tools, or the answer to MCP's tools/list")
    source.add_argument("--mcp", metavar="SERVER", help="a live MCP server: its URL, or the command that starts it")


def read_source(arguments: argparse.Namespace) -> tuple[Tool, ...] | None:
    """The tools that were asked for, None for neither option.

    Raises:
        ValueError: names the file or the server.
    """
    if arguments.mcp:
        from tinydispatch.layers.mcp import tools_from_mcp

        return tools_from_mcp(arguments.mcp)
    from tinydispatch.bundled import load_tools

    return load_tools(arguments.tools) if arguments.tools else None


def run(arguments: argparse.Namespace) -> int:
    """Print the tools."""
    from tinydispatch.bundled import bundled_tools

    tools = read_source(arguments) or bundled_tools()
    print(json.dumps([tool.to_openai() for tool in tools], ensure_ascii=True, indent=2))
    return 0
