"""Every list of tools of StableToolBench's queries becomes a grammar."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import llguidance
import pytest

from data.sources.toolbench_queries import tools_of_query
from tests.fixtures_playback import PlaybackRuntime
from tinydispatch.decoding.reply import CallFormat, ReplyShape, check_grammar, reply_grammar
from tinydispatch.decoding.rules import GrammarError
from tinydispatch.decoding.tokens import token_table, token_texts


def test_every_api_list_compiles_or_names_what_is_wrong_with_it(toolbench_dir: Path) -> None:
    folder = toolbench_dir / "stabletoolbench" / "solvable_queries" / "test_instruction"
    if not folder.is_dir():
        pytest.skip("no StableToolBench files")
    runtime, shape, form = PlaybackRuntime(""), ReplyShape(), CallFormat()
    table = token_table(runtime, token_texts(runtime))
    outcomes: Counter[str] = Counter()
    n_tools = 0
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text("utf-8")):
            tools = tools_of_query(row).tools
            n_tools += len(tools)
            try:
                grammar = reply_grammar(tools, shape, form)
                check_grammar(grammar, tools, shape, form)
            except GrammarError as error:
                outcomes[f"{error.tool} {error.path}: {error.problem}"] += 1
                continue
            problem = llguidance.LLMatcher(table, grammar).get_error()
            outcomes[problem or "compiled"] += 1
    assert outcomes == {"compiled": 765}
    assert n_tools == 4061
