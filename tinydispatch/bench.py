"""What a model costs on this machine: its load, tokens a second, milliseconds per call, and memory."""

from __future__ import annotations

import datetime as dt
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinydispatch.dispatcher import Dispatch, Dispatcher
from tinydispatch.engine import PromptTooLongError
from tinydispatch.ggml.model import default_threads
from tinydispatch.ggml.open import open_model
from tinydispatch.ggml.runtime import Runtime
from tinydispatch.tools import Tool

# About the bundled tools, each of which has one.
SENTENCES = (
    "What's the weather in Oslo tomorrow?",
    "Convert 250 USD to EUR",
    "Remind me on Friday at 9 to call the dentist",
    "Send an email to kim@example.com with the subject Lunch and the body See you at noon",
    "Put a 30 minute review with ana@example.org into my calendar on Monday at 14:00",
    "What time is it in Tokyo?",
    "Search the web for museums in Lima",
    "What is on my calendar from Monday to Wednesday?",
)
# "Today" is fixed, so that every run reads the same prompts.
_TODAY = dt.date(2026, 3, 19)
_STATUS = Path("/proc/self/status")
_CPUINFO = Path("/proc/cpuinfo")
_N_STEPS = 32


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    cpu: str
    architecture: str
    cores: int
    python: str


@dataclass(frozen=True)
class Split:
    """Mean milliseconds of a call: the prompt's new words, forced ids, chosen ones, the grammar, and all the rest."""

    prefill_ms: float
    forced_ms: float
    sampled_ms: float
    grammar_ms: float
    rest_ms: float


@dataclass(frozen=True)
class Memory:
    """Megabytes: the process's peak; and of what it holds at the end, its own and what is mapped from files.

    Mapped pages, mostly the model's, are given back to the system when others need the memory. None where the system
    does not say.
    """

    peak_mb: float
    own_mb: float | None
    mapped_mb: float | None


@dataclass(frozen=True)
class Measurement:
    """All that was measured.

    `first_ms` is the first call, which reads the tools' prompt of `prompt_tokens` tokens; nothing was kept of it.
    `prefill_per_s` and `decode_per_s` are tokens a second: of that prompt, and of single ones behind it. The calls that
    follow find the tools' prompt kept. `n_unusable` replies were cut or cannot be called as they stand.
    """

    model: str
    file_mb: float
    machine: Machine
    threads: int
    context: int
    computed_by: str
    load_ms: float
    first_ms: float
    prompt_tokens: int
    prefill_per_s: float
    decode_per_s: float
    n_calls: int
    n_unusable: int
    median_ms: float
    p95_ms: float
    split: Split
    generated_tokens: float
    forced_tokens: float
    memory: Memory


@dataclass(frozen=True)
class Workload:
    """What is asked: each sentence `rounds` times.

    `fills_context` evaluates ids up to the context's end at last, so that the peak of memory is that of the longest
    conversation; which takes as long as reading so much.
    """

    sentences: Sequence[str] = SENTENCES
    rounds: int = 3
    max_new_tokens: int = 96
    fills_context: bool = False


def measure(
    path: Path,
    tools: Sequence[Tool],
    load: Workload | None = None,
    *,
    n_ctx: int | None = None,
    threads: int | None = None,
) -> Measurement:
    """Open a model and have it answer, after one call that does not count.

    Prompt states are kept in a folder of their own, and go with it.

    Raises:
        ValueError: the file cannot be run, or the tools do not fit the context.
    """
    load = load or Workload()
    with tempfile.TemporaryDirectory(prefix="tinydispatch-bench-") as folder:
        started = time.perf_counter()
        with open_model(path, n_ctx, threads) as runtime:
            options: Any = {"max_new_tokens": load.max_new_tokens, "cache": Path(folder)}
            try:
                with Dispatcher(runtime, tools, _TODAY, **options) as dispatcher:
                    load_ms = 1000 * (time.perf_counter() - started)
                    first = dispatcher.dispatch(load.sentences[0])
                # Closed, so that nothing is being written to disk while the clock runs.
                decode_per_s = _decode_per_s(runtime)
                with Dispatcher(runtime, tools, _TODAY, **options) as dispatcher:
                    found = [dispatcher.dispatch(text) for _ in range(load.rounds) for text in load.sentences]
            except PromptTooLongError as error:
                raise ValueError(f"{path}: {error}") from error
            if load.fills_context:
                _fill(runtime)
            n_bytes = sum(tensor.n_bytes for tensor in runtime.header.tensors)
            setting = {
                "threads": threads or default_threads(n_bytes),
                "context": runtime.n_ctx,
                "computed_by": runtime.computed_by,
            }
            return _measurement(path, setting, load_ms, first, decode_per_s, found)


