"""`python -m scripts.bench_evaluation --checkpoint DIR --gguf FILE`: cases a second, the fast ways beside the plain.

A checkpoint answers in batches and one by one; a GGUF file with the prompt's common beginning (tools, instructions)
evaluated once, and for each case anew. The ways take turns on the same cases of one suite; medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from eval.backends import Backend, Failure, Generation, Request, open_backend
from eval.backends.base import ClosesOnExit
from eval.cases import Case, Suite, load_suite
from eval.config import EvalConfig
from eval.evaluate import evaluate

_CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

_SINGLE, _ANEW, _ONCE = "checkpoint, one by one", "GGUF, whole prompt each time", "GGUF, common beginning once"


@dataclass(frozen=True)
class Way:
    """One way of answering; `base` names the way that its ratio is against, "" for the plain ones."""

    name: str
    backend: Backend
    base: str = ""


class OneByOne(ClosesOnExit):
    """A backend whose batches are taken apart; the backend itself is closed by whoever opened it."""

    batch_size = 1

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def generate(self, requests: Sequence[Request]) -> list[Generation | Failure]:
        """One reply per request, each asked for by itself."""
        return [reply for request in requests for reply in self._backend.generate([request])]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint's directory")
    parser.add_argument("--gguf", type=Path, help="a GGUF file")
    parser.add_argument("--suite", default="dev", help="default: dev")
    parser.add_argument("--cases", type=int, default=24, help="from the suite's beginning")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="of the checkpoint")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--clock", choices=sorted(_CLOCKS), default="wall", help="cpu: where other work disturbs")
    arguments = parser.parse_args(argv)
    if arguments.checkpoint is None and arguments.gguf is None:
        parser.error("give --checkpoint, --gguf, or both")
    suite = load_suite(arguments.suite)
    suite = replace(suite, cases=_spread(suite.cases, arguments.cases))
    with ExitStack() as stack:
        ways = list(_ways(arguments, stack))
        print(table(ways, measure(ways, suite, arguments.rounds, _CLOCKS[arguments.clock]), len(suite.cases)))
    return 0


def _spread(cases: Sequence[Case], count: int) -> tuple[Case, ...]:
    """So many single-turn cases, evenly over the suite."""
    single = [case for case in cases if case.episode is None]
    step = max(1, len(single) // count)
    return tuple(single[::step][:count])


def _ways(arguments: argparse.Namespace, stack: ExitStack) -> Iterator[Way]:
    config = EvalConfig(max_new_tokens=arguments.max_new_tokens, batch_size=arguments.batch)
    if arguments.checkpoint is not None:
        checkpoint = stack.enter_context(open_backend(arguments.checkpoint, config))
        yield Way(_SINGLE, OneByOne(checkpoint))
        yield Way(f"checkpoint, batches of {arguments.batch}", checkpoint, _SINGLE)
    if arguments.gguf is not None:
        from eval.backends.gguf import GgufBackend
        from tinydispatch.engine import EngineOptions
        from tinydispatch.ggml.open import open_model

        for name, reuses, base in (_ANEW, False, ""), (_ONCE, True, _ANEW):
            runtime = open_model(arguments.gguf, config.n_ctx)
            backend = GgufBackend(runtime, config.max_new_tokens, EngineOptions(reuses_prefix=reuses))
            yield Way(name, stack.enter_context(backend), base)


def measure(
    ways: Sequence[Way], suite: Suite, rounds: int, now: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each way in each round; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(rounds + 1):
        for way in ways:
            started = now()
            evaluate(way.backend, suite, model_name=way.name, progress=False)
            if number:
                seconds[way.name].append(now() - started)
    return seconds


def table(ways: Sequence[Way], seconds: dict[str, list[float]], n_cases: int) -> str:
    """Cases a second and how many times as fast as the plain way, as medians (of the rounds' ratios)."""
    lines = ["| way | cases/s | times as fast |", "| --- | --- | --- |"]
    for way in ways:
        rate = n_cases / statistics.median(seconds[way.name])
        pairs = zip(seconds[way.base or way.name], seconds[way.name], strict=True)
        ratio = statistics.median(slow / fast for slow, fast in pairs)
        lines.append(f"| {way.name} | {rate:.2f} | {ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
