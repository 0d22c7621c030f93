"""`python -m scripts.bench_evaluation --checkpoint DIR --gguf FILE`: cases a second, the fast ways beside the plain.

A checkpoint answers one by one by the library's own decoding, in batches by the same, and in batches whose common
beginning is computed once and whose finished rows are dropped; a GGUF file with the prompts' common beginning (tools,
instructions, date) computed once, and for each case anew. The ways take turns on the same cases of one suite, each with
a backend that was opened just before and knows nothing of the round before; medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from eval.backends import Backend
from eval.cases import Case, Suite
from eval.config import EvalConfig
from eval.evaluate import evaluate
from eval.suites import load_suite

_CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

_SINGLE, _ANEW, _ONCE = "checkpoint, one by one", "GGUF, whole prompt each time", "GGUF, common beginning once"


@dataclass(frozen=True)
class Way:
    """One way of answering; `base` names the way that its ratio is against, "" for the plain ones."""

    name: str
    open: Callable[[], Backend]
    base: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint's directory")
    parser.add_argument("--gguf", type=Path, help="a GGUF file")
    parser.add_argument("--suite", default="dev", help="default: dev")
    parser.add_argument("--cases", type=int, help="so many, evenly over the suite (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="of the checkpoint")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--clock", choices=sorted(_CLOCKS), default="wall", help="cpu: where other work disturbs")
    arguments = parser.parse_args(argv)
    if arguments.checkpoint is None and arguments.gguf is None:
        parser.error("give --checkpoint, --gguf, or both")
    suite = load_suite(arguments.suite)
    suite = replace(suite, cases=_spread(suite.cases, arguments.cases or len(suite.cases)))
    ways = list(_ways(arguments))
    print(table(ways, measure(ways, suite, arguments.rounds, _CLOCKS[arguments.clock]), len(suite.cases)))
    return 0


def _spread(cases: Sequence[Case], count: int) -> tuple[Case, ...]:
    """So many single-turn cases, evenly over the suite."""
    single = [case for case in cases if case.episode is None]
    step = max(1, len(single) // count)
    return tuple(single[::step][:count])


def _ways(arguments: argparse.Namespace) -> Iterator[Way]:
    config = EvalConfig(max_new_tokens=arguments.max_new_tokens, batch_size=arguments.batch)
    if arguments.checkpoint is not None:
        from eval.backends.checkpoint import CheckpointBackend

        for name, size, is_plain, base in (
            (_SINGLE, 1, True, ""),
            (f"checkpoint, batches of {arguments.batch}, whole prompts", arguments.batch, True, _SINGLE),
            (f"checkpoint, batches of {arguments.batch}, common beginning once", arguments.batch, False, _SINGLE),
        ):
            sized = config.model_copy(update={"batch_size": size})
            load = partial(CheckpointBackend.load, arguments.checkpoint, sized, is_plain=is_plain)
            yield Way(name, load, base)
    if arguments.gguf is not None:
        for name, reuses, base in (_ANEW, False, ""), (_ONCE, True, _ANEW):
            yield Way(name, partial(_open_gguf, arguments.gguf, config, reuses), base)


def _open_gguf(path: Path, config: EvalConfig, reuses_prefix: bool) -> Backend:
    from eval.backends.gguf import GgufBackend
    from tinydispatch.engine import EngineOptions
    from tinydispatch.ggml.open import open_model

    runtime = open_model(path, config.n_ctx)
    return GgufBackend(runtime, config.max_new_tokens, EngineOptions(reuses_prefix=reuses_prefix))


def measure(
    ways: Sequence[Way], suite: Suite, rounds: int, now: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each way in each round; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(rounds + 1):
        for way in ways:
            with way.open() as backend:
                started = now()
                evaluate(backend, suite, model_name=way.name, progress=False)
                elapsed = now() - started
            if number:
                seconds[way.name].append(elapsed)
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
