"""`bench [MODEL.gguf]`: how fast and how large a model is on this very machine."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from tinydispatch import bench
from tinydispatch.bundled import bundled_tools
from tinydispatch.cli import tools as tools_command
from tinydispatch.cli.model import add_context, add_model, model_file

_EXIT_OK = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Prints load time, tokens a second, milliseconds per call and peak memory, measured on a few "
        "sentences about the bundled tools. Times are the wall's: let nothing else run."
    )
    add_model(parser)
    tools_command.add_source(parser)
    parser.add_argument(
        "--text", action="append", metavar="SENTENCE", help="instead of the built-in sentences; may be repeated"
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that each is asked (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as many as suit the model's size)")
    add_context(parser)
    parser.add_argument("--max-new-tokens", type=int, default=96, help="limit of each reply (default: %(default)s)")
    parser.add_argument(
        "--fill",
        action="store_true",
        help="fill the context last, so that the peak of memory is the longest dialogue's",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    if arguments.rounds < 1:
        raise ValueError(f"--rounds {arguments.rounds}: must be at least 1")
    tools = tools_command.read_source(arguments) or bundled_tools()
    model = model_file(arguments.model, arguments.quantization)
    sentences = tuple(arguments.text or bench.SENTENCES)
    load = bench.Workload(sentences, arguments.rounds, arguments.max_new_tokens, arguments.fill)
    found = bench.measure(model, tools, load, n_ctx=arguments.context, threads=arguments.threads)
    print(json.dumps(_rounded(asdict(found)), indent=2) if arguments.json else report(found))
    return _EXIT_OK


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 2) if isinstance(value, float) else value


def report(found: bench.Measurement) -> str:
    """The measurement in words, one line for each thing."""
    machine, split, memory = found.machine, found.split, found.memory
    held = (
        "" if memory.own_mb is None else f" (at the end {memory.own_mb:.0f} own, {memory.mapped_mb:.0f} mapped files)"
    )
    unusable = f", {found.n_unusable} of {found.n_calls} replies unusable" if found.n_unusable else ""
    lines = (
        ("model", f"{found.model}, {found.file_mb:.1f} MB, {found.context} positions"),
        ("machine", f"{machine.cpu} ({machine.architecture}), {found.threads} of {machine.cores} cores' threads"),
        ("computed by", found.computed_by),
        ("load", f"{found.load_ms:.0f} ms"),
        ("first call", f"{found.first_ms:.0f} ms, of which it reads a prompt of {found.prompt_tokens} tokens"),
        ("prefill", f"{found.prefill_per_s:.1f} tokens/s"),
        ("decode", f"{found.decode_per_s:.1f} tokens/s"),
        ("call", f"median {found.median_ms:.1f} ms, p95 {found.p95_ms:.1f} ms ({found.n_calls} calls{unusable})"),
        ("  prefill", f"{split.prefill_ms:.1f} ms"),
        ("  forced", f"{split.forced_ms:.1f} ms, {found.forced_tokens:.1f} of {found.generated_tokens:.1f} tokens"),
        ("  sampled", f"{split.sampled_ms:.1f} ms"),
        ("  grammar", f"{split.grammar_ms:.1f} ms"),
        ("  rest", f"{split.rest_ms:.1f} ms"),
        ("peak memory", f"{memory.peak_mb:.0f} MB{held}"),
    )
    return "\n".join(f"{name:<13}{text}" for name, text in lines)
