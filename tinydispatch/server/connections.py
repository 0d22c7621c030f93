"""The HTTP protocol with bounds on what a connection costs before it has asked for anything."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from tinydispatch.server.logs import log
from tinydispatch.server.settings import Limits

# Files that the process needs besides its connections.
_OTHER_FILES = 64
_REPORT_EVERY_S = 10.0
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"


class BoundedProtocol(H11Protocol):
    """Closes a connection that does not say in time what it wants, and the longest idle one where there are too many.

    Idle is who has sent no whole header yet, or waits between two requests. So thousands of silent connections keep
    nobody out: each newcomer takes the place of the oldest of them.
    """

    header_timeout_s: ClassVar[float]
    max_connections: ClassVar[int]
    idle: ClassVar[OrderedDict[BoundedProtocol, None]]
    has_asked = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection; it has to say something in time."""
        super().connection_made(transport)
        self._wait_for_header()
        if len(self.idle) == 1 and self._n_too_many() > 0:
            self._drop(_FULL)
        else:
            # Many may have come at once: what each of them says is read before one is closed for its silence.
            self.loop.call_soon(self.loop.call_soon, self._make_room)

    def _n_too_many(self) -> int:
        n_closing = sum(connection.transport.is_closing() for connection in self.connections)
        return len(self.connections) - n_closing - self.max_connections

    def _make_room(self) -> None:
        if self.idle and self._n_too_many() > 0:
            # Who has asked before will ask again, and may be doing so just now.
            silent = (connection for connection in self.idle if not connection.has_asked)
            (next(silent, None) or next(iter(self.idle)))._drop()

    def data_received(self, data: bytes) -> None:
        """Go on reading; the time for a header does not start anew with every byte of it."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._timer is None and not self.transport.is_closing():
            self._wait_for_header()

    def on_response_complete(self) -> None:
        """Wait for the next request, if there is none yet."""
        super().on_response_complete()
        self.has_asked = True
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.idle[self] = None
            self.idle.move_to_end(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_header(self) -> None:
        self.idle[self] = None
        self._timer = self.loop.call_later(self.header_timeout_s, self._drop)

    def _stop_waiting(self) -> None:
        self.idle.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop(self, last_words: bytes = b"") -> None:
        self._stop_waiting()
        if last_words:
            self.transport.write(last_words)
            self.transport.close()
        else:
            self.transport.abort()


def bounded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """The protocol with one server's limits; no more connections than the process may have files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = (
        limits.max_connections if files == resource.RLIM_INFINITY else min(limits.max_connections, files - _OTHER_FILES)
    )
    bounds = {"header_timeout_s": limits.header_timeout_s, "max_connections": max(1, most), "idle": OrderedDict()}
    return type("Protocol", (BoundedProtocol,), bounds)


class AcceptErrors:
    """An event loop's exception handler: that no connection can be accepted is told once in ten seconds.

    asyncio reports it for each connection that waits, thousands of times a second.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._next, self._count = clock, float("-inf"), 0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log it, or count it until it may be logged."""
        if not str(context.get("message", "")).startswith("socket.accept() out of system resource"):
            loop.default_exception_handler(context)
            return
        self._count += 1
        if self._clock() >= self._next:
            reason = getattr(context.get("exception"), "strerror", None)
            log("connections cannot be accepted", logging.ERROR, reason=reason, count=self._count)
            self._next, self._count = self._clock() + _REPORT_EVERY_S, 0
