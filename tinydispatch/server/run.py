"""Runs the server until SIGTERM or Ctrl-C, then finishes what it took."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Generator

import uvicorn

from tinydispatch.dispatch_log import DispatchLog
from tinydispatch.server.app import Server, create_app
from tinydispatch.server.holder import ModelHolder
from tinydispatch.server.logs import log
from tinydispatch.server.settings import ServerSettings

# On top of the time limit of a request that was just taken.
_GRACE_S = 5.0
_EXIT_ABORTED = 1


class _Uvicorn(uvicorn.Server):
    """Ends with status 0 after a signal, where uvicorn would raise the signal once more; a second one: at once."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server

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


def make_uvicorn(server: Server) -> uvicorn.Server:
    """The HTTP server around the application, not yet started."""
    settings = server.settings
    config = uvicorn.Config(
        create_app(server),
        host=settings.host,
        port=settings.port,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(settings.limits.request_timeout_s + _GRACE_S),
    )
    return _Uvicorn(config, server)


def run_server(holder: ModelHolder, settings: ServerSettings, dispatch_log: DispatchLog | None = None) -> None:
    """Serve until a signal comes. The holder is closed in the end, whatever happens.

    Raises:
        SystemExit: the address cannot be listened on; the reason is logged.
    """
    log("serving", host=settings.host, port=settings.port, model=settings.model_name, id=holder.serving.id)
    server = Server(holder, settings, dispatch_log)
    try:
        make_uvicorn(server).run()
    finally:
        is_closed = server.close()
        log("stopped")
    if not is_closed:
        # The model's thread is in native code that would read memory which an ordinary end frees.
        logging.shutdown()
        os._exit(_EXIT_ABORTED)
