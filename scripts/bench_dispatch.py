"""`python -m scripts.bench_dispatch MODEL.gguf`: milliseconds per call, against llama.cpp's server on the same file.

Every variant answers the same cases with the same tools, greedily, in turns, so that whatever else the machine does
falls on all alike. Before each call a variant holds what the case before it left: the shared start of both prompts.
What earlier replies went on with it knows from the cases before in the same round only. `--cpu-time` counts processor
time in place of the wall's (with one thread they agree on an idle machine): of this process, and for the server's row
of both processes.
"""

from __future__ import annotations

import argparse
import datetime as dt
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from eval.cases import Suite
from eval.suites import load_suite
from scripts import bench_first_call
from scripts.bench_server import LlamaServer, llama_server
from tinydispatch.decoding.schema import KeyOrder
from tinydispatch.engine import Completion, Engine, EngineOptions
from tinydispatch.formats import parse_reply, with_reference_date
from tinydispatch.ggml.open import open_model
from tinydispatch.ggml.runtime import Runtime
from tinydispatch.prefix_cache import shared_prefix
from tinydispatch.prompt import PromptEncoder
from tinydispatch.tools import Message, Tool, ToolCall

_SERVER = "llama.cpp server"
_ENGINE = "engine"


@dataclass(frozen=True)
class Way:
    """An engine's techniques, and whether the native decoder computes, or ggml."""

    options: EngineOptions = field(default_factory=EngineOptions)
    is_native: bool = True


_NOTHING = EngineOptions(is_constrained=False, n_draft_ids=0, recalls=False, reuses_prefix=False)
_VARIANTS = {
    _ENGINE: Way(),
    "  on ggml's graph": Way(is_native=False),
    "  without forced ids": Way(EngineOptions(forces_ids=False)),
    "  without recall": Way(EngineOptions(recalls=False)),
    "  without copying": Way(EngineOptions(n_draft_ids=0)),
    "  without both guesses": Way(EngineOptions(n_draft_ids=0, recalls=False)),
    "  without kept prefix": Way(EngineOptions(reuses_prefix=False)),
    "  keys in any order": Way(EngineOptions(key_order=KeyOrder.ANY)),
    "  without grammar": Way(EngineOptions(is_constrained=False)),
    "  without any of these": Way(_NOTHING, is_native=False),
}
_MAX_NEW_TOKENS = 256
_TODAY = dt.date(2026, 3, 19)
_PROGRESS_S = 10.0


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
        questions = single_replies(load_suite(arguments.suite), arguments.limit, own_dates=arguments.own_dates)
        setting = (arguments.model, arguments.n_ctx, arguments.threads)
        ways = {name: way for name, way in _VARIANTS.items() if name == _ENGINE or not arguments.engine_only}
        with ExitStack() as stack:
            runtimes = {
                is_native: stack.enter_context(open_model(*setting, is_native=is_native))
                for is_native in sorted({way.is_native for way in ways.values()})
            }
            server = stack.enter_context(llama_server(*setting))
            bench = Bench(runtimes, ways, server, is_cpu_time=arguments.cpu_time)
            bench.run(questions, arguments.rounds)
        what = "processor time" if arguments.cpu_time else "wall time"
        print(
            f"{arguments.model}: {len(questions)} cases of {arguments.suite}, {arguments.rounds} rounds, interleaved, "
            f"{arguments.threads} threads, {what}\n\n{_table(bench.measured)}\n{_split(bench.measured[_ENGINE])}",
            flush=True,
        )
        if server.errors:
            print(f"the server answered {len(server.errors)} times with an error, such as {server.errors[0]}")
        print(bench_first_call.measure(*setting, arguments.rounds + 2))
    except ValueError as error:
        print(f"bench_dispatch: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench_dispatch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="a GGUF file of an architecture that llama.cpp knows")
    parser.add_argument("--suite", default="core", help="cases to answer (default: core)")
    parser.add_argument("--rounds", type=int, default=3, help="times that every case is answered (default: 3)")
    parser.add_argument("--limit", type=int, help="only the suite's first so many cases")
    parser.add_argument(
        "--own-dates", action="store_true", help="each case on its own day; otherwise all on one, as calls of one day"
    )
    parser.add_argument(
        "--engine-only", action="store_true", help="the engine and the server, no technique switched off"
    )
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, for a busy machine")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every variant (default: 1)")
    parser.add_argument("--n-ctx", type=int, default=2048, help="context of every variant (default: 2048)")
    return parser


