"""llama.cpp's own server in a process of its own, asked over HTTP as any client would: the engine's rival.

Its prompt cache is on, its grammar is made from the request's tools, and it samples greedily.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinydispatch.tools import Message, Tool, ToolCall

# Two llama.cpp libraries in one process do not get on, and its threads stay its own.
_SERVE = """
import os, sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.n_ctx, p.n_parallel = sys.argv[1], int(sys.argv[2]), 1
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[3])
p.sampling.temp = 0.0
p.use_jinja = True
if sys.argv[4] == "exact":
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(p)
print(server.listening_address, flush=True)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # its log would fill the pipe
sys.stdin.read()
"""
_TIMEOUT_S = 120


class LlamaServer:
    """A running server; `errors` are its answers that were none."""

    def __init__(self, address: str, pid: int) -> None:
        self._address, self._pid = address, pid
        self.errors: list[str] = []

    def ask(self, messages: Sequence[Message], tools: Sequence[Tool], max_new_tokens: int) -> tuple[ToolCall, ...]:
        """The calls of its reply; arguments that are no JSON become none. After an error there are no calls."""
        body = {
            "messages": [message.to_openai() for message in messages],
            "tools": [tool.to_openai() for tool in tools],
            "temperature": 0,
            "max_tokens": max_new_tokens,
            "cache_prompt": True,
            "parallel_tool_calls": True,
        }
        answer = self.post("/v1/chat/completions", body)
        if "choices" not in answer:
            self.errors.append(str(answer)[:300])
            return ()
        return tuple(map(_call, answer["choices"][0]["message"].get("tool_calls") or []))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that it answers to a request."""
        connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT_S)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    @property
    def url(self) -> str:
        """Where its OpenAI API is."""
        return f"http://{self._address}/v1"

    def cpu_seconds(self) -> float:
        """The processor time that its process has used, all threads together; Linux only."""
        # The clock of another process, as clock_getcpuclockid(3) computes it.
        return time.clock_gettime((~self._pid << 3) | 2)


def _call(call: Any) -> ToolCall:
    function = call["function"]
    try:
        return ToolCall(function["name"], json.loads(function["arguments"]))
    except ValueError:
        return ToolCall(function["name"], {})


@contextmanager
def llama_server(model: Path, n_ctx: int, threads: int, *, is_exact: bool = False) -> Iterator[LlamaServer]:
    """Start a server with that model, and end it.

    Args:
        is_exact: plain attention and 32-bit keys and values, as `LlamaModel` computes unquantized files.

    Raises:
        ValueError: it does not start.
    """
    command = [sys.executable, "-c", _SERVE, str(model), str(n_ctx), str(threads), "exact" if is_exact else ""]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None, "the pipe was asked for"
        try:
            address = ""
            while not address.startswith("http"):
                line = process.stdout.readline()
                if not line:
                    raise ValueError(f"llama.cpp's server does not start with {model}")
                address = line.strip()
            yield LlamaServer(address.removeprefix("http://"), process.pid)
        finally:
            process.kill()
