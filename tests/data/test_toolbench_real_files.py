"""Every row of the real files is accounted for: read = kept + rejected, by reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data.config import AugmentConfig, DataConfig, ToolBenchSource
from data.prepare import prepare
from data.rejected import Rejected
from data.sources import read_source
from data.sources.files import iter_rows
from data.sources.toolbench_queries import tools_of_query
from data.store import encode, read_conversations
from tinydispatch.tools import Conversation, Role, check_calls

TRAIN_ROWS = "toolbench/derived_toolllama_format.json"
PROCESSED = "toolbench_history/data/toolllama/processed_answer/G1_demo_DFS_woFilter_w2.json"
RAW_OF_PROCESSED = "toolbench_history/data/toolllama/raw_answer"
RAW = "toolbench/data_example/answer"


def rows_of(path: Path) -> list[Conversation | Rejected]:
    return list(read_source(ToolBenchSource(kind="toolbench", path=path), seed=0, default_tools=()))


@pytest.mark.parametrize(
    ("name", "read", "expected"),
    [
        (TRAIN_ROWS, 50, {"kept": 43, "gave_up": 4, "unknown_tool": 3}),
        (PROCESSED, 4, {"kept": 4}),
        (RAW_OF_PROCESSED, 5, {"kept": 4, "thought_only": 1}),
        # 13 valid answers hold 52 prefixes, the 2 invalid ones none: 54 rows.
        (RAW, 54, {"kept": 43, "gave_up": 4, "unknown_tool": 3, "thought_only": 2, "invalid_answer": 2}),
    ],
)
def test_every_row_is_kept_or_rejected_by_reason(
    toolbench_dir: Path, tmp_path: Path, name: str, read: int, expected: dict[str, int]
) -> None:
    path = toolbench_dir / name
    source = ToolBenchSource(kind="toolbench", path=path)
    out = tmp_path / "run"
    card = prepare(DataConfig(sources=(source,)), seed=0, out_dir=out, case_texts=[], count_tokens=None).card
    outcomes = Counter({"kept": card.kept, **card.rejected})
    assert outcomes == expected
    assert card.read == read
    assert sum(outcomes.values()) == read


@pytest.mark.parametrize(("raw", "processed"), [(RAW, TRAIN_ROWS), (RAW_OF_PROCESSED, PROCESSED)])
def test_raw_answers_and_the_rows_made_from_them_give_the_same_conversations(
    toolbench_dir: Path, raw: str, processed: str
) -> None:
    def bodies(name: str) -> list[str]:
        kept = [row for row in rows_of(toolbench_dir / name) if isinstance(row, Conversation)]
        return sorted(repr((row.messages, row.tools, row.category, row.dialogue_id)) for row in kept)

    assert bodies(raw) == bodies(processed)
    assert bodies(raw)


def test_every_turn_of_the_real_rows_is_trained_once(toolbench_dir: Path, tmp_path: Path) -> None:
    source = ToolBenchSource(kind="toolbench", path=toolbench_dir / TRAIN_ROWS)
    trained: list[list[str]] = []
    for join in (True, False):
        config = DataConfig(sources=(source,), eval_fraction=0, join_prefixes=join)
        done = prepare(config, seed=0, out_dir=tmp_path / str(join), case_texts=[], count_tokens=None)
        trained.append(
            sorted(
                repr((conversation.messages[i].tool_calls, conversation.messages[i].content, i))
                for conversation in read_conversations(done.train_path)
                for i, message in enumerate(conversation.messages)
                if message.role is Role.ASSISTANT and message.is_trained
            )
        )
    assert trained[0] == trained[1]
    assert len(trained[0]) == 43


def test_every_call_that_is_trained_fits_its_schema_whatever_was_done_to_its_row(
    toolbench_dir: Path, tmp_path: Path
) -> None:
    source = ToolBenchSource(kind="toolbench", path=toolbench_dir / TRAIN_ROWS)
    shares = AugmentConfig(no_call=0.3, distractors=0.5, mask_names=0.5, shuffle_tools=0.5)
    config = DataConfig(sources=(source,), augment=shares, max_length_tokens=4000)
    done = prepare(config, seed=1, out_dir=tmp_path, case_texts=[], count_tokens=lambda row: len(encode(row)))
    assert done.card.augmented.keys() == {"no_call", "distractors", "mask_names", "shuffle_tools"}
    assert done.card.shortened
    rows = [row for path in (done.train_path, done.heldout_path) for row in read_conversations(path)]
    trained = [call for row in rows for m in row.messages if m.is_trained for call in m.tool_calls]
    assert len(trained) >= 10
    for row in rows:
        calls = [call for message in row.messages if message.is_trained for call in message.tool_calls]
        assert check_calls(calls, row.tools) == []


def test_all_api_lists_of_the_solvable_queries_become_valid_schemas(toolbench_dir: Path) -> None:
    folder = toolbench_dir / "stabletoolbench" / "solvable_queries" / "test_instruction"
    rows = [row.value for file in sorted(folder.glob("*.json")) for row in iter_rows(file)]
    assert len(rows) == 765
    for row in rows:
        tools = tools_of_query(row)
        assert len(tools.tools) <= len(row["api_list"])
        assert tools.tools
