"""A server on this machine that answers what a test says, and counts what it is asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tinydispatch.tools import ToolCall

Answer = Callable[[dict[str, Any], int], tuple[int, bytes]]
OSLO = ToolCall("get_weather", {"location": "Oslo"})


def completion(text: str = "", calls: tuple[ToolCall, ...] = (), **choice: Any) -> bytes:
    tool_calls = [
        {
            "id": f"c{index}",
            "type": "function",
            "function": {"name": c.name, "arguments": json.dumps(dict(c.arguments))},
        }
        for index, c in enumerate(calls)
    ]
    message = {"role": "assistant", "content": text or None, **({"tool_calls": tool_calls} if tool_calls else {})}
    body = {"choices": [{"message": message, "finish_reason": "stop", **choice}], "usage": {"completion_tokens": 7}}
    return json.dumps(body).encode()


class FakeServer:
    """Answers with `answer(body, how many requests came before)`; counts what is asked and how much at a time."""

    def __init__(self, port: int = 0) -> None:
        self.answer: Answer = lambda body, count: (200, completion("Hello."))  # noqa: ARG005
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self.retry_after = ""
        self.props: dict[str, Any] | None = None
        self._now = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def take(self, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, bytes]:
        """Count a request and answer it."""
        with self._lock:
            count = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(headers)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        found = self.answer(body, count)
        with self._lock:
            self._now -= 1
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, fake: FakeServer, *args: Any) -> None:
        self._fake = fake
        super().__init__(*args)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status, data = self._fake.take(body, {name.lower(): value for name, value in self.headers.items()})
        if status:
            self._send(status, data)
        else:
            self.connection.close()

    def do_GET(self) -> None:
        is_known = self._fake.props is not None and self.path == "/props"
        self._send(200 if is_known else 404, json.dumps(self._fake.props).encode())

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        if self._fake.retry_after:
            self.send_header("retry-after", self._fake.retry_after)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the client has hung up, or we have
            super().handle()
