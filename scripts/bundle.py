"""`python -m scripts.bundle --config nano.yaml`: a run's GGUF files with all that is needed to hand them on."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from data.card import DataCard
from eval.results import EvalResult, load_result
from eval.suites import load_suite
from export.bundle import BundleInput, write_bundle
from export.choice import Verdict, choose
from tinydispatch.bundled import bundled_tools, load_tools
from training.config import RunConfig, load_run_config


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 when something is missing."""
    arguments = _parser().parse_args(argv)
    try:
        run = load_run_config(arguments.config, arguments.overrides)
        own_tools: Path | None = arguments.tools or run.data.tools
        tools = load_tools(own_tools) if own_tools is not None else bundled_tools()
        results = _results(run)
        verdicts, default = _judge(run, results)
        contents = BundleInput(
            name=run.name,
            report=run.run_dir / "gguf" / f"{run.name}-export.json",
            default=default,
            verdicts=verdicts,
            tools=tools,
            base=str(run.model.path),
            licence=arguments.licence or _licence_of(Path(run.model.path)),
            recipe=_recipe(run),
            results=results,
            data=_data_card(run),
        )
        folder = write_bundle(contents, arguments.out or run.run_dir / "bundle")
    except ValueError as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 2
    for path in sorted(folder.iterdir()):
        print(f"{path.stat().st_size / 1e6:>10.3f} MB  {path}")
    if contents.licence is None:
        print("no licence is known: give it with --licence before the bundle is made public")
    print(f"publish it: python -m scripts.push_to_hub {folder} USER/{run.name} --dry-run")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.bundle", description=__doc__)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--tools", type=Path, help="the tools that the Modelfile and the card speak of")
    parser.add_argument(
        "--licence", help="of the weights, as the Hub spells it; default: what the base model's card says"
    )
    parser.add_argument("--out", type=Path, help="write here instead of the run's bundle folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. runs_dir=/tmp/runs")
    return parser


def _results(run: RunConfig) -> list[EvalResult]:
    """The run's results on its suites, in the order base, checkpoint, files; those that are not there are left out."""
    names = ["base", "checkpoint", *(f"gguf-{quantization}" for quantization in run.export.quantizations)]
    suites = [load_suite(suite).name for suite in run.eval.suites]
    paths = [run.run_dir / "eval" / f"{suite}-{name}.json" for suite in suites for name in names]
    return [load_result(path) for path in paths if path.is_file()]


def _judge(run: RunConfig, results: Sequence[EvalResult]) -> tuple[dict[str, Verdict], str]:
    """Verdicts by quantization, and the file to offer first: the smallest that is not measurably worse."""
    paths = {str(q): run.run_dir / "gguf" / f"{run.name}-{q}.gguf" for q in run.export.quantizations}
    by_model = {name: [found for found in results if found.model_name == name] for name in _model_names(results)}
    checkpoint = by_model.get("checkpoint", [])
    found = {q: by_model.get(f"gguf-{q}", []) for q in paths}
    judged = {q: of_file for q, of_file in found.items() if checkpoint and len(of_file) == len(checkpoint)}
    sizes = {q: path.stat().st_size for q, path in paths.items() if path.is_file()}
    if judged and judged.keys() <= sizes.keys():
        choice = choose(checkpoint, judged, sizes)
        default = choice.default or next(iter(judged))
        return dict(choice.verdicts), paths[default].name
    # Nothing was evaluated, so nothing speaks for a smaller file.
    return {}, next(iter(paths.values())).name


def _model_names(results: Sequence[EvalResult]) -> list[str]:
    return list(dict.fromkeys(result.model_name for result in results))


def _licence_of(model: Path) -> str | None:
    """What the base model's own card says, where the model is a folder that has one."""
    try:
        text = (model / "README.md").read_text("utf-8")
    except OSError:
        return None
    head = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    found = re.search(r"^license:\s*(\S+)\s*$", head[1], re.MULTILINE) if head else None
    return found[1] if found else None


def _recipe(run: RunConfig) -> dict[str, str]:
    training = run.training
    count, unit = (training.max_steps, "step") if training.max_steps else (training.epochs, "epoch")
    length = f"{count:g} {unit}" if count == 1 else f"{count:g} {unit}s"
    return {
        "method": str(training.method),
        "length": length,
        "optimizer": f"{training.optimizer}, learning rate {training.learning_rate:g}, {training.scheduler}, "
        f"{training.warmup_steps} steps of warm-up",
        "batch": f"{training.global_batch_size} conversations a step",
        "longest conversation": f"{run.data.max_length_tokens} tokens",
        "seed": str(run.seed),
    }


def _data_card(run: RunConfig) -> DataCard | None:
    path = run.run_dir / "data_card.json"
    return DataCard.read_json(path) if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
