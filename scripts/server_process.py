"""A server in a process of its own, on a port that stays the same however often it is killed and started."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx

_START_S = 120.0


class ServerProcess:
    """`python -m tinydispatch serve` with the given options.

    Args:
        options: all but `--port`.
    """

    def __init__(self, options: Sequence[str]) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self._port = found.getsockname()[1]
        self._command = [sys.executable, "-m", "tinydispatch", "serve", *options, "--port", str(self._port)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Running until the block ends, which it then does in good order."""
        self.start()
        try:
            yield
        finally:
            if self._process is not None:
                self._process.terminate()
                self._process.wait()

    def start(self) -> None:
        """Start it and wait until it takes requests.

        Raises:
            ValueError: it does not come up.
        """
        self._process = process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ends = time.monotonic() + _START_S
        while process.poll() is None and time.monotonic() < ends:
            try:
                if httpx.get(f"{self.url}/health", timeout=_START_S).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        process.kill()
        raise ValueError("the server does not start; run python -m tinydispatch serve to see why")

    def kill(self) -> None:
        """As a crash would: it does nothing more."""
        assert self._process is not None, "not started"
        self._process.kill()
        self._process.wait()
