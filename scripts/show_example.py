"""Print one training example with its trained tokens in colour: `python -m scripts.show_example --config nano.yaml`."""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from data.config import DataConfig, SynthSource
from data.prepare import EmptyDataError, prepare
from data.sources.files import DataFileError
from data.store import StoreError, read_conversations
from tinydispatch.tools import Conversation
from training.config import RunConfig, load_run_config
from training.dataset import Example, encode_conversation
from training.errors import ConfigError, ModelNotFoundError, TokenizerError
from training.hub import resolve_model
from training.tokenizer import load_tokenizer

_USER_ERRORS = (ConfigError, DataFileError, EmptyDataError, ModelNotFoundError, StoreError, TokenizerError)

TRAINED, READ = "bold green", "dim"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 when there is no such example; the reason is printed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="nano.yaml", help="a YAML file, or a name in configs/")
    parser.add_argument("--index", type=int, default=0, help="which conversation, from 0")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as model.path=/path/to/model")
    options = parser.parse_intermixed_args(argv)
    try:
        run = load_run_config(options.config, options.overrides)
        tokenizer = load_tokenizer(resolve_model(run.model))
        conversation = _conversation(run, options.index)
        examples = encode_conversation(conversation, tokenizer)
    except _USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console()
    for example in examples:
        console.print(coloured(example, tokenizer), soft_wrap=True)
    console.print(legend(conversation, examples))
    return 0


def coloured(example: Example, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The example's text; runs of trained tokens in one style, what is only read in another."""
    text = Text()
    pairs = zip(example.input_ids, example.is_trained, strict=True)
    for is_trained, run in itertools.groupby(pairs, key=lambda pair: pair[1]):
        # Decoded a run at a time: a single token may be half a character.
        text.append(str(tokenizer.decode([token for token, _ in run])), style=TRAINED if is_trained else READ)
    return text


def legend(conversation: Conversation, examples: Sequence[Example]) -> Text:
    """What the colours mean, and how much of the conversation is trained."""
    total = sum(len(example.input_ids) for example in examples)
    trained = sum(sum(example.is_trained) for example in examples)
    text = Text("\n")
    text.append("trained: carries loss", style=TRAINED)
    text.append("  ")
    text.append("read only", style=READ)
    text.append(f"\n{trained} of {total} tokens, {len(examples)} sequence(s)")
    text.append(f"; source {conversation.source}, category {conversation.category}, id {conversation.dialogue_id}\n")
    return text


def _conversation(run: RunConfig, index: int) -> Conversation:
    if index < 0:
        raise ConfigError(f"--index {index}: conversations count from 0")
    path = run.run_dir / "data" / "train.jsonl"
    if path.is_file():
        return _nth(path, index)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(
            _sample(run.data, index), seed=run.seed, out_dir=Path(folder), case_texts=(), count_tokens=None
        )
        print(f"{path} is not there yet: this is from a small sample made on the spot", file=sys.stderr)
        return _nth(prepared.train_path, index)


def _nth(path: Path, index: int) -> Conversation:
    found = next(itertools.islice(read_conversations(path), index, None), None)
    if found is None:
        raise ConfigError(f"--index {index}: {path} has fewer conversations")
    return found


def _sample(data: DataConfig, index: int) -> DataConfig:
    """The first source alone, with rows enough for the one that is asked for; some may be rejected."""
    source = data.sources[0]
    rows = 2 * index + 20
    limit = {"count": rows} if isinstance(source, SynthSource) else {"max_rows": rows}
    return data.model_copy(update={"sources": (source.model_copy(update=limit),), "eval_fraction": 0.0})


if __name__ == "__main__":
    sys.exit(main())
