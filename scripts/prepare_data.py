"""`python -m scripts.prepare_data --config nano.yaml [key=value …]`: examples → train and held-out rows, data card."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from data.prepare import EmptyDataError, prepare
from data.sources.files import DataFileError
from eval.cases import load_case_texts
from eval.places import SuiteError
from tinydispatch.tools import ToolError
from training.config import load_run_config
from training.dataset import count_tokens
from training.errors import ConfigError, ModelNotFoundError, TokenizerError
from training.hub import resolve_model
from training.tokenizer import load_tokenizer

_USER_ERRORS = (
    ConfigError,
    DataFileError,
    EmptyDataError,
    ModelNotFoundError,
    SuiteError,
    TokenizerError,
    ToolError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the data stage of a config by itself; 0 when it is complete, 2 when the user has to change something."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare_data", description=__doc__)
    parser.add_argument("--config", required=True, help="a YAML file, or the name of one in configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.eval_fraction=0.05")
    arguments = parser.parse_args(argv)
    try:
        run = load_run_config(arguments.config, arguments.overrides)
        # The tokenizer alone says how long a row is; weights are not loaded.
        tokenizer = load_tokenizer(resolve_model(run.model))
        prepared = prepare(
            run.data,
            seed=run.seed,
            out_dir=run.run_dir,
            case_texts=load_case_texts(),
            count_tokens=partial(count_tokens, tokenizer=tokenizer),
        )
    except _USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    card = prepared.card
    print(f"{card.read} rows read: {card.train} for training, {card.heldout} held out")
    for reason, count in card.rejected.items():
        print(f"  {count:>8} rejected: {reason}")
    print(f"{prepared.train_path}\n{prepared.heldout_path}\n{run.run_dir / 'data_card.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
