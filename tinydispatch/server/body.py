"""Reading a request's body without ever holding more of it than is allowed, and noticing that a client has gone."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.types import Receive

from tinydispatch.server.errors import ApiError, invalid, too_large
from tinydispatch.server.settings import Limits

# A client that is still sending would not see an answer; so much is read on and thrown away, by so many limits, first.
_MAX_DISCARDED_LIMITS, _MAX_DISCARD_S = 16, 3.0


class ClientGoneError(Exception):
    """The connection was closed before the answer."""


async def read_json_body(request: Request, limits: Limits) -> bytes:
    """The body's bytes.

    Raises:
        ApiError: 413 for more bytes than allowed, by the header or as they come; 408 when they take too long; 415 and
            400 for a body that is not said to be JSON or whose length is no number.
        ClientGoneError: it did not come to an end.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # A web page can make a browser send other kinds anywhere without asking first.
    if kind != "application/json":
        raise ApiError(415, "Unsupported content type. Send 'Content-Type: application/json'.")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise ApiError(415, "Unsupported content encoding. Send the body as it is, uncompressed.")
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise invalid("The Content-Length header is no number.")
    limit = limits.max_body_bytes
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            if int(length) <= limit and await _read(request.receive, body, limit):
                return bytes(body)
    except TimeoutError:
        message = f"The request's body did not arrive within {limits.body_timeout_s:g} seconds."
        raise ApiError(408, message, code="request_timeout", headers={"connection": "close"}) from None
    body.clear()
    await _discard(request.receive, limit * _MAX_DISCARDED_LIMITS)
    raise too_large(limit)


async def _read(receive: Receive, body: bytearray, limit: int) -> bool:
    """Whether all of it came and was within the limit."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > limit:
            return False
        if not message.get("more_body", False):
            return True


async def _discard(receive: Receive, n_bytes: int) -> None:
    try:
        async with asyncio.timeout(_MAX_DISCARD_S):
            while n_bytes > 0:
                message = await receive()
                n_bytes -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


async def until_gone(receive: Receive) -> None:
    """Return when the client closes the connection; for after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass
