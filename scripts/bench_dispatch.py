"""`python -m scripts.bench_dispatch MODEL.gguf`: milliseconds per call, against llama.cpp's server on the same file.

Every variant answers the same cases with the same tools, greedily, in turns, so that whatever else the machine does
falls on all alike. Before each call a variant holds what the case before it left: the shared start of
both prompts.
"""

from __future__ import annotations

import argparse
import datetime as dt
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.cases import Suite, load_suite
from tinydispatch.decoding.schema import KeyOrder
from tinydispatch.dispatcher import Dispatcher
from tinydispatch.engine import Completion, Engine, EngineOptions
from tinydispatch.formats import parse_reply, with_reference_date
from tinydispatch.ggml.open import open_model
from tinydispatch.ggml.runtime import Runtime
from tinydispatch.prefix_cache import shared_prefix
from tinydispatch.prompt import encode_prompt
from tinydispatch.tools import Message, Tool, ToolCall

_SERVER = "llama.cpp server"
_ENGINE = "engine"
_VARIANTS = {
    _ENGINE: EngineOptions(),
    "  without forced ids": EngineOptions(forces_ids=False),
    "  without guesses": EngineOptions(n_draft_ids=0),
    "  without kept prefix": EngineOptions(reuses_prefix=False),
    "  keys in any order": EngineOptions(key_order=KeyOrder.ANY),
    "  without grammar": EngineOptions(is_constrained=False),
    "  without any of these": EngineOptions(is_constrained=False, n_draft_ids=0, reuses_prefix=False),
}
_MAX_NEW_TOKENS = 256
_TODAY = dt.date(2026, 3, 19)
# Run in a process of its own: two llama.cpp libraries in one process do not get on, and its threads stay its own.
_SERVE = """
import os, sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.n_ctx, p.n_parallel = sys.argv[1], int(sys.argv[2]), 1
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[3])
p.sampling.temp = 0.0
p.use_jinja = True
server = xllamacpp.Server(p)
print(server.listening_address, flush=True)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # its log would fill the pipe
sys.stdin.read()
"""


