"""A server in a process of its own: told to stop, and killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixtures_server import MODEL, TOOLS, wait_until

ROOT = Path(__file__).resolve().parents[2]
BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Oslo?"}], "tools": TOOLS}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def _server(port: int, folder: Path, delay_s: float, before: str = "") -> Iterator[subprocess.Popen[bytes]]:
    code = f"{before}import sys; from pathlib import Path; from tests.fixtures_server import serve_alone; "
    code += "serve_alone(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))"
    process = subprocess.Popen([sys.executable, "-c", code, str(port), str(folder), str(delay_s)], cwd=ROOT)
    try:
        wait_until(lambda: _health(port).get("status") == "ok")
        yield process
    finally:
        process.kill()
        process.wait()


def _health(port: int) -> dict[str, Any]:
    try:
        found: dict[str, Any] = httpx.get(f"http://127.0.0.1:{port}/health", timeout=60).json()
    except httpx.TransportError:
        return {}
    return found


def _post(port: int, **more: Any) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json={**BODY, **more}, timeout=90)


def _ask(port: int) -> bool:
    """Whether it was answered; what arrives is an answer as a whole, or none."""
    try:
        response = _post(port)
    except httpx.TransportError:
        return False
    assert response.status_code == 200
    assert response.json()["choices"][0]["finish_reason"] == "tool_calls"
    return True


def test_sigterm_finishes_what_was_taken_and_ends_with_status_0(tmp_path: Path) -> None:
    port = _free_port()
    with _server(port, tmp_path, 0.1) as process, ThreadPoolExecutor() as pool:
        asked = [pool.submit(_ask, port) for _ in range(4)]
        wait_until(lambda: _health(port)["waiting"] == 3)
        process.send_signal(signal.SIGTERM)
        assert [future.result() for future in asked] == [True] * 4
        assert process.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/health")


def test_a_second_signal_ends_at_once_and_says_so_to_those_who_wait(tmp_path: Path) -> None:
    port = _free_port()
    # A second for each token: nobody would wait for the replies.
    with _server(port, tmp_path, 1.0) as process, ThreadPoolExecutor() as pool:
        asked = [pool.submit(_post, port, stream=number == 0) for number in range(3)]
        wait_until(lambda: _health(port)["waiting"] == 2)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not _health(port))
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        for future in asked:
            response = future.result()
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "service_unavailable"
        assert process.wait(60) == 0


_NO_DEADLINE = (
    "import functools; from tinydispatch.decoding import child; "
    "child.shared_child = functools.lru_cache(lambda: child.GrammarChild(deadline_s=3600)); "
)
STRANGE = {"type": "object", "properties": {"v": {"type": "string", "pattern": "^a+$"}}}


def _strange(name: str) -> Any:
    return [{"type": "function", "function": {"name": name, "parameters": STRANGE}}]


def test_a_second_signal_ends_a_compilation_that_is_stuck(tmp_path: Path) -> None:
    port = _free_port()
    with _server(port, tmp_path, 0.0, _NO_DEADLINE) as process, ThreadPoolExecutor() as pool:
        assert _post(port, tools=_strange("first")).status_code == 200
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        (compiler,) = (int(child) for task in tasks for child in task.read_text("ascii").split())
        os.kill(compiler, signal.SIGSTOP)
        asked = [pool.submit(_post, port, tools=_strange(f"stuck{number}")) for number in range(3)]
        wait_until(lambda: _health(port)["waiting"] == 3)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not _health(port))
        assert process.poll() is None, "what was taken is finished first"
        process.send_signal(signal.SIGTERM)
        assert [future.result().status_code for future in asked] == [503] * 3
        assert process.wait(60) == 0
        wait_until(lambda: not Path(f"/proc/{compiler}").exists())


@pytest.mark.slow
def test_a_model_that_does_not_stop_is_left_behind(tmp_path: Path) -> None:
    port = _free_port()
    with _server(port, tmp_path, 60.0) as process, ThreadPoolExecutor() as pool:
        asked = pool.submit(_post, port)
        wait_until(lambda: bool(_health(port)["busy"]))
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not _health(port))
        process.send_signal(signal.SIGTERM)
        assert asked.result().status_code == 503
        assert process.wait(30) == 1


def test_a_kill_loses_only_what_was_in_flight(tmp_path: Path) -> None:
    port = _free_port()
    with ThreadPoolExecutor() as pool:
        with _server(port, tmp_path, 0.03) as process:
            asked = [pool.submit(_ask, port) for _ in range(6)]
            wait_until(lambda: any(future.done() for future in asked))
            process.kill()
            answered = [future.result() for future in asked]
            assert any(answered)
            assert not all(answered)
        log = next(tmp_path.glob("*.jsonl"))
        log.write_bytes(log.read_bytes() + b'{"half a li')
        with _server(port, tmp_path, 0.0):
            retried = [pool.submit(_ask, port) for is_answered in answered if not is_answered]
            assert all(future.result() for future in retried)
    lines = log.read_text("utf-8").splitlines()
    whole = [json.loads(line) for line in lines if line != '{"half a li']
    # What was computed and not yet sent when the kill came may stand in the log besides.
    assert len(answered) <= len(whole) <= len(answered) + 1
    assert all(line["calls"] for line in whole)
