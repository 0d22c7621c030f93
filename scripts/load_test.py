"""`python -m scripts.load_test model.gguf`: many clients at once, nothing lost, and what it cost.

Starts the server on a free port, keeps every client busy with one request after the other, and prints requests lost,
latency and the server's memory over time. A refusal with 429 is no loss: the client waits as long as it is told and
asks again, and the latency counts from the first time it asked.

`--kills 3` kills the server that often under load (SIGKILL) and starts it again at once. Requests whose connection
broke are counted and asked again; all that were answered must stand in the dispatch log.

`--attack` lets attackers (`scripts/attackers.py`, a process of its own) work beside the clients for four fifths of the
time, five rounds of calm and attack in turn, and says what the calm and the attacked clients saw. The exit status is 1
when a request was lost, the 95th percentile more than doubled, `/health` took more than a second, or memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from scripts.server_process import ServerProcess
from tinydispatch.bundled import bundled_tools
from tinydispatch.dispatch_log import session_hash

_ANSWER_S, _RETRY_S = 300.0, 0.05
_N_SAMPLES = 20
_HEALTH_S, _N_ROUNDS = 0.5, 5
# Megabytes a minute, in the second half: what the first one has taken once does not count.
_MAX_GROWTH = 1.0
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
    """What the clients saw. `latencies_s` holds a value for each answer, `lost` the reason of each request without.

    `n_broken` connections broke because the server was killed; what they asked was asked again. `sessions` are those of
    the answered requests. `calm_s` are the latencies between attacks, `health_s` those of `/health`, `attacks` is what
    became of the attackers' requests. `memory` holds the server's megabytes by seconds since the beginning.
    """

    latencies_s: list[float] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    n_refused: int = 0
    n_broken: int = 0
    n_calls: int = 0
    sessions: set[str] = field(default_factory=set)
    memory: list[tuple[float, float]] = field(default_factory=list)
    calm_s: list[float] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    attacks: str = ""
    is_calm: bool = False


@dataclass(frozen=True)
class Load:
    """How hard the server is asked."""

    clients: int
    seconds: float
    is_stream: bool
    kills: int
    is_attacked: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """0: every request was answered, 1: some were lost, 2: bad input."""
    arguments = _parser().parse_args(argv)
    load = Load(arguments.clients, arguments.seconds, arguments.stream, arguments.kills, arguments.attack)
    try:
        if load.kills and arguments.model.startswith("http"):
            raise ValueError("--kills needs a model file: it kills only a server that it has started")
        with _server(arguments) as (url, process, folder):
            started = time.monotonic()
            tally = asyncio.run(_run(url, load, process))
            elapsed_s = time.monotonic() - started
            n_unlogged = len(tally.sessions - logged_sessions(folder)) if folder else 0
    except ValueError as error:
        print(f"load_test: {error}", file=sys.stderr)
        return 2
    print(report(tally, elapsed_s, load, n_unlogged))
    is_whole = tally.latencies_s and not tally.lost and not n_unlogged
    if load.is_attacked and not withstood(tally):
        return 1
    return 0 if is_whole and tally.n_broken <= load.clients * load.kills else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.load_test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a GGUF file, or the URL of a running server (http://127.0.0.1:8080)")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--stream", action="store_true", help="ask for streams")
    parser.add_argument("--threads", type=int, help="the server's, where it is started here")
    parser.add_argument("--kills", type=int, default=0, help="kill and restart the server that often under load")
    parser.add_argument("--attack", action="store_true", help="let attackers work beside the clients")
    return parser


@contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[tuple[str, ServerProcess | None, Path | None]]:
    """Where the server is, and if it was started here, its process and the folder of its dispatch log."""
    if arguments.model.startswith("http"):
        yield arguments.model.rstrip("/"), None, None
        return
    if not Path(arguments.model).is_file():
        raise ValueError(f"{arguments.model}: no such file")
    with tempfile.TemporaryDirectory() as folder:
        options = [arguments.model, "--timeout", str(_ANSWER_S), "--no-cache", "--dispatch-log", folder]
        options += ["--threads", str(arguments.threads)] if arguments.threads else []
        process = ServerProcess(options)
        with process.running():
            yield process.url, process, Path(folder)


async def _run(url: str, load: Load, process: ServerProcess | None) -> Tally:
    limits = httpx.Limits(max_connections=load.clients + 2)
    async with httpx.AsyncClient(base_url=url, timeout=_ANSWER_S, limits=limits) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        body = {"model": model, "tools": [tool.to_openai() for tool in bundled_tools()], "stream": load.is_stream}
        # Memory is taken once everything that is allocated once has been.
        await asyncio.gather(*(_ask(client, body, -1 - index, Tally(), load) for index in range(load.clients)))
        tally = Tally()
        started = time.monotonic()
        numbers = itertools.count()

        async def keep_asking() -> None:
            while time.monotonic() < started + load.seconds:
                await _ask(client, body, next(numbers), tally, load)

        sampling = asyncio.create_task(_sample_memory(client, tally, started, load.seconds / _N_SAMPLES))
        killing = asyncio.create_task(_kill(process, load)) if process is not None and load.kills else None
        probing = asyncio.create_task(_probe_health(url, tally))
        attacking = asyncio.create_task(_attack(url, load, tally)) if load.is_attacked else None
        await asyncio.gather(*(keep_asking() for _ in range(load.clients)))
        probing.cancel()
        if attacking is not None:
            await attacking
        if killing is not None:
            await killing
        sampling.cancel()
        tally.memory.append((time.monotonic() - started, await _resident_mb(client)))
        return tally


async def _kill(process: ServerProcess, load: Load) -> None:
    for _ in range(load.kills):
        await asyncio.sleep(load.seconds / (load.kills + 1))
        await asyncio.to_thread(process.kill)
        await asyncio.to_thread(process.start)


async def _probe_health(url: str, tally: Tally) -> None:
    """Every half second, on a connection of its own each time."""
    while True:
        started = time.monotonic()
        with contextlib.suppress(httpx.TransportError):
            async with httpx.AsyncClient(base_url=url, timeout=_ANSWER_S) as client:
                started = time.monotonic()
                await client.get("/health")
            tally.health_s.append(time.monotonic() - started)
        await asyncio.sleep(_HEALTH_S)


async def _attack(url: str, load: Load, tally: Tally) -> None:
    """Rounds of calm and attack; what was answered in calm is set aside."""
    told: Counter[str] = Counter()
    for _ in range(_N_ROUNDS):
        tally.is_calm = True
        await asyncio.sleep(load.seconds / _N_ROUNDS / 5)
        tally.is_calm = False
        seconds = load.seconds / _N_ROUNDS * 4 / 5
        command = [sys.executable, "-m", "scripts.attackers", url, "--seconds", f"{seconds:.1f}"]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        told.update(json.loads(output))
    tally.attacks = ", ".join(f"{kind}: {number}" for kind, number in sorted(told.items()))


def withstood(tally: Tally) -> bool:
    """Whether the honest clients hardly noticed the attack."""
    is_quick = p95(tally.latencies_s) <= 2 * p95(tally.calm_s) and max(tally.health_s) <= 1
    return is_quick and growth(tally.memory) < _MAX_GROWTH and " 500" not in tally.attacks


def p95(latencies_s: Sequence[float]) -> float:
    """Seconds that 95 of 100 answers took at most."""
    return statistics.quantiles(latencies_s, n=100, method="inclusive")[94] if len(latencies_s) > 1 else 0.0


async def _sample_memory(client: httpx.AsyncClient, tally: Tally, started: float, every_s: float) -> None:
    while True:
        # Between a kill and the next start there is nobody to ask.
        with contextlib.suppress(httpx.TransportError):
            tally.memory.append((time.monotonic() - started, await _resident_mb(client)))
        await asyncio.sleep(every_s)


async def _ask(client: httpx.AsyncClient, body: dict[str, Any], number: int, tally: Tally, load: Load) -> None:
    """Ask until there is an answer; without kills, a connection that breaks is a loss."""
    sentence = _SENTENCES[number % len(_SENTENCES)].format(_CITIES[number % len(_CITIES)], n=abs(number) + 1)
    session = f"request {number}"
    asked = {**body, "messages": [{"role": "user", "content": sentence}], "metadata": {"session_id": session}}
    started = time.monotonic()
    while True:
        try:
            response = await client.post("/v1/chat/completions", json=asked)
        except httpx.TransportError as error:
            if not load.kills or time.monotonic() - started > _ANSWER_S:
                tally.lost[type(error).__name__] += 1
                return
            # Without a connection nothing was taken, so nothing can have been lost.
            tally.n_broken += not isinstance(error, httpx.ConnectError)
            await asyncio.sleep(_RETRY_S)
            continue
        if response.status_code != 429:
            break
        tally.n_refused += 1
        await asyncio.sleep(float(response.headers["retry-after-ms"]) / 1000)
    if response.status_code != 200 or not _is_whole(response, load.is_stream):
        tally.lost[f"status {response.status_code}"] += 1
        return
    (tally.calm_s if tally.is_calm else tally.latencies_s).append(time.monotonic() - started)
    tally.sessions.add(session_hash(session))
    tally.n_calls += '"tool_calls"' in response.text


def _is_whole(response: httpx.Response, is_stream: bool) -> bool:
    if is_stream:
        return response.text.endswith("data: [DONE]\n\n")
    return bool(json.loads(response.text)["choices"][0]["finish_reason"])


async def _resident_mb(client: httpx.AsyncClient) -> float:
    text = (await client.get("/metrics")).text
    line = next(line for line in text.splitlines() if line.startswith("process_resident_memory_bytes "))
    return float(line.split()[1]) / 1e6


def logged_sessions(folder: Path) -> set[str]:
    """The sessions that stand in a dispatch log, as it writes them."""
    found = set()
    for path in folder.glob("*.jsonl"):
        for line in path.read_text("ascii").splitlines():
            # A line that a kill has cut off is no JSON.
            with contextlib.suppress(ValueError):
                found.add(json.loads(line)["session_id"])
    return found


def report(tally: Tally, elapsed_s: float, load: Load, n_unlogged: int) -> str:
    """What was lost, how long answers took, and the server's memory."""
    n_lost, n_answers = tally.lost.total(), len(tally.latencies_s)
    reasons = ", ".join(f"{reason}: {number}" for reason, number in tally.lost.most_common())
    lines = [
        f"{load.clients} clients, {elapsed_s:.0f} s: {n_answers} answered ({n_answers / elapsed_s:.1f} a second, "
        f"{tally.n_calls} with calls), {n_lost} lost{f' ({reasons})' if reasons else ''}, "
        f"{tally.n_refused} asked to come again",
    ]
    if load.kills:
        lines.append(
            f"killed {load.kills} times: {tally.n_broken} requests were in flight, were asked again and answered; "
            f"{n_unlogged} answers are missing in the dispatch log"
        )
    if n_answers > 1:
        cuts = statistics.quantiles(tally.latencies_s, n=100, method="inclusive")
        shown = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(tally.latencies_s)}
        latency = ", ".join(f"{name} {value:.2f} s" for name, value in shown.items())
        lines.append(f"latency with {load.clients} at once: {latency}")
    if tally.attacks:
        lines.append(
            f"p95 in calm {p95(tally.calm_s):.2f} s ({len(tally.calm_s)} answers), under attack "
            f"{p95(tally.latencies_s):.2f} s; /health took {max(tally.health_s):.2f} s at most"
        )
        lines.append(f"attackers: {tally.attacks}")
    elif tally.health_s:
        lines.append(f"/health took {max(tally.health_s):.2f} s at most")
    series = " ".join(f"{megabytes:.1f}" for _, megabytes in tally.memory)
    lines.append(f"server memory in MB, every {load.seconds / _N_SAMPLES:g} s: {series}")
    if not load.kills:
        lines.append(f"second half: {growth(tally.memory):+.2f} MB a minute")
    return "\n".join(lines)


def growth(memory: Sequence[tuple[float, float]]) -> float:
    """Megabytes a minute over the second half of the time, by least squares."""
    half = [(at, megabytes) for at, megabytes in memory if at >= memory[-1][0] / 2]
    if len(half) < 2:
        return 0.0
    slope, _ = statistics.linear_regression(*zip(*half, strict=True))
    return 60 * slope


if __name__ == "__main__":
    sys.exit(main())
