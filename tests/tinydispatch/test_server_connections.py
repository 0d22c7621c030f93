"""What a connection may cost before it has asked for anything."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from tests.fixtures_server import Running, running, wait_until
from tinydispatch.server.connections import AcceptErrors
from tinydispatch.server.settings import Limits


@contextmanager
def _silent(server: Running, count: int) -> Iterator[list[socket.socket]]:
    address = httpx.URL(server.url)
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection((address.host, address.port), timeout=30))
            for _ in range(count)
        ]


def _is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_connection_that_says_nothing_or_not_enough_is_closed() -> None:
    with running(limits=Limits(header_timeout_s=0.4)) as server, _silent(server, 3) as (quiet, slow, kept):
        slow.sendall(b"GET /health HTTP/1.1\r\nhost: local")
        kept.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert kept.recv(4096).startswith(b"HTTP/1.1 200")
        for _ in range(5):  # more of a header does not give it more time
            time.sleep(0.1)
            try:
                slow.sendall(b"h")
            except OSError:
                break
        wait_until(lambda: _is_closed(quiet) and _is_closed(slow), 10)
        assert not _is_closed(kept), "between two requests another time-out counts"
        kept.sendall(b"GET /health HTTP/1.1\r\nho")
        wait_until(lambda: _is_closed(kept), 10)
        assert server.health()["status"] == "ok"


def test_silent_connections_keep_nobody_out() -> None:
    with running(limits=Limits(max_connections=20)) as server, _silent(server, 60) as connections:
        assert server.health()["status"] == "ok"
        assert server.post(server.ask()).status_code == 200
        wait_until(lambda: sum(map(_is_closed, connections)) >= 40, 20)
        assert not _is_closed(connections[-1]), "the oldest goes first"
        assert server.health()["status"] == "ok"


def test_whoever_is_being_answered_is_not_put_out() -> None:
    with running(limits=Limits(max_connections=1)) as server:
        server.runtime.shut()
        with httpx.stream("GET", f"{server.url}/health", headers={"connection": "close"}) as response:
            assert response.status_code == 200
        with _silent(server, 1) as (asking,):
            body = b'{"messages": [{"role": "user", "content": "hi"}]}'
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
            asking.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
            assert server.runtime.entered.wait(30)
            assert httpx.get(f"{server.url}/health", timeout=30).status_code == 503
            server.runtime.gate.set()
            asking.settimeout(30)
            assert asking.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"content-length: 2\r\ntransfer-encoding: chunked\r\n", b"400"),
        (b"content-length: 2\r\ncontent-length: 3\r\n", b"400"),
        (b"x: " + b"a" * 20_000 + b"\r\n", b"431"),
        (b"x: " + b"a" * 200_000 + b"\r\n", b"400"),  # never a whole header
        (b"".join(b"x%d: a\r\n" % number for number in range(4_000)), b"431"),
    ],
)
def test_a_head_with_two_lengths_or_too_long_is_refused(head: bytes, status: bytes) -> None:
    with running() as server, _silent(server, 1) as (connection,):
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n" + head + b"\r\n2\r\n{}\r\n0\r\n\r\n"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 " + status)
        wait_until(lambda: _is_closed(connection), 10)
        assert server.runtime.decoded == []


def test_that_no_connection_can_be_accepted_is_told_rarely(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    report = AcceptErrors(lambda: now[0])
    loop: Any = asyncio.new_event_loop()
    context = {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many open files")}
    with caplog.at_level("INFO", "tinydispatch.server"):
        for second in range(25):
            now[0] = float(second)
            for _ in range(100):
                report(loop, context)
    loop.close()
    assert [(record.fields["count"], record.fields["reason"]) for record in caplog.records] == [  # type: ignore[attr-defined]
        (1, "Too many open files"),
        (1_000, "Too many open files"),
        (1_000, "Too many open files"),
    ]


def _health(connection: socket.socket) -> bytes:
    """Ask and read the whole answer: head and body may come in pieces."""
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        piece = connection.recv(4096)
        assert piece, answer
        answer += piece
    return answer


def test_who_has_asked_before_stays_when_the_silent_come() -> None:
    with running(limits=Limits(max_connections=5)) as server, _silent(server, 1) as (known,):
        assert _health(known).startswith(b"HTTP/1.1 200")
        with _silent(server, 20) as connections:
            wait_until(lambda: sum(map(_is_closed, connections)) >= 10, 30)
            assert _health(known).startswith(b"HTTP/1.1 200")


def test_who_asks_among_many_that_come_at_once_is_answered() -> None:
    with running(limits=Limits(max_connections=4)) as server:
        # The event loop is held up until all of them are there.
        held, is_free = threading.Event(), threading.Event()
        loop = server.uvicorn.servers[0].get_loop()
        loop.call_soon_threadsafe(lambda: (held.set(), is_free.wait(30)))
        assert held.wait(30)
        with _silent(server, 1) as (asking,):
            asking.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            with _silent(server, 30):
                is_free.set()
                asking.settimeout(30)
                assert asking.recv(4096).startswith(b"HTTP/1.1 200")
