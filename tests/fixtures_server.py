"""A running server around a model that plays back, and what tests ask of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from tests.fixtures_playback import TODAY, WEATHER, PlaybackRuntime
from tinydispatch import formats
from tinydispatch.dispatch_log import DispatchLog
from tinydispatch.dispatcher import Dispatcher
from tinydispatch.ggml.runtime import Logits
from tinydispatch.server.app import Server
from tinydispatch.server.holder import ModelHolder, Serving
from tinydispatch.server.keys import ApiKeys
from tinydispatch.server.rollout import Rollout
from tinydispatch.server.run import make_uvicorn, run_server
from tinydispatch.server.settings import Limits, ServerSettings
from tinydispatch.server.stacks import StackModels
from tinydispatch.tools import ToolCall

MODEL = "tiny"
# For a machine that is busy with something else.
_PATIENCE_S = 90.0
TOOLS: list[Any] = [WEATHER.to_openai()]
OSLO, ROME = ToolCall("get_weather", {"location": "Oslo"}), ToolCall("get_weather", {"location": "Rome"})
ONE_CALL, TWO_CALLS = formats.render_calls([OSLO]), formats.render_calls([OSLO, ROME])


class GatedRuntime(PlaybackRuntime):
    """Stops before each evaluation while `gate` is closed; `entered` is set when it has come to one."""

    def __init__(self, reply: str, n_ctx: int = 4096) -> None:
        super().__init__(reply, n_ctx)
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()
        self.delay_s = 0.0

    def decode_all(self, ids: Sequence[int], first: int = 0) -> Logits:
        self.entered.set()
        assert self.gate.wait(_PATIENCE_S), "nobody opened the gate"
        time.sleep(self.delay_s)
        return super().decode_all(ids, first)

    def shut(self) -> None:
        self.entered.clear()
        self.gate.clear()


@dataclass(frozen=True)
class Running:
    """A server on a port of its own, the model inside it, and clients for it."""

    url: str
    runtime: GatedRuntime
    holder: ModelHolder
    uvicorn: uvicorn.Server

    def openai(self, key: str = "unused", **options: Any) -> Any:
        from openai import OpenAI  # takes a second, which a server in a process of its own need not spend

        options = {"max_retries": 0, "timeout": _PATIENCE_S, **options}
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, **options)

    def post(self, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=_PATIENCE_S, **options)

    def send(self, path: str, body: Any) -> httpx.Response:
        """POST a body to another route."""
        return httpx.post(f"{self.url}{path}", json=body, timeout=_PATIENCE_S)

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics", timeout=_PATIENCE_S).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name) and not line.startswith("#"))

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=_PATIENCE_S).json()
        return found

    def ask(self, text: str = "Oslo?", **more: Any) -> dict[str, Any]:
        """A request's body."""
        return {"model": MODEL, "messages": [{"role": "user", "content": text}], "tools": TOOLS, **more}


def make_dispatcher(
    reply: str = ONE_CALL, n_ctx: int = 4096, runtime: GatedRuntime | None = None
) -> tuple[Dispatcher, GatedRuntime]:
    runtime = runtime or GatedRuntime(reply, n_ctx)
    return Dispatcher(runtime, [WEATHER], TODAY), runtime


@contextmanager
def running(
    reply: str = ONE_CALL,
    *,
    n_ctx: int = 4096,
    key: str | None = None,
    dispatch_log: DispatchLog | None = None,
    limits: Limits | None = None,
    runtime: GatedRuntime | None = None,
    rollout: Rollout | None = None,
    stacks: Callable[[ModelHolder], StackModels] | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """Serve until the block ends; then nothing may be left running."""
    dispatcher, runtime = make_dispatcher(reply, n_ctx, runtime)
    limits = limits or Limits()
    holder = ModelHolder(Serving(dispatcher, "first"), max_waiting=limits.max_waiting)
    keys = ApiKeys((key,) if key else ())
    told = ServerSettings(MODEL, port=0, keys=keys, limits=limits, **settings)
    server = make_uvicorn(Server(holder, told, dispatch_log, rollout, stacks(holder) if stacks else None))
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(f"http://127.0.0.1:{port}", runtime, holder, server)
    finally:
        runtime.gate.set()
        server.should_exit = True
        thread.join(_PATIENCE_S)
        assert not thread.is_alive(), "the server does not stop"


def serve_alone(port: int, folder: Path, delay_s: float) -> None:
    """Serve until a signal comes, each evaluation slowed down, with a dispatch log."""
    dispatcher, runtime = make_dispatcher()
    runtime.delay_s = delay_s
    run_server(ModelHolder(Serving(dispatcher, "alone")), ServerSettings(MODEL, port=port), DispatchLog(folder))


def wait_until(is_so: Callable[[], bool], timeout_s: float = _PATIENCE_S) -> None:
    """Poll until something is true."""
    ends = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < ends, "it never came true"
        time.sleep(0.005)


def events(response: httpx.Response) -> list[Any]:
    """The events of a stream, `[DONE]` as it is."""
    texts = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]
