"""A GGUF file on the gate's cases and on its self-test, in this process and without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from eval.cases import Suite
from eval.config import EvalConfig
from eval.evaluate import evaluate_model
from eval.results import EvalResult
from tinydispatch.bundled import bundled_tools
from tinydispatch.dispatcher import Dispatcher
from tinydispatch.registry import SelfTest


def evaluator(config: EvalConfig) -> Callable[[Path, Sequence[Suite], str, Path], list[EvalResult]]:
    """What evaluates a file under these settings and saves each result into a folder."""

    def evaluate(path: Path, suites: Sequence[Suite], name: str, folder: Path) -> list[EvalResult]:
        return evaluate_model(path, suites, config, model_name=name, folder=folder, progress=False)

    return evaluate


def answer(path: Path, test: SelfTest) -> tuple[bool, int]:
    """Load a file and ask it: whether the reply can be used as it stands, and how many calls it makes."""
    tools = bundled_tools() if test.tools is None else test.tools
    with Dispatcher(path, tools, test.reference_date) as dispatcher:
        found = dispatcher.dispatch(test.text)
    return found.is_usable, len(found.calls)