def _measurement(
    path: Path, setting: dict[str, Any], load_ms: float, first: Dispatch, decode_per_s: float, found: list[Dispatch]
) -> Measurement:
    totals = [dispatch.timings.total_ms for dispatch in found]
    return Measurement(
        model=path.name,
        file_mb=path.stat().st_size / 1e6,
        machine=Machine(_cpu(), platform.machine(), os.cpu_count() or 1, platform.python_version()),
        **setting,
        load_ms=load_ms,
        first_ms=first.timings.total_ms,
        prompt_tokens=first.tokens.prompt,
        prefill_per_s=1000 * (first.tokens.prompt - first.tokens.cached) / first.timings.prefill_ms,
        decode_per_s=decode_per_s,
        n_calls=len(found),
        n_unusable=sum(not dispatch.is_usable for dispatch in found),
        median_ms=statistics.median(totals),
        p95_ms=_percentile(totals, 95),
        split=_split(found),
        generated_tokens=statistics.fmean(dispatch.tokens.generated for dispatch in found),
        forced_tokens=statistics.fmean(dispatch.tokens.forced for dispatch in found),
        memory=memory(),
    )


def _fill(runtime: Runtime) -> None:
    ids = list(runtime.cached_ids)
    while room := runtime.n_ctx - len(runtime.cached_ids):
        runtime.decode(ids[:room])


def _decode_per_s(runtime: Runtime) -> float:
    """One token after the other behind the prompt that the cache holds, as far as there is room."""
    n_steps = min(_N_STEPS, runtime.n_ctx - len(runtime.cached_ids))
    if n_steps < 1:
        return 0.0
    token = runtime.cached_ids[-1]
    started = time.perf_counter()
    for _ in range(n_steps):
        token = int(runtime.decode([token]).argmax())
    return n_steps / (time.perf_counter() - started)


def _split(found: Sequence[Dispatch]) -> Split:
    def mean(name: str) -> float:
        return statistics.fmean(getattr(dispatch.timings, name) for dispatch in found)

    prefill, forced, sampled, grammar = map(mean, ("prefill_ms", "forced_ms", "chosen_ms", "grammar_ms"))
    return Split(prefill, forced, sampled, grammar, max(0.0, mean("total_ms") - prefill - forced - sampled - grammar))


def _percentile(values: Sequence[float], percent: int) -> float:
    """Interpolated between the two values nearest to it."""
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def memory() -> Memory:
    """This process's memory; the peak since it began."""
    try:
        text = _STATUS.read_text("ascii")
    except OSError:
        # Kibibytes, but bytes on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        return Memory(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, None, None)
    fields = dict(line.split(":", 1) for line in text.splitlines())
    names = ("VmHWM", "RssAnon", "RssShmem", "RssFile")
    peak, anonymous, shared, mapped = (int(fields[name].split()[0]) * 1024 / 1e6 for name in names)
    # Python's anonymous mappings, such as a model's keys and values, may count as shared.
    return Memory(peak, anonymous + shared, mapped)


def _cpu() -> str:
    """The processor's name: on a Raspberry Pi the board's."""
    try:
        lines = _CPUINFO.read_text("utf-8").splitlines()
    except OSError:
        lines = []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return fields.get("Model") or fields.get("model name") or platform.processor() or "unknown"