def single_replies(suite: Suite, limit: int | None, *, own_dates: bool) -> list[Question]:
    """A suite's first cases that one reply answers, each on its own day or all on one."""
    cases = [case for case in suite.cases if not case.episode][:limit]
    if not cases:
        raise ValueError(f"suite {suite.name} has no cases of one reply")
    return [
        Question(with_reference_date(case.messages, case.today if own_dates else _TODAY), suite.tools_for(case))
        for case in cases
    ]


class Bench:
    """The variants, and what was measured of each so far."""

    def __init__(
        self, runtimes: Mapping[bool, Runtime], ways: Mapping[str, Way], server: LlamaServer, *, is_cpu_time: bool
    ) -> None:
        self._server, self._is_cpu_time = server, is_cpu_time
        self._engines = {name: Engine(runtimes[way.is_native], way.options) for name, way in ways.items()}
        self.measured = {name: Measured() for name in [_SERVER, *self._engines]}

    def run(self, questions: Sequence[Question], rounds: int) -> None:
        """Answer every question `rounds` times with each variant, and once before, when pages are touched."""
        encoder = PromptEncoder(self._engines[_ENGINE].runtime)
        prompts = [encoder.encode(question.messages, question.tools) for question in questions]
        names = list(self.measured)
        said = time.monotonic()
        for turn in range(rounds + 1):
            for engine in self._engines.values():
                engine.forget_replies()  # or it would know each question's answer from the round before
            for index, question in enumerate(questions):
                # Taking turns at going first, too.
                shift = (turn + index) % len(names)
                for name in names[shift:] + names[:shift]:
                    if name != _SERVER:
                        _prime(self._engines[name].runtime, prompts[index - 1], prompts[index])
                    self._answer(name, question, is_counted=turn > 0)
                if time.monotonic() - said > _PROGRESS_S:
                    said = time.monotonic()
                    print(f"round {turn} of {rounds}: {index + 1} of {len(questions)}", file=sys.stderr)

    def _answer(self, name: str, question: Question, *, is_counted: bool) -> None:
        result = self.measured[name]
        started = self._clock(name)
        completion = None
        if name == _SERVER:
            calls = self._server.ask(question.messages, question.tools, _MAX_NEW_TOKENS)
        else:
            completion = self._engines[name].complete(question.messages, question.tools, _MAX_NEW_TOKENS)
            calls = parse_reply(completion.text, question.tools).calls
        elapsed_ms = 1000 * (self._clock(name) - started)
        if is_counted:
            result.latencies_ms.append(elapsed_ms)
            result.calls.append(calls)
            result.completions += [completion] if completion is not None else []

    def _clock(self, name: str) -> float:
        if not self._is_cpu_time:
            return time.perf_counter()
        return time.process_time() + (self._server.cpu_seconds() if name == _SERVER else 0.0)


def _prime(runtime: Runtime, before: Sequence[int], prompt: Sequence[int]) -> None:
    """Leave in the cache what the prompt before shares with this one."""
    shared = shared_prefix(before, prompt[:-1])
    runtime.truncate(min(shared, shared_prefix(runtime.cached_ids, prompt)))
    if len(runtime.cached_ids) < shared:
        runtime.decode(prompt[len(runtime.cached_ids) : shared])


def _table(measured: dict[str, Measured]) -> str:
    server, engine = measured[_SERVER], measured[_ENGINE]
    lines = [f"{'':<26}{'median ms':>10}{'p95 ms':>9}{'of server':>11}{'answers as the engine':>24}"]
    reference = statistics.median(server.latencies_ms)
    for name, result in measured.items():
        median, p95 = statistics.median(result.latencies_ms), _percentile(result.latencies_ms, 0.95)
        same = sum(one == other for one, other in zip(result.calls, engine.calls, strict=True))
        lines.append(f"{name:<26}{median:>10.1f}{p95:>9.1f}{median / reference:>11.2f}{same:>17}/{len(result.calls)}")
    return "\n".join(lines)


def _split(engine: Measured) -> str:
    def median(value: Callable[[Completion], float]) -> float:
        return statistics.median(map(value, engine.completions))

    return (
        f"\nengine, medians of wall time: prefill {median(lambda c: c.timings.prefill_ms):.1f} ms, "
        f"forced {median(lambda c: c.timings.forced_ms):.1f} ms, "
        f"sampled {median(lambda c: c.timings.chosen_ms):.1f} ms, "
        f"grammar {median(lambda c: c.timings.grammar_ms):.2f} ms; "
        f"{median(lambda c: c.tokens.generated):.0f} ids, {median(lambda c: c.tokens.forced):.0f} of them forced, "
        f"{sum(c.tokens.accepted for c in engine.completions)} of "
        f"{sum(c.tokens.drafted for c in engine.completions)} guesses right"
    )


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    sys.exit(main())
