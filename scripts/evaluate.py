"""Pass rates of a run's models, or of any checkpoint or GGUF file.

python -m scripts.evaluate --config nano.yaml                    base, checkpoint and GGUF files of that run
python -m scripts.evaluate model.gguf out/checkpoint --suite dev --failures
python -m scripts.evaluate model.gguf --suite path/to/own-suite eval.max_new_tokens=512 --out results/
python -m scripts.evaluate http://localhost:8080/v1#qwen3 eval.endpoint_concurrency=8      any OpenAI-compatible server
python -m scripts.evaluate model.gguf --fail-under core=0.9                                for continuous integration
python -m scripts.evaluate compare a.json b.json                                           two results, case by case
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import yaml
from pydantic import ValidationError
from rich.console import Console

from eval.backends import BackendError, is_endpoint
from eval.cases import load_suite, shipped_suites
from eval.config import EvalConfig
from eval.evaluate import evaluate_model
from eval.places import SuiteError
from eval.report import print_report
from eval.report_lines import label
from eval.results import EvalResult
from scripts import compare_runs

if TYPE_CHECKING:
    from training.config import RunConfig

_EXIT_OK, _EXIT_INCOMPLETE, _EXIT_BAD_INPUT, _EXIT_INTERRUPTED = 0, 1, 2, 130


class UsageError(ValueError):
    """Arguments that do not go together; the message says what to give instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """0: every case was scored, every floor held; 1: not so; 2: bad input, before any model was loaded."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["compare"]:
        return compare_runs.main(words[1:])
    arguments = _parser().parse_intermixed_args(words)
    try:
        return _evaluate(arguments)
    except (UsageError, SuiteError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return _EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MODEL | key=value",
        help="checkpoint directories, hub ids, .gguf files, addresses; settings",
    )
    parser.add_argument("--config", help="a run's YAML file, or its name in configs/")
    parser.add_argument(
        "--suite", action="append", help=f"a shipped suite ({', '.join(shipped_suites())}) or a folder; repeatable"
    )
    parser.add_argument("--out", type=Path, help="folder for <suite>-<model>.json (default with --config: the run's)")
    parser.add_argument(
        "--fail-under", action="append", default=[], metavar="SUITE=RATE", help="exit status 1 below this pass rate"
    )
    parser.add_argument("--failures", action="store_true", help="list every case that did not pass, and remedies")
    return parser


def _evaluate(arguments: argparse.Namespace) -> int:
    overrides = [word for word in arguments.words if _is_override(word)]
    models: dict[str, str | Path] = {_name(word): word for word in arguments.words if not _is_override(word)}
    if len(models) + len(overrides) < len(arguments.words):
        models = {word: word for word in arguments.words if not _is_override(word)}
    failed: list[str] = []
    folder: Path | None = arguments.out
    if arguments.config is not None:
        run = _load_run(arguments.config, overrides)
        config, folder = run.eval, folder or run.run_dir / "eval"
        if not models:
            models, failed = models_of_run(run)
    else:
        config = _eval_config(overrides)
    if not models:
        raise UsageError("nothing to evaluate: give --config or at least one checkpoint directory or .gguf file")
    suites = [load_suite(name) for name in arguments.suite or config.suites]
    floors = parse_floors(arguments.fail_under, [suite.name for suite in suites])
    console = Console()
    results: list[EvalResult] = []
    for name, model in models.items():
        try:
            results += evaluate_model(model, suites, config, model_name=name, folder=folder)
        except BackendError as error:
            failed.append(f"{name}: {error}")
    print_report(results, console, show_outcomes=True, show_failures=arguments.failures)
    for line in failed:
        print(f"evaluate: not evaluated: {line}", file=sys.stderr)
    missed = missed_floors(results, floors)
    for line in missed:
        print(f"evaluate: {line}", file=sys.stderr)
    if folder is not None and results:
        console.print(f"results in {folder}", markup=False)
    return _EXIT_INCOMPLETE if failed or missed or any(result.overall.unscored for result in results) else _EXIT_OK


def parse_floors(words: Sequence[str], suites: Sequence[str]) -> dict[str, float]:
    """`core=0.9` → {"core": 0.9}.

    Raises:
        UsageError: no rate from 0 to 1, or of a suite that is not evaluated.
    """
    floors = {}
    for word in words:
        name, _, rate = word.partition("=")
        try:
            floors[name] = float(rate)
        except ValueError:
            floors[name] = -1.0
        if not 0 <= floors[name] <= 1 or name not in suites:
            raise UsageError(f"--fail-under {word}: expected SUITE=RATE, a rate from 0 to 1 of one of {list(suites)}")
    return floors


def missed_floors(results: Sequence[EvalResult], floors: Mapping[str, float]) -> list[str]:
    """A line for each result below its suite's floor; a rate that is not known does not hold it."""
    lines = []
    for result in results:
        floor, rate = floors.get(result.suite), result.overall.rate
        if floor is not None and (rate is None or rate < floor):
            shown = "unknown, cases are unscored" if rate is None else f"{rate:.3f}"
            lines.append(f"{label(result)} on {result.suite}: pass rate {shown}, wanted at least {floor:g}")
    return lines


