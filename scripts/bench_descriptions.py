"""What parameter descriptions cost and gain: `python -m scripts.bench_descriptions MODEL.gguf --suite unseen_tools`.

Each case is asked with the suite's tools as their authors wrote them (B), and with every description inside their
parameters left out (A); the tools' own descriptions stay. Prints tokens of the prompts and the paired comparison.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from eval.backends import open_backend
from eval.cases import Suite
from eval.comparison import comparison_report, pair_runs
from eval.config import EvalConfig
from eval.evaluate import evaluate
from eval.results import EvalResult
from eval.suites import load_suite
from tinydispatch.formats import render_prompt, with_reference_date
from tinydispatch.ggml.open import open_model
from tinydispatch.tools import Tool


def without_descriptions(tool: Tool) -> Tool:
    """The tool with no description in its parameters, at whatever depth; one named "description" stays."""
    return replace(tool, parameters=_without(dict(tool.parameters)))


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if key != "description" or not isinstance(inner, str)}
        return {key: _without(inner) for key, inner in kept.items()}
    return [_without(item) for item in value] if isinstance(value, list) else value


def undescribed(suite: Suite) -> Suite:
    """The same cases with tools whose parameters are not described; results stay comparable."""
    cases = tuple(replace(case, offer=tuple(map(without_descriptions, case.offer))) for case in suite.cases)
    return replace(suite, tools=tuple(map(without_descriptions, suite.tools)), cases=cases)


def main(argv: Sequence[str] | None = None) -> int:
    """Print tokens and the comparison, first for each suite, then for all of them together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--suite", action="append", required=True, help="repeatable: a shipped suite, or a folder")
    arguments = parser.parse_args(argv)
    console = Console()
    suites = [load_suite(name) for name in arguments.suite]
    pairs: list[tuple[EvalResult, EvalResult]] = []
    with open_backend(arguments.model, EvalConfig()) as backend:
        for suite in suites:
            variants = {"without": undescribed(suite), "with": suite}
            first, second = (evaluate(backend, found, model_name=name) for name, found in variants.items())
            pairs.append((first, second))
    with open_model(arguments.model) as model:
        for suite in suites:
            counts = [
                [
                    len(model.tokenize(render_prompt(prompt, found.tools_for(case)), parse_special=True))
                    for case in found.cases
                    for prompt in [with_reference_date(case.messages, case.today)]
                ]
                for found in (undescribed(suite), suite)
            ]
            means = [sum(row) / len(row) for row in counts]
            console.print(
                f"{suite.name}: a prompt has {means[0]:.0f} tokens without descriptions of parameters, {means[1]:.0f} "
                f"with them ({means[1] / means[0] - 1:+.1%}), the mean of {len(suite.cases)} cases",
                highlight=False,
            )
    if len(pairs) > 1:
        pairs.append((_joined([pair[0] for pair in pairs]), _joined([pair[1] for pair in pairs])))
    for first, second in pairs:
        console.print(comparison_report(pair_runs(first, second)))
    return 0


def _joined(results: Sequence[EvalResult]) -> EvalResult:
    """Several suites' results as one, each case under its suite's name."""
    cases = tuple(replace(case, id=f"{item.suite}/{case.id}") for item in results for case in item.cases)
    names = [item.suite for item in results]
    categories = tuple(dict.fromkeys(name for item in results for name in item.categories))
    return EvalResult("+".join(names), "+".join(names), results[0].model_name, categories, cases)


if __name__ == "__main__":
    sys.exit(main())
