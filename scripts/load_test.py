"""`python -m scripts.load_test model.gguf`: many clients at once, nothing lost, and what it cost.

Starts the server on a free port, keeps every client busy with one request after the other, and prints requests lost,
latency and the server's memory. A refusal with 429 is no loss: the client waits as long as it is told and asks again,
and the latency counts from the first time it asked.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tinydispatch.bundled import bundled_tools

_START_S, _ANSWER_S = 120.0, 300.0
_CITIES = ("Oslo", "Rome", "Lima", "Cairo", "Quito", "Hanoi", "Accra", "Perth", "Turin", "Osaka", "Porto", "Basel")
_SENTENCES = (
    "What's the weather in {} tomorrow?",
    "Convert {n} USD to EUR",
    "Remind me on Friday at 9 to call {}",
    "Search the web for museums in {}",
    "What time is it in {}?",
)


@dataclass
class Tally:
    """What the clients saw. `latencies_s` holds a value for each answer, `lost` the reason of each request without."""

    latencies_s: list[float] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    n_refused: int = 0
    n_calls: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """0: every request was answered, 1: some were lost, 2: bad input."""
    arguments = _parser().parse_args(argv)
    try:
        with _server(arguments) as url:
            tally, megabytes, elapsed_s = asyncio.run(_run(url, arguments.clients, arguments.seconds, arguments.stream))
    except ValueError as error:
        print(f"load_test: {error}", file=sys.stderr)
        return 2
    print(_report(tally, megabytes, elapsed_s, arguments.clients))
    return 1 if tally.lost or not tally.latencies_s else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.load_test", description=__doc__)
    parser.add_argument("model", help="a GGUF file, or the URL of a running server (http://127.0.0.1:8080)")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--stream", action="store_true", help="ask for streams")
    parser.add_argument("--threads", type=int, help="the server's, where it is started here")
    return parser


@contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.model.startswith("http"):
        yield arguments.model.rstrip("/")
        return
    if not Path(arguments.model).is_file():
        raise ValueError(f"{arguments.model}: no such file")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    timeout = ["--timeout", str(_ANSWER_S), "--no-cache"]
    threads = ["--threads", str(arguments.threads)] if arguments.threads else []
    command = [sys.executable, "-m", "tinydispatch", "serve", arguments.model, "--port", str(port), *timeout, *threads]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < ends:
        try:
            if httpx.get(f"{url}/health", timeout=_START_S).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise ValueError("the server does not start; run python -m tinydispatch serve to see why")


async def _run(url: str, n_clients: int, seconds: float, stream: bool) -> tuple[Tally, list[float], float]:
    """What was seen, the server's memory at begin, middle and end in MB, and how long it took."""
    limits = httpx.Limits(max_connections=n_clients + 2)
    async with httpx.AsyncClient(base_url=url, timeout=_ANSWER_S, limits=limits) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        body = {"model": model, "tools": [tool.to_openai() for tool in bundled_tools()], "stream": stream}
        # Memory is taken once everything that is allocated once has been.
        warm = Tally()
        await asyncio.gather(*(_ask(client, body, index, warm) for index in range(n_clients)))
        megabytes = [await _resident_mb(client)]
        tally = Tally()
        started = time.monotonic()
        numbers = itertools.count()
        ends = started + seconds

        async def keep_asking() -> None:
            while time.monotonic() < ends:
                await _ask(client, body, next(numbers), tally)

        clients = asyncio.gather(*(keep_asking() for _ in range(n_clients)))
        await asyncio.sleep(seconds / 2)
        megabytes.append(await _resident_mb(client))
        await clients
        megabytes.append(await _resident_mb(client))
        return tally, megabytes, time.monotonic() - started


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], number: int, tally: Tally) -> None:
    sentence = _SENTENCES[number % len(_SENTENCES)].format(_CITIES[number % len(_CITIES)], n=number + 1)
    started = time.monotonic()
    while True:
        try:
            response = await client.post(
                "/v1/chat/completions", json={**body, "messages": [{"role": "user", "content": sentence}]}
            )
        except httpx.TransportError as error:
            tally.lost[type(error).__name__] += 1
            return
        if response.status_code != 429:
            break
        tally.n_refused += 1
        await asyncio.sleep(float(response.headers["retry-after-ms"]) / 1000)
    if response.status_code != 200 or not _is_whole(response, body["stream"]):
        tally.lost[f"status {response.status_code}"] += 1
        return
    tally.latencies_s.append(time.monotonic() - started)
    tally.n_calls += '"tool_calls"' in response.text


def _is_whole(response: httpx.Response, is_stream: bool) -> bool:
    if is_stream:
        return response.text.endswith("data: [DONE]\n\n")
    return bool(json.loads(response.text)["choices"][0]["finish_reason"])


async def _resident_mb(client: httpx.AsyncClient) -> float:
    text = (await client.get("/metrics")).text
    line = next(line for line in text.splitlines() if line.startswith("process_resident_memory_bytes "))
    return float(line.split()[1]) / 1e6


def _report(tally: Tally, megabytes: Sequence[float], elapsed_s: float, n_clients: int) -> str:
    n_lost, n_answers = tally.lost.total(), len(tally.latencies_s)
    reasons = ", ".join(f"{reason}: {number}" for reason, number in tally.lost.most_common())
    lines = [
        f"{n_clients} clients, {elapsed_s:.0f} s: {n_answers} answered ({n_answers / elapsed_s:.1f} a second, "
        f"{tally.n_calls} with calls), {n_lost} lost{f' ({reasons})' if reasons else ''}, "
        f"{tally.n_refused} asked to come again",
    ]
    if n_answers > 1:
        cuts = statistics.quantiles(tally.latencies_s, n=100, method="inclusive")
        shown = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(tally.latencies_s)}
        latency = ", ".join(f"{name} {value:.2f} s" for name, value in shown.items())
        lines.append(f"latency with {n_clients} at once: {latency}")
    begin, middle, end = megabytes
    lines.append(f"server memory: {begin:.1f} MB at begin, {middle:.1f} MB half-way, {end:.1f} MB at end")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
