from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from data.config import DataConfig, OpenAIJsonlSource, SynthSource, ToolBenchSource


def test_the_kind_decides_which_source_is_meant() -> None:
    config = DataConfig.model_validate_json(
        '{"sources": [{"kind": "synth", "count": 5}, {"kind": "toolbench", "path": "a", "max_rows": 3},'
        ' {"kind": "openai_jsonl", "path": "b.jsonl"}]}'
    )
    assert config.sources == (
        SynthSource(kind="synth", count=5),
        ToolBenchSource(kind="toolbench", path=Path("a"), max_rows=3),
        OpenAIJsonlSource(kind="openai_jsonl", path=Path("b.jsonl")),
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"sources": []}',
        '{"sources": [{"kind": "csv", "path": "a"}]}',
        '{"sources": [{"kind": "synth", "count": 0}]}',
        '{"sources": [{"kind": "synth", "count": 1, "path": "a"}]}',
        '{"sources": [{"kind": "synth", "count": 1}], "eval_fraction": 1.0}',
        '{"sources": [{"kind": "synth", "count": 1}], "near_duplicate_threshold": 0.5}',
        '{"sources": [{"kind": "synth", "count": 1}], "max_length": 100}',
    ],
)
def test_a_setting_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        DataConfig.model_validate_json(text)
