"""What stands before every route: who asks, by which name, and one log line for each request."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinydispatch.server.errors import ApiError, missing_key, wrong_key
from tinydispatch.server.logs import LOG
from tinydispatch.server.metrics import Metrics
from tinydispatch.server.settings import ServerSettings, is_loopback
from tinydispatch.server.ui import UI_PAGES

OPEN_PATHS = frozenset({"/health"})
_ROUTES = frozenset(
    {
        "/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/feedback", "/v1/models", "/health", "/metrics",
        "/openapi.json",
    }
)  # fmt: skip


def check_access(headers: Headers, path: str, settings: ServerSettings) -> None:
    """Whether a request may be looked at.

    Without keys, a server on loopback answers to loopback's names alone: a web page whose own name was made to point
    here cannot use it.

    Raises:
        ApiError: 401 without a right key, 403 for a foreign name, 400 for a body of two lengths, 431 for too long a
            header.
    """
    limit = settings.limits.max_header_bytes
    if sum(len(name) + len(value) for name, value in headers.raw) > limit:
        message = f"The request's header is too large: the limit is {limit} bytes."
        raise ApiError(431, message, headers={"connection": "close"})
    if "content-length" in headers and "transfer-encoding" in headers:
        # A proxy before this server may have read the other one, and taken the rest for a request.
        message = "A request has either a Content-Length or a Transfer-Encoding header."
        raise ApiError(400, message, headers={"connection": "close"})
    if not settings.keys:
        name = _host_name(headers.get("host", ""))
        if is_loopback(settings.host) and not is_loopback(name):
            raise ApiError(403, f"This server is for requests from its own machine; '{name}' is not its name.")
        return
    if path in OPEN_PATHS or (settings.has_ui and path in UI_PAGES):
        return
    key = given_key(headers)
    if not key:
        raise missing_key()
    if not settings.keys.accepts(key):
        raise wrong_key()


def given_key(headers: Headers) -> str:
    """The key that a request brings, "" for none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host


# An error → the response that says it.
Refuse = Callable[[Request, Exception], Awaitable[Response]]


class Guard:
    """ASGI middleware that refuses before anything is read, and answers what no route has caught."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, refuse: Refuse) -> None:
        self._app, self._settings, self._refuse = app, settings, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_started = False

        async def send_noting(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            check_access(Headers(scope=scope), scope["path"], self._settings)
            await self._app(scope, receive, send_noting)
        except Exception as error:
            if is_started:
                raise
            response = await self._refuse(Request(scope), error)
            await response(scope, receive, send)


class RequestLog:
    """ASGI middleware: an id for each request (`x-request-id`), a log line and its count at the end.

    Routes put what the line should say besides into `request.state.fields`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = f"req_{uuid.uuid4().hex}"
        fields = Request(scope).state.fields = dict[str, object]()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            path = scope["path"] if scope["path"] in _ROUTES else "other"
            # 0: the connection broke before anything was sent.
            self._metrics.request(path, status, seconds)
            ms = round(1000 * seconds, 2)
            known = {"id": request_id, "method": scope["method"], "path": path, "status": status, "ms": ms}
            LOG.info("request", extra={"fields": known | fields})