def models_of_run(run: RunConfig) -> tuple[dict[str, str | Path], list[str]]:
    """What a run folder holds, by the names that its result files carry: base, checkpoint, gguf-q8_0, …

    Second come lines about what is out of reach: the base may be a hub model, and the network down.

    Raises:
        UsageError: the run has neither a checkpoint nor a GGUF file yet.
    """
    checkpoint = run.run_dir / "checkpoint"
    found: dict[str, str | Path] = {"checkpoint": checkpoint} if checkpoint.is_dir() else {}
    for path in sorted((run.run_dir / "gguf").glob("*.gguf")):
        found[f"gguf-{path.stem.removeprefix(f'{run.name}-')}"] = path
    if not found:
        raise UsageError(
            f"{run.run_dir}: holds neither checkpoint/ nor gguf/*.gguf; run train.py with this config first"
        )
    from training.errors import ModelNotFoundError
    from training.hub import resolve_model

    try:
        return {"base": resolve_model(run.model), **found}, []
    except ModelNotFoundError as error:
        return found, [f"base: {error}"]


def _load_run(path_or_name: str, overrides: Sequence[str]) -> RunConfig:
    # Imported late: without --config, a GGUF file is evaluated without what training needs.
    from training.config import load_run_config
    from training.errors import ConfigError

    try:
        return load_run_config(path_or_name, overrides)
    except ConfigError as error:
        raise UsageError(str(error)) from error


def _eval_config(overrides: Sequence[str]) -> EvalConfig:
    """`eval.key=value` settings without a run's file."""
    values: dict[str, Any] = {}
    for override in overrides:
        key, _, value = override.partition("=")
        if not key.startswith("eval."):
            raise UsageError(f"'{override}': without --config only eval.… can be set")
        try:
            values[key.removeprefix("eval.")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"'{override}': the value is not YAML: {error}") from error
    try:
        return EvalConfig.model_validate(values)
    except ValidationError as error:
        found = error.errors()[0]
        key = ".".join(str(part) for part in found["loc"])
        known = ", ".join(f"eval.{name}" for name in EvalConfig.model_fields)
        raise UsageError(f"eval.{key}={found['input']!r}: {found['msg']}; settings are {known}") from error


def _is_override(word: str) -> bool:
    return "=" in word and not is_endpoint(word) and not Path(word).exists()


def _name(model: str) -> str:
    """A short name for the table: an endpoint's model, a file's stem, a directory's or (…/checkpoint) its parent's."""
    if is_endpoint(model):
        return model.partition("#")[2] or urlsplit(model).netloc
    path = Path(model)
    if path.suffix == ".gguf":
        return path.stem
    if not path.is_dir():
        return model
    path = path.resolve()
    return f"{path.parent.name}-{path.name}" if path.name in ("checkpoint", "merged") else path.name


if __name__ == "__main__":
    sys.exit(main())
