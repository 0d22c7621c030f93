"""`python -m scripts.attackers http://127.0.0.1:8080 --seconds 60`: clients that mean harm, and what became of them.

Some send schemas that are huge or stand for more than can be compiled, some patterns that backtrack without end, some
schemas that no dialect knows, and some a thousand connections that say nothing. No two schemas are the same. Who is
told to come again later does so. Prints the number of answers of each kind and status as JSON. `--once` sends each
schema once instead, one after the other, and prints how long its answer took, and `/health` meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import httpx

Schema = dict[str, Any]
_N_IDLE = 1_100
_TIMEOUT_S = 120.0


def _of(properties: Schema, **more: Any) -> Schema:
    return {"type": "object", "properties": properties, **more}


def _fan_out(number: int, depth: int = 40) -> Schema:
    levels = {
        f"d{i}_{number}": {"allOf": [{"anyOf": [{"$ref": f"#/$defs/d{i + 1}_{number}"}, {"minLength": i}]}] * 2}
        for i in range(depth)
    }
    return {
        **_of({"v": {"$ref": f"#/$defs/d0_{number}"}}),
        "$defs": {**levels, f"d{depth}_{number}": {"type": "string"}},
    }


HUGE: Sequence[Callable[[int], Schema]] = (
    lambda n: _of({f"key number {n} {i}": {"type": "string"} for i in range(3_000)}),
    lambda n: _of(
        {f"k{n}_{i}": {"type": "string"} for i in range(2_000)}, required=[f"k{n}_{i}" for i in range(2_000)]
    ),
    _fan_out,
    lambda n: _of({"v": {"enum": [f"value number {n} {i}" for i in range(10_000)]}}),
    lambda n: _of({"v": {"enum": [f"value number {n} {i}" for i in range(10_000)], "pattern": str(n)}}),
    lambda n: _of({"v": {"anyOf": [_of({f"kind{n}": {"const": i}}) for i in range(1_000)]}}),
)
PATTERNS: Sequence[Callable[[int], Schema]] = (
    lambda n: _of({"v": {"type": "string", "pattern": rf"^(?!x{n})(([a-z])+.)+[A-Z]([a-z])+$"}}),
    lambda n: _of({"v": {"type": "string", "pattern": "^(" + "(a?){100}" * 20 + f"){{{n % 100 + 1}}}$"}}),
    lambda n: _of({f"k{n}": {"type": "string", "pattern": "(a*)*" * 50 + "b", "enum": ["a" * 5_000]}}),
    lambda n: _of({"v": {"type": "object", "patternProperties": {f"^x{n}_{i}": {} for i in range(300)}}}),
)
ODD: Sequence[Callable[[int], Schema]] = (
    lambda n: _of({f"k{n}": {"$dynamicRef": "#meta"}}),
    lambda n: _of({f"k{n}": {"not": {"$ref": "#/$defs/gone"}}}),
    lambda n: _of({f"k{n}": {"if": {"$ref": f"#/properties/k{n}"}, "then": {"$ref": "#"}}}),
    lambda n: _of({f"k{n}": {"type": "integer", "maximum": 10**400, "multipleOf": 10**400}}),
    lambda n: _of({f"k{n}": {"type": ["string", 7]}}),
)


async def _send(
    url: str, kind: str, schemas: Sequence[Callable[[int], Schema]], ends: float, told: Counter[str]
) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S) as client:
        for number in itertools.count(int(time.time() * 1_000) % 10**9):
            if time.monotonic() >= ends:
                return
            schema = schemas[number % len(schemas)](number)
            tool = {"type": "function", "function": {"name": f"f{number % 7}", "parameters": schema}}
            body = {"messages": [{"role": "user", "content": "a" * 50}], "tools": [tool], "tool_choice": "required"}
            try:
                response = await client.post("/v1/chat/completions", json={**body, "max_tokens": 16})
            except httpx.TransportError as error:
                told[f"{kind} {type(error).__name__}"] += 1
                continue
            told[f"{kind} {response.status_code}"] += 1
            if response.status_code == 429:
                await asyncio.sleep(float(response.headers["retry-after-ms"]) / 1000)


async def _sit(url: str, ends: float, told: Counter[str]) -> None:
    """A thousand connections that say nothing, each opened anew when it is closed."""
    address = httpx.URL(url)

    async def one() -> None:
        while time.monotonic() < ends:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(address.host, address.port)
                told["idle connections"] += 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(), max(0.0, ends - time.monotonic()))
                writer.close()
            await asyncio.sleep(1.0)

    await asyncio.gather(*(one() for _ in range(_N_IDLE)))


async def _attack(url: str, seconds: float) -> Counter[str]:
    told: Counter[str] = Counter()
    ends = time.monotonic() + seconds
    senders = [("huge", HUGE)] * 3 + [("pattern", PATTERNS)] * 3 + [("odd", ODD)] * 2
    everybody = (_sit(url, ends, told), *(_send(url, kind, schemas, ends, told) for kind, schemas in senders))
    # Who still waits for an answer then hangs up.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*everybody), seconds)
    return told


async def _once(url: str) -> None:
    print(f"{'schema':<12}{'status':>8}{'seconds':>9}{'/health at most':>17}")
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S) as client:
        for kind, schemas in (("huge", HUGE), ("pattern", PATTERNS), ("odd", ODD)):
            for index, schema in enumerate(schemas):
                tool = {"type": "function", "function": {"name": "f", "parameters": schema(time.time_ns() % 10**9)}}
                body = {"messages": [{"role": "user", "content": "a" * 50}], "tools": [tool], "max_tokens": 16}
                started, health_s = time.monotonic(), 0.0
                asking = asyncio.create_task(client.post("/v1/chat/completions", json=body))
                while not asking.done():
                    asked = time.monotonic()
                    await client.get("/health")
                    health_s = max(health_s, time.monotonic() - asked)
                    await asyncio.wait({asking}, timeout=0.1)
                seconds, status = time.monotonic() - started, (await asking).status_code
                print(f"{f'{kind} {index + 1}':<12}{status:>8}{seconds:>9.2f}{health_s:>17.2f}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """0, whatever the server said."""
    parser = argparse.ArgumentParser(prog="python -m scripts.attackers", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--once", action="store_true", help="each schema once, with the time to its answer")
    arguments = parser.parse_args(argv)
    if arguments.once:
        asyncio.run(_once(arguments.url))
        return 0
    print(json.dumps(asyncio.run(_attack(arguments.url, arguments.seconds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
