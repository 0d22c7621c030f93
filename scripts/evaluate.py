"""Pass rates of a run's models, or of any checkpoint or GGUF file.

python -m scripts.evaluate --config nano.yaml                    base, checkpoint and GGUF files of that run
python -m scripts.evaluate model.gguf out/checkpoint --suite dev --failures
python -m scripts.evaluate model.gguf --suite path/to/own-suite eval.max_new_tokens=512 --out results/
python -m scripts.evaluate http://localhost:8080/v1#qwen3 eval.endpoint_concurrency=8      any OpenAI-compatible server
python -m scripts.evaluate model.gguf --fail-under core=0.9                                for continuous integration
python -m scripts.evaluate model.gguf --no-worse-than runs/champion                        the same, against a model
accelerate launch -m scripts.evaluate --config opt350m.yaml eval.constrained=false         each GPU its share
python -m scripts.evaluate --config opt350m.yaml --suite toolbench --max-per-category 100  the run's held-out groups
python -m scripts.evaluate model.gguf --suite bfcl --max-per-category 50                   Berkeley's leaderboard
python -m scripts.evaluate gold --suite path/to/own-suite                                  can every case be passed?
python -m scripts.evaluate compare a.json b.json                                           two results, case by case
python -m scripts.evaluate page results/*.json --out report.html                           saved results as one page
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
from eval.cases import Suite, SuiteError
from eval.config import EvalConfig
from eval.evaluate import evaluate_model
from eval.journal import Share
from eval.page import PAGE_NAME, write_page
from eval.report import label, print_report
from eval.results import EvalResult, ResultError
from eval.suites import load_suite, shipped_suites
from eval.suites.bfcl import BFCL
from eval.suites.heldout import TOOLBENCH
from scripts import compare_runs, evaluation_page
from scripts.champion import Champion, ChampionError

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
    if words[:1] == ["page"]:
        return evaluation_page.main(words[1:])
    arguments = _parser().parse_intermixed_args(words)
    try:
        return _evaluate(arguments)
    except (UsageError, SuiteError, ChampionError, ResultError) as error:
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
        help="checkpoint directories, hub ids, .gguf files, addresses, gold for the suite's own answers; settings",
    )
    parser.add_argument("--config", help="a run's YAML file, or its name in configs/")
    parser.add_argument(
        "--suite",
        action="append",
        help=f"repeatable: {', '.join(shipped_suites())}, {TOOLBENCH}, {BFCL}, a folder, or a heldout.jsonl",
    )
    parser.add_argument("--max-per-category", type=_count, metavar="N", help="of suites made from data sets: draw N")
    parser.add_argument(
        "--out", type=Path, help=f"folder for <suite>-<model>.json and {PAGE_NAME} (default with --config: the run's)"
    )
    parser.add_argument(
        "--fail-under", action="append", default=[], metavar="SUITE=RATE", help="exit status 1 below this pass rate"
    )
    parser.add_argument(
        "--no-worse-than", type=Path, metavar="RUN", help="exit status 1 when a model is significantly worse than this"
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
    run: RunConfig | None = None
    if arguments.config is not None:
        run = _load_run(arguments.config, overrides)
        config, folder = run.eval, folder or run.run_dir / "eval"
        if not models:
            models, failed = models_of_run(run)
    else:
        config = _eval_config(overrides)
    if not models:
        raise UsageError("nothing to evaluate: give --config or at least one checkpoint directory or .gguf file")
    suites = _load_suites(arguments, config, run)
    floors = parse_floors(arguments.fail_under, [suite.name for suite in suites])
    best = arguments.no_worse_than
    champion = Champion.load(best, suites, list(models)) if best is not None else None
    share = Share.of_this_process()
    if share.count > 1 and folder is None:
        raise UsageError("several processes share their results by files: give --out, or --config of a run")
    console = Console(quiet=share.number > 0)
    for suite in suites:
        for note in suite.notes:
            console.print(f"suite {suite.name}: {note}", markup=False, highlight=False)
    results: list[EvalResult] = []
    for name, model in models.items():
        try:
            results += evaluate_model(model, suites, config, model_name=name, folder=folder, share=share)
        except BackendError as error:
            failed.append(f"{name}: {error}")
    if share.number:
        return _EXIT_INCOMPLETE if failed else _EXIT_OK
    print_report(results, console, show_outcomes=True, show_failures=arguments.failures)
    for line in failed:
        print(f"evaluate: not evaluated: {line}", file=sys.stderr)
    missed = missed_floors(results, floors) + (champion.losses(results) if champion is not None else [])
    for line in missed:
        print(f"evaluate: {line}", file=sys.stderr)
    if folder is not None and results:
        console.print(f"results in {folder}, to look at: {write_page(results, folder / PAGE_NAME)}", markup=False)
    return _EXIT_INCOMPLETE if failed or missed or any(result.overall.unscored for result in results) else _EXIT_OK


def _load_suites(arguments: argparse.Namespace, config: EvalConfig, run: RunConfig | None) -> list[Suite]:
    """The suites to run; `toolbench` lies with the data of the run that is named by --config."""
    names = []
    for name in arguments.suite or config.suites:
        if name == TOOLBENCH and run is None:
            raise UsageError(
                f"--suite {TOOLBENCH} is made from a run's held-out rows: give --config of that run, or the path of "
                "its data/heldout.jsonl"
            )
        names.append(run.run_dir / "data" / "heldout.jsonl" if name == TOOLBENCH and run is not None else name)
    return [load_suite(name, max_per_category=arguments.max_per_category) for name in names]


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count}: expected a number from 1")
    return count


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
