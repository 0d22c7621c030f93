"""Every row of the real files is accounted for: read = kept + rejected, by reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data.clean import Cleaner, Kept
from data.config import DataConfig, ToolBenchSource
from data.rejected import Rejected
from data.sources import read_source
from tinydispatch.tools import Conversation

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
    toolbench_dir: Path, name: str, read: int, expected: dict[str, int]
) -> None:
    path = toolbench_dir / name
    source = ToolBenchSource(kind="toolbench", path=path)
    cleaner = Cleaner(DataConfig(sources=(source,)), (), None)
    outcomes: Counter[str] = Counter()
    for row in rows_of(path):
        result = row if isinstance(row, Rejected) else cleaner.clean(row)
        outcomes["kept" if isinstance(result, Kept) else str(result.reason)] += 1
    assert outcomes == expected
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
