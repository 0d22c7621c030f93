"""An OpenAI-compatible server on loopback whose replies are scripted: it stands in for the upper layers."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tinydispatch.tools import ToolCall

# A status and a body. Status 0 hangs up without an answer.
Reply = tuple[int, bytes]
Script = Callable[[dict[str, Any]], Reply]


def completion(text: str = "", calls: Sequence[ToolCall] = (), prompt_tokens: int = 0, tokens: int = 0) -> Reply:
    """A chat completion with words, calls, or both."""
    tool_calls = [
        {
            "id": f"call_{index}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)},
        }
        for index, call in enumerate(calls)
    ]
    message = {"role": "assistant", "content": text or None, **({"tool_calls": tool_calls} if calls else {})}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    return 200, json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


class ScriptedServer:
    """Answers each request with `script(body)`; `bodies` and `keys` hold what was asked and with which key."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.headers: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.bodies.append(body)
                outer.keys.append(self.headers.get("authorization", ""))
                status, data = outer.script(body)
                if status == 0:
                    self.connection.close()
                    return
                self.send_response(status)
                for name, value in {"content-type": "application/json", **outer.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(OSError, ValueError):  # the client has hung up, or we have
                    super().handle()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
