"""`python -m scripts.measure_pairs --rows rows.json --tokenizer tokenizer.json`: what prefix rows cost, three ways.

Each ToolBench row is a dialogue up to one assistant turn. Printed for every way to make training pairs of them: the
sequences, the tokens that a model reads for them, and how often the turns of a dialogue are trained.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.config import DataConfig, ToolBenchSource
from data.lengths import TokenCounter
from data.prepare import prepare
from data.store import read_conversations
from tinydispatch.formats import default_chat_template
from tinydispatch.tools import Conversation, Role


def turns_of(conversation: Conversation, *, all_turns: bool) -> Iterator[tuple[str, str]]:
    """What identifies each trained turn: the dialogue's beginning up to it."""
    for index, message in enumerate(conversation.messages):
        if message.role is Role.ASSISTANT and (message.is_trained or all_turns):
            yield conversation.dialogue_id, repr(conversation.messages[: index + 1]).replace("is_trained=False", "")


def line(name: str, conversations: Sequence[Conversation], counter: TokenCounter, *, all_turns: bool = False) -> str:
    """One row of the table."""
    texts = (
        (dialogue, text.replace("is_trained=True", "").replace(", )", ")"))
        for conversation in conversations
        for dialogue, text in turns_of(conversation, all_turns=all_turns)
    )
    times = Counter(hash(turn) for turn in texts)
    n_tokens = sum(counter(conversation) for conversation in conversations)
    return (
        f"| {name} | {len(conversations):,} | {n_tokens:,} | {len(times):,} | {times.total():,} | "
        f"{max(times.values())} |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m scripts.measure_pairs", description=__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="ToolBench train rows")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer.json")
    parser.add_argument("--max-length-tokens", type=int, default=2048)
    arguments = parser.parse_args(argv)
    counter = TokenCounter(arguments.tokenizer.read_text("utf-8"), default_chat_template(), {})
    source = ToolBenchSource(kind="toolbench", path=arguments.rows)
    found: dict[bool, list[Conversation]] = {}
    for join in (False, True):
        config = DataConfig(
            sources=(source,), eval_fraction=0, join_prefixes=join, max_length_tokens=arguments.max_length_tokens
        )
        with tempfile.TemporaryDirectory() as folder:
            done = prepare(config, seed=0, out_dir=Path(folder), case_texts=[], count_tokens=counter)
            print(f"join_prefixes {join}: {done.card.read:,} rows read, {done.card.kept:,} kept, {done.card.shortened}")
            found[join] = list(read_conversations(done.train_path))
    print("| way | sequences | tokens read | turns | trained | the same turn at most |\n" + "| --- " * 6 + "|")
    print(line("every row, every turn trained", found[False], counter, all_turns=True))
    print(line("every row, its last turn trained", found[False], counter))
    print(line("one conversation, each turn trained once", found[True], counter))
    return 0


if __name__ == "__main__":
    sys.exit(main())
