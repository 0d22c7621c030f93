"""`python -m scripts.prepare_data --config nano.yaml [key=value …]`: examples → train and held-out rows, data card."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from data.fit import CountTokens
from data.lengths import TokenCounter
from data.prepare import EmptyDataError, prepare
from data.sources.files import DataFileError
from data.work import WorkerDiedError
from eval.cases import SuiteError
from eval.suites import case_texts_by_suite, shapes_by_suite
from tinydispatch.tools import ToolError
from training.config import load_run_config
from training.errors import ConfigError, ModelNotFoundError, TokenizerError
from training.hub import resolve_model

_USER_ERRORS = (
    ConfigError,
    DataFileError,
    EmptyDataError,
    ModelNotFoundError,
    SuiteError,
    TokenizerError,
    ToolError,
    WorkerDiedError,
)


def token_counter(model_dir: Path) -> CountTokens:
    """What counts tokens as the model's own tokenizer and chat template do."""
    # Imported here: transformers takes seconds, and processes that only read rows import this module as well.
    from training.tokenizer import load_tokenizer

    return TokenCounter.of(load_tokenizer(model_dir))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the data stage of a config by itself; 0 when it is complete, 2 when the user has to change something."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare_data", description=__doc__)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.eval_fraction=0.05")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("data").setLevel(logging.INFO)  # how far it is, where there is no terminal to draw a bar on
    try:
        run = load_run_config(arguments.config, arguments.overrides)
        # The tokenizer alone says how long a row is; weights are not loaded.
        counter = token_counter(resolve_model(run.model))
        prepared = prepare(
            run.data,
            seed=run.seed,
            out_dir=run.run_dir,
            case_texts=case_texts_by_suite(),
            count_tokens=counter,
            suites=shapes_by_suite(),
        )
    except _USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    card = prepared.card
    joined = f", {card.joined} joined into these" if card.joined else ""
    print(f"{card.read} rows read: {card.train} for training, {card.heldout} held out{joined}")
    for reason, count in card.rejected.items():
        print(f"  {count:>8} rejected: {reason}")
    print(f"{prepared.train_path}\n{prepared.heldout_path}\n{run.run_dir / 'data_card.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
