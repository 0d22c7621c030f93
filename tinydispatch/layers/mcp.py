"""Tools of a Model Context Protocol server, through the official `mcp` package."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import shlex
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from tinydispatch.layers.tool_calls import BoundTool, CallContext, ToolFailure, ToolsetError
from tinydispatch.tools import Tool, ToolError

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_URLS = ("http://", "https://")

# Where servers that know of it find the key; it is not part of the protocol, and others ignore it.
KEY_FIELD = "tinydispatch/idempotencyKey"


class McpServer:
    """A connection to one server, kept open; use it as a context manager, or call `close`.

    A tool has side effects unless the server says that it only reads and destroys nothing. That is the server's word:
    a stack file's `side_effects` stands above it.

    Args:
        server: a command with its arguments, which is started and spoken to over its standard input and output; or the
            URL of a streamable HTTP endpoint.
        timeout_s: for the connection, and for each call.

    Raises:
        ToolsetError: the package is not installed, or the server cannot be reached; names the server.
    """

    def __init__(
        self,
        server: Sequence[str] | str,
        *,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self._name = server if isinstance(server, str) else " ".join(server)
        self._timeout_s = timeout_s
        self._client = _client(server, environment, timeout_s)
        self._loop = asyncio.new_event_loop()
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="tinydispatch-mcp", daemon=True)
        self._thread.start()
        try:
            self._ready.result(timeout_s)
        except Exception as error:
            self.close()
            raise ToolsetError(f"MCP server '{self._name}': no connection: {_reason(error)}") from error

    def tools(self) -> tuple[BoundTool, ...]:
        """Everything that the server offers; one odd tool among others is left out with a warning.

        Raises:
            ToolsetError: the server does not answer, or none of its tools can be used.
        """
        try:
            listed = self._wait(self._listed, self._timeout_s)
        except TimeoutError as error:
            raise ToolsetError(f"MCP server '{self._name}': tools/list: no answer") from error
        except Exception as error:  # of the client, whose answers may not fit the protocol
            raise ToolsetError(f"MCP server '{self._name}': cannot be asked for its tools: {_reason(error)}") from error
        tools, problems = [], []
        for entry in listed:
            try:
                tools.append(self._bound(entry))
            except ToolError as error:
                problems.append(str(error))
        if not tools:
            raise ToolsetError(f"MCP server '{self._name}': {problems[0] if problems else 'lists no tools'}")
        for problem in problems:
            _LOG.warning("MCP server '%s': %s; it is left out", self._name, problem)
        return tuple(tools)

    def close(self) -> None:
        """End the connection and the process, if one was started; a second call does nothing."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(5.0)

    def _serve(self) -> None:
        async def live() -> None:
            # Entered and left by one task, as the library's task groups want it.
            async with self._client:
                self._ready.set_result(None)
                await self._stop.wait()

        try:
            self._loop.run_until_complete(live())
        except BaseException as error:  # noqa: BLE001 (told to whoever waits for the connection)
            if not self._ready.done():
                self._ready.set_exception(ConnectionError(_reason(error)))
        finally:
            self._loop.close()

    async def _listed(self) -> list[Any]:
        found: list[Any] = []
        cursor: str | None = None
        while True:
            page = await self._client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if not cursor or len(found) > 10_000:
                return found

    def _bound(self, entry: Any) -> BoundTool:
        schema = {"type": "object", **entry.input_schema}
        tool = Tool(entry.name, entry.description or "", schema)
        told = entry.annotations
        only_reads = told is not None and told.read_only_hint is True and told.destructive_hint is not True
        is_idempotent = told is not None and told.idempotent_hint is True

        def run(arguments: Mapping[str, Any], context: CallContext) -> Any:
            return self._call(entry.name, arguments, context)

        return BoundTool(
            tool,
            run,
            has_side_effects=not only_reads,
            takes_key=is_idempotent,
            timeout_s=self._timeout_s,
            result_schema=entry.output_schema or {},
        )

    def _call(self, name: str, arguments: Mapping[str, Any], context: CallContext) -> Any:
        async def call() -> Any:
            meta: Any = {KEY_FIELD: context.idempotency_key}
            return await self._client.call_tool(name, dict(arguments), context.timeout_s, meta=meta)

        result = self._wait(call, context.timeout_s)
        text = "\n".join(part.text for part in result.content if getattr(part, "type", "") == "text")
        if result.is_error:
            raise ToolFailure(text or f"{name} reports an error")
        return result.structured_content if result.structured_content is not None else text

    def _wait(self, work: Callable[[], Coroutine[Any, Any, T]], timeout_s: float) -> T:
        if self._loop.is_closed():
            raise ToolFailure(f"MCP server '{self._name}': the connection is closed", did_act=False)
        future = asyncio.run_coroutine_threadsafe(work(), self._loop)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise TimeoutError(f"no answer within {timeout_s:g} s") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def tools_from_mcp(server: str, timeout_s: float = 30.0) -> tuple[Tool, ...]:
    """Every tool that a server lists, to be offered and not to be run.

    Args:
        server: a URL (streamable HTTP), or a command line that speaks MCP on its standard input and output.

    Raises:
        ToolsetError: the server cannot be asked, or lists nothing that is a tool; names the server.
    """
    with McpServer(server if server.startswith(_URLS) else shlex.split(server), timeout_s=timeout_s) as opened:
        tools = tuple(bound.tool for bound in opened.tools())
    names = [tool.name for tool in tools]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ToolsetError(f"MCP server '{server}': tool names occur twice: {', '.join(twice)}")
    return tools


def _client(server: Sequence[str] | str, environment: Mapping[str, str] | None, timeout_s: float) -> Any:
    try:
        from mcp import Client
        from mcp.client.stdio import StdioServerParameters
    except ImportError as error:
        raise ToolsetError("MCP servers need the package 'mcp': pip install 'tinydispatch[mcp]'") from error
    if isinstance(server, str):
        if not server.startswith(_URLS):
            raise ToolsetError(f"MCP server '{server}': expected a URL, or a command as a list")
        return Client(server, read_timeout_seconds=timeout_s)
    if not server:
        raise ToolsetError("MCP server: the command is empty")
    parameters = StdioServerParameters(
        command=server[0], args=list(server[1:]), env=dict(environment) if environment else None
    )
    return Client(parameters, read_timeout_seconds=timeout_s)


def _reason(error: BaseException) -> str:
    """The innermost error: task groups wrap theirs."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    lines = str(error).splitlines() or [type(error).__name__]
    if len(lines) == 1:
        return lines[0]
    # pydantic's own lists every place, three lines each.
    return "the answer does not fit the protocol: " + " ".join(line.strip() for line in lines[1:3])
