"""`python -m scripts.bench_attention MODEL.gguf`: flash attention on and off, and keys and values in 16 or 8 bits.

Every variant computes the same ids in turns: a prompt from nothing (prefill), and on top of it a few ids at once, as a
call consists of when the tools' prompt is kept. `state` is what a saved prompt takes, `logits` how far those after the
prompt lie from the first variant's, in its standard deviations. Then every variant's engine answers cases of suite
`dev`, all on one day and with kept prefixes; the ratios to the first variant are paired by case.

With one thread the processor's time is counted and not the wall's, so that a busy machine does not spoil it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from eval.suites import load_suite
from tinydispatch.engine import Engine
from tinydispatch.formats import with_reference_date
from tinydispatch.ggml.bindings import GGML_TYPE_F16, GGML_TYPE_Q8_0
from tinydispatch.ggml.llama import LlamaModel
from tinydispatch.ggml.runtime import Logits


class _FlashF16(LlamaModel):
    flash_attention = 1


class _FlashQ8(LlamaModel):
    flash_attention = 1
    cache_type = GGML_TYPE_Q8_0


class _PlainF16(LlamaModel):
    flash_attention = 0
    cache_type = GGML_TYPE_F16


_TODAY = dt.date(2026, 3, 19)
# llama.cpp keeps quantized values only with flash attention.
_VARIANTS = {"plain, f16": _PlainF16, "flash, f16": _FlashF16, "flash, q8_0": _FlashQ8}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; 0: done, 2: bad input."""
    arguments = _parser().parse_args(argv)
    n_ctx = max(2048, max(arguments.prompts, default=0) + max(arguments.steps))
    try:
        models = {name: kind(arguments.model, n_ctx, arguments.threads) for name, kind in _VARIANTS.items()}
        if max(arguments.prompts, default=0) + max(arguments.steps) > next(iter(models.values())).n_ctx:
            raise ValueError(f"--prompts {max(arguments.prompts)}: more than the model was made for")
    except ValueError as error:
        print(f"bench_attention: {error}", file=sys.stderr)
        return 2
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    for n_prompt in arguments.prompts:
        print(_table(models, n_prompt, arguments.steps, arguments.repeats, clock), flush=True)
    if arguments.calls:
        print(_calls(models, arguments.calls, clock))
    for model in models.values():
        model.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_attention", description=__doc__)
    parser.add_argument("model", type=Path, help="a GGUF file of an architecture that llama.cpp knows")
    parser.add_argument("--prompts", type=int, nargs="*", default=[128, 600, 1900], help="lengths (128 600 1900)")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4, 16, 64], help="ids at once (1 4 16 64)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--calls", type=int, default=24, help="cases to answer, 0 for none (default: 24)")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def _table(
    models: dict[str, LlamaModel], n_prompt: int, steps: Sequence[int], repeats: int, clock: Callable[[], float]
) -> str:
    taken: dict[str, dict[int, list[float]]] = {name: {step: [] for step in (0, *steps)} for name in models}
    last: dict[str, Logits] = {}
    for _ in range(repeats):
        for name, model in models.items():
            last[name] = _measure(model, n_prompt, taken[name], clock)
    reference = next(iter(last.values()))
    heads = ["prefill", *(f"+{step}" for step in steps), "state kB", "logits"]
    lines = [f"{f'{n_prompt} ids, ms':<14}" + "".join(f"{head:>10}" for head in heads)]
    for name, model in models.items():
        model.truncate(n_prompt)
        difference = np.abs(last[name] - reference).mean() / reference.std()
        times = "".join(f"{1000 * statistics.median(values):>10.2f}" for values in taken[name].values())
        lines.append(f"{name:<14}{times}{len(model.save_state()) / 1000:>10.0f}{difference:>10.3f}")
    return "\n".join(lines) + "\n"


def _measure(model: LlamaModel, n_prompt: int, taken: dict[int, list[float]], clock: Callable[[], float]) -> Logits:
    """Append the seconds of each step to `taken`; the logits after the prompt."""
    ids = np.random.default_rng(0).integers(5, min(model.n_vocab, 1000), n_prompt + max(taken)).tolist()
    model.truncate(0)
    started = clock()
    logits = model.decode(ids[:n_prompt])
    taken[0].append(clock() - started)
    for step in taken:
        if step:
            model.truncate(n_prompt)
            started = clock()
            model.decode(ids[n_prompt : n_prompt + step])
            taken[step].append(clock() - started)
    return logits


def _calls(models: dict[str, LlamaModel], n_calls: int, clock: Callable[[], float]) -> str:
    suite = load_suite("dev")
    engines = {name: Engine(model) for name, model in models.items()}
    taken: dict[str, list[float]] = {name: [] for name in models}
    for index, case in enumerate([case for case in suite.cases if not case.episode][: n_calls + 1]):
        names = list(models)[index % len(models) :] + list(models)[: index % len(models)]
        for name in names:
            messages = with_reference_date(case.messages, _TODAY)
            started = clock()
            engines[name].complete(messages, suite.tools, 256)
            if index:  # the first call computes the tools' prompt
                taken[name].append(clock() - started)
    first = next(iter(taken.values()))
    lines = [f"{len(first)} calls, ms{'median':>12}{'mean':>10}{'ratio':>10}"]
    for name, values in taken.items():
        ratio = statistics.median(value / reference for value, reference in zip(values, first, strict=True))
        mean, median = statistics.mean(values), statistics.median(values)
        lines.append(f"{name:<14}{1000 * median:>10.1f}{1000 * mean:>10.1f}{ratio:>10.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