@dataclass(frozen=True)
class Question:
    """One case as every variant gets it."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]


@dataclass
class Measured:
    """A variant's latencies in milliseconds, and the calls it made for each question."""

    latencies_ms: list[float] = field(default_factory=list)
    calls: list[tuple[ToolCall, ...]] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 0: done, 2: bad input."""
    arguments = _parser().parse_args(argv)
    try:
        questions = _questions(load_suite(arguments.suite), arguments.limit, own_dates=arguments.own_dates)
        setting = (arguments.model, arguments.n_ctx, arguments.threads)
        with open_model(*setting) as runtime, _server(*setting) as ask:
            measured = _measure(runtime, ask, questions, arguments.rounds)
        cold, warm = _cold_and_warm(questions, *setting)
    except ValueError as error:
        print(f"bench_dispatch: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.model}: {len(questions)} cases of {arguments.suite}, {arguments.rounds} rounds, interleaved\n")
    print(_table(measured))
    print(_split(measured[_ENGINE].completions))
    print(
        f"first call of a new process with a saved prefix: {cold:.1f} ms, warm {warm:.1f} ms: {cold / warm:.2f} times"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_dispatch", description=__doc__)
    parser.add_argument("model", type=Path, help="a GGUF file of an architecture that llama.cpp knows")
    parser.add_argument("--suite", default="core", help="cases to answer (default: core)")
    parser.add_argument("--rounds", type=int, default=3, help="times that every case is answered (default: 3)")
    parser.add_argument("--limit", type=int, help="only the suite's first so many cases")
    parser.add_argument(
        "--own-dates",
        action="store_true",
        help="each case on its own day; otherwise all on one, as calls of one day are",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every variant (default: 1)")
    parser.add_argument("--n-ctx", type=int, default=2048, help="context of every variant (default: 2048)")
    return parser


def _questions(suite: Suite, limit: int | None, *, own_dates: bool) -> list[Question]:
    cases = [case for case in suite.cases if not case.episode][:limit]
    if not cases:
        raise ValueError(f"suite {suite.name} has no cases of one reply")
    return [
        Question(
            with_reference_date(case.messages, case.reference_date if own_dates else _TODAY), suite.tools_for(case)
        )
        for case in cases
    ]


def _measure(
    runtime: Runtime, ask: Callable[[Question], tuple[ToolCall, ...]], questions: Sequence[Question], rounds: int
) -> dict[str, Measured]:
    engines = {name: Engine(runtime, options) for name, options in _VARIANTS.items()}
    measured = {name: Measured() for name in [_SERVER, *engines]}
    prompts = [encode_prompt(runtime, question.messages, question.tools) for question in questions]
    names = list(measured)
    for turn in range(rounds + 1):
        for index, question in enumerate(questions):
            # Taking turns at going first, too.
            shift = (turn + index) % len(names)
            for name in names[shift:] + names[:shift]:
                result = measured[name]
                if name != _SERVER:
                    _prime(runtime, prompts[index - 1], prompts[index])
                started = time.perf_counter()
                if name == _SERVER:
                    calls = ask(question)
                else:
                    completion = engines[name].complete(question.messages, question.tools, _MAX_NEW_TOKENS)
                    calls = parse_reply(completion.text).calls
                elapsed_ms = 1000 * (time.perf_counter() - started)
                if turn == 0:  # grammars are compiled and pages touched
                    continue
                result.latencies_ms.append(elapsed_ms)
                result.calls.append(calls)
                if name != _SERVER:
                    result.completions.append(completion)
    return measured


def _prime(runtime: Runtime, before: Sequence[int], prompt: Sequence[int]) -> None:
    """Leave in the cache what the prompt before shares with this one."""
    shared = shared_prefix(before, prompt[:-1])
    runtime.truncate(min(shared, shared_prefix(runtime.cached_ids, prompt)))
    if len(runtime.cached_ids) < shared:
        runtime.decode(prompt[len(runtime.cached_ids) : shared])


@contextmanager
def _server(model: Path, n_ctx: int, threads: int) -> Iterator[Callable[[Question], tuple[ToolCall, ...]]]:
    command = [sys.executable, "-c", _SERVE, str(model), str(n_ctx), str(threads)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None, "the pipe was asked for"
        address = ""
        while not address.startswith("http"):
            address = process.stdout.readline().strip()
            if process.poll() is not None:
                raise ValueError(f"llama.cpp's server does not start with {model}")
        try:
            yield lambda question: _ask(address.removeprefix("http://"), question)
        finally:
            process.kill()


def _ask(address: str, question: Question) -> tuple[ToolCall, ...]:
    body = {
        "messages": [message.to_openai() for message in question.messages],
        "tools": [tool.to_openai() for tool in question.tools],
        "temperature": 0,
        "max_tokens": _MAX_NEW_TOKENS,
        "cache_prompt": True,
        "parallel_tool_calls": True,
    }
    connection = http.client.HTTPConnection(address, timeout=120)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer: Any = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    if "choices" not in answer:
        return ()
    calls = answer["choices"][0]["message"].get("tool_calls") or []
    found = []
    for call in calls:
        try:
            found.append(ToolCall(call["function"]["name"], json.loads(call["function"]["arguments"])))
        except ValueError:
            found.append(ToolCall(call["function"]["name"], {}))
    return tuple(found)


def _cold_and_warm(
    questions: Sequence[Question], model: Path, n_ctx: int, threads: int, repeats: int = 5
) -> tuple[float, float]:
    """Median first call of a new dispatcher that finds the prefix on disk, and median of its later calls."""
    texts = [question.messages[-1].content for question in questions[: repeats + 1]]
    cold: list[float] = []
    warm: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats + 1):
            with open_model(model, n_ctx, threads) as runtime:
                dispatcher = Dispatcher(runtime, questions[0].tools, _TODAY, cache=Path(folder))
                for position, text in enumerate(texts):
                    started = time.perf_counter()
                    dispatcher.dispatch(texts[0] if position == 0 else text, max_new_tokens=1)
                    elapsed = 1000 * (time.perf_counter() - started)
                    if repeat and position < 2:  # the first process saves the prefix
                        (warm if position else cold).append(elapsed)
                dispatcher.close()
    return statistics.median(cold), statistics.median(warm)


def _table(measured: dict[str, Measured]) -> str:
    server, engine = measured[_SERVER], measured[_ENGINE]
    lines = [f"{'':<26}{'median ms':>10}{'p95 ms':>9}{'of server':>11}{'answers as the engine':>24}"]
    reference = statistics.median(server.latencies_ms)
    for name, result in measured.items():
        median, p95 = statistics.median(result.latencies_ms), _percentile(result.latencies_ms, 0.95)
        same = sum(one == other for one, other in zip(result.calls, engine.calls, strict=True))
        lines.append(f"{name:<26}{median:>10.1f}{p95:>9.1f}{median / reference:>11.2f}{same:>17}/{len(result.calls)}")
    return "\n".join(lines)


def _split(completions: Sequence[Completion]) -> str:
    def median(value: Callable[[Completion], float]) -> float:
        return statistics.median(map(value, completions))

    return (
        f"\nengine, medians: prefill {median(lambda c: c.timings.prefill_ms):.1f} ms, "
        f"forced {median(lambda c: c.timings.forced_ms):.1f} ms, "
        f"chosen {median(lambda c: c.timings.chosen_ms):.1f} ms, "
        f"grammar {median(lambda c: c.timings.grammar_ms):.2f} ms; "
        f"{median(lambda c: c.tokens.generated):.0f} ids, {median(lambda c: c.tokens.forced):.0f} of them forced, "
        f"{sum(c.tokens.accepted for c in completions)} of {sum(c.tokens.drafted for c in completions)} guesses right"
    )


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    sys.exit(main())
