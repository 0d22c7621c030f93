"""Runs the server until SIGTERM or Ctrl-C, then finishes what it took."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Generator, Sequence

import uvicorn

from tinydispatch.dispatch_log import DispatchLog
from tinydispatch.server.app import Server, create_app
from tinydispatch.server.connections import AcceptErrors, bounded_protocol
from tinydispatch.server.holder import ModelHolder
from tinydispatch.server.keys import SettingsError
from tinydispatch.server.logs import log
from tinydispatch.server.rollout import Rollout
from tinydispatch.server.settings import ServerSettings
from tinydispatch.server.stacks import StackModels

# On top of the time limit of a request that was just taken.
_GRACE_S = 5.0
_EXIT_ABORTED = 1
_EXAMPLE_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    },
}


class _Uvicorn(uvicorn.Server):
    """Ends with status 0 after a signal, where uvicorn would raise the signal once more; a second one: at once."""

    def __init__(self, config: uvicorn.Config, server: Server, *, greets: bool = False) -> None:
        super().__init__(config)
        self._server, self._greets = server, greets

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(AcceptErrors())
        await super().startup(sockets)
        if self.started and self._greets:
            print(greeting(self._server.settings, self.servers[0].sockets[0].getsockname()[1]), flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    def handle_exit(self, sig: int, frame: object) -> None:
        name = signal.Signals(sig).name
        if not self.should_exit:
            log("stopping", signal=name)
            super().handle_exit(sig, frame)  # type: ignore[arg-type]
        else:
            log("stopping at once", signal=name)
            self._server.abort()


def greeting(settings: ServerSettings, port: int) -> str:
    """Where the server can be reached, and a request to try it with, for whoever started it in a terminal."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.host, settings.host)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    body: dict[str, object] = {
        "model": settings.model_name,
        "messages": [{"role": "user", "content": "Is it raining in Oslo?"}],
    }
    if settings.tools is None:
        body["tools"] = [_EXAMPLE_TOOL]
    page = f"  the page to try it in a browser: {address.removesuffix('/v1')}/ui\n" if settings.has_ui else ""
    key = " -H 'authorization: Bearer KEY'" if settings.keys else ""
    return (
        f"tinydispatch serves {settings.model_name} at {address}; Ctrl-C stops it. Try it:\n{page}"
        f"  curl {address}/chat/completions{key} -H 'content-type: application/json' -d '{json.dumps(body)}'"
    )


def bind(host: str, port: int) -> list[socket.socket]:
    """Take the address before a model is loaded; nothing listens yet.

    Raises:
        SettingsError: another program listens there, or it is none of this machine's.
    """
    if not 0 <= port < 1 << 16:
        raise SettingsError(f"{host}:{port} cannot be listened on: ports go from 0 to 65535; give another --port")
    taken: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            found = socket.socket(family, kind, protocol)
            taken.append(found)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            found.bind(address)
    except OSError as error:
        for found in taken:
            found.close()
        raise SettingsError(
            f"{host}:{port} cannot be listened on: {error.strerror}; give another --port, or stop what uses this one"
        ) from error
    return taken


def make_uvicorn(server: Server, *, greets: bool = False) -> uvicorn.Server:
    """The HTTP server around the application, not yet started; `greets` prints a line for people when it is."""
    settings = server.settings
    config = uvicorn.Config(
        create_app(server),
        host=settings.host,
        port=settings.port,
        loop="asyncio",
        http=bounded_protocol(settings.limits),
        h11_max_incomplete_event_size=settings.limits.max_header_bytes,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(settings.limits.request_timeout_s + _GRACE_S),
    )
    return _Uvicorn(config, server, greets=greets)


def run_server(
    holder: ModelHolder,
    settings: ServerSettings,
    dispatch_log: DispatchLog | None = None,
    sockets: Sequence[socket.socket] | None = None,
    rollout: Rollout | None = None,
    stacks: StackModels | None = None,
) -> None:
    """Serve until a signal comes. The holder is closed in the end, whatever happens.

    Args:
        rollout: a challenger beside the model; it is closed as well.
        sockets: what `bind` took; None takes the settings' address now.
        stacks: more names that may be asked for.

    Raises:
        SystemExit: the address cannot be listened on; the reason is logged.
    """
    log("serving", host=settings.host, port=settings.port, model=settings.model_name, id=holder.serving.id)
    server = Server(holder, settings, dispatch_log, rollout, stacks)
    try:
        make_uvicorn(server, greets=True).run(None if sockets is None else list(sockets))
    finally:
        is_closed = server.close()
        log("stopped")
    if not is_closed:
        # The model's thread is in native code that would read memory which an ordinary end frees.
        logging.shutdown()
        os._exit(_EXIT_ABORTED)
