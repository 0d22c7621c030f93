"""The HTTP server of `review`: on loopback, for whoever has the token of its address. Standard library alone."""

from __future__ import annotations

import hmac
import json
import secrets
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from tinydispatch.pages import HEADERS, is_foreign, page_file
from tinydispatch.review import OWN, Decision, Order, RefusedError, ReviewError, Stack

TOKEN_HEADER = "x-review-token"
_HOSTS = ("127.0.0.1", "localhost")
_MAX_BODY_BYTES = 1 << 20


class ReviewServer(ThreadingHTTPServer):
    """Serves one stack on 127.0.0.1; `url` holds the token, behind a `#`, which no browser sends or logs.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, stack: Stack, port: int = 0) -> None:
        self.stack, self.token = stack, secrets.token_urlsafe(24)
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """What to open in a browser."""
        return f"http://127.0.0.1:{self.server_port}/#{self.token}"


class _RequestError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    timeout = 10
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "tinydispatch", ""
    _ROUTES: ClassVar[dict[str, str]] = {"/": "review.html"}

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the library's name)
        """Say nothing: the terminal holds the address."""

    def _answer(self, work: Any) -> None:
        try:
            self._check_host()
            work()
        except _RequestError as error:
            self._json({"error": {"message": str(error)}}, error.status)
        except RefusedError as error:
            problems = [problem.to_json() for problem in error.problems]
            self._json({"error": {"message": str(error)}, "problems": problems}, 422)
        except ReviewError as error:
            self._json({"error": {"message": str(error)}}, 409)
        except OSError as error:
            if not isinstance(error, ConnectionError | TimeoutError):
                message = f"{self.server.stack.decisions}: cannot be written: {error.strerror}. Nothing was kept."
                self._json({"error": {"message": message}}, 507)

    def _check_host(self) -> None:
        # A name of another site that was made to point here is not one of these.
        allowed = {f"{host}:{self.server.server_port}" for host in _HOSTS}
        headers = {name.lower(): text for name, text in self.headers.items()}
        if headers.get("host") not in allowed or is_foreign(headers):
            self.close_connection = True
            raise _RequestError(403, "This page is for its own machine and its own origin alone.")

    def _check_token(self) -> None:
        given = self.headers.get(TOKEN_HEADER, "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, self.server.token.encode()):
            self.close_connection = True
            raise _RequestError(401, "Open the address that `tinydispatch review` printed, with all of it after the #.")

    def _get(self) -> None:
        split = urlsplit(self.path)
        found = page_file(self._ROUTES.get(split.path, split.path.removeprefix("/")))
        if found is not None:
            self._send(found[0], found[1])
            return
        if split.path != "/api/line":
            raise _RequestError(404, f"There is no {split.path}.")
        self._check_token()
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        order = _one_of(Order, query.get("order", Order.CONFIDENCE))
        if "id" in query:
            self._json(self.server.stack.line(query["id"], order))
            return
        start = query.get("from", "0")
        if not (start.isascii() and start.isdigit()):
            raise _RequestError(400, "'from' is no number.")
        self._json(self.server.stack.next(order, int(start)))

    def _post(self) -> None:
        self._check_token()
        body = self._body()
        stack = self.server.stack
        if self.path == "/api/decide":
            decision = _one_of(Decision, str(body.get("decision")))
            answer = str(body.get("answer", OWN))
            stack.decide(str(body.get("id")), decision, answer=answer, correction=body.get("correction"))
            self._json(stack.state())
        elif self.path == "/api/undo":
            self._json({"id": stack.undo(), **stack.state()})
        else:
            raise _RequestError(404, f"There is no {self.path}.")

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("content-length", "")
        is_number = length.isascii() and length.isdigit() and len(length) <= len(str(_MAX_BODY_BYTES))
        if not is_number or int(length) > _MAX_BODY_BYTES:
            self.close_connection = True
            raise _RequestError(413, f"A body has a length, of {_MAX_BODY_BYTES} bytes at most.")
        data = self.rfile.read(int(length))
        if self.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise _RequestError(415, "Send 'Content-Type: application/json'.")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _RequestError(400, f"The body is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise _RequestError(400, "The body is no object.")
        return value

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode("ascii"), "application/json", status)

    def _send(self, data: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        for name, text in {**HEADERS, "content-type": kind, "content-length": str(len(data))}.items():
            self.send_header(name, text)
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(data)


def _one_of(kind: Any, text: str) -> Any:
    if text not in list(kind):
        raise _RequestError(400, f"{text!r} is none of {', '.join(kind)}.")
    return kind(text)
