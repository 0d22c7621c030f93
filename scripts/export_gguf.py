"""`python -m scripts.export_gguf --config nano.yaml`: a run's checkpoint as verified GGUF files."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from export.checkpoint import check_architecture
from export.export import ExportReport, export_gguf
from export.merge import merge_adapter
from training.config import RunConfig, load_run_config
from training.tokenizer import load_tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """Export one run; 0: done, 2: bad input or a file that does not verify."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("export").setLevel(logging.INFO)
    try:
        run = load_run_config(arguments.config, arguments.overrides)
        checkpoint = arguments.checkpoint or _trained_checkpoint(run)
        check_architecture(checkpoint)
        out = arguments.out or run.run_dir / "gguf"
        # As in training: a model without a chat template gets ours, so a base model can be exported too.
        report = export_gguf(checkpoint, out, run.name, run.export, tokenizer=load_tokenizer(checkpoint))
    except ValueError as error:
        print(f"export_gguf: {error}", file=sys.stderr)
        return 2
    print(_table(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.export_gguf", description=__doc__)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("--checkpoint", type=Path, help="export this directory instead of the run's checkpoint")
    parser.add_argument("--out", type=Path, help="write here instead of the run's gguf folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. export.quantizations=[q8_0]")
    return parser


def _trained_checkpoint(run: RunConfig) -> Path:
    """The run's checkpoint; after LoRA it is made here, anew, since an older one could be of another training."""
    checkpoint = run.run_dir / "checkpoint"
    if run.training.method.has_adapter:
        return merge_adapter(run.run_dir / "adapter", checkpoint).path
    return checkpoint


def _table(report: ExportReport) -> str:
    lines = [f"{'file':<48}{'MB':>8}{'max |Δlogit|':>14}{'mean KL':>11}{'top-1':>9}"]
    for file in report.files:
        checked = file.verification
        lines.append(
            f"{file.path!s:<48}{file.n_bytes / 1e6:>8.1f}{checked.max_difference:>14.2g}"
            f"{checked.mean_kl:>11.1e}{checked.top1_agreement:>9.1%}"
        )
    positions = report.files[0].verification.n_positions
    lines.append(f"checked on {positions} positions against {report.checkpoint}; {report.n_texts} texts tokenize alike")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
