"""Suite `toolbench` on ToolBench's own answers, where they lie on this machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data.config import DataConfig, GroupConfig, ToolBenchSource
from data.groups import HeldoutGroup
from data.prepare import prepare
from eval.cases import Suite
from eval.evaluate import evaluate
from eval.gold import gold_backend
from eval.suites import load_suite
from tests.data.conftest import toolbench_dir

__all__ = ["toolbench_dir"]


@pytest.fixture(scope="module")
def suite(toolbench_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    out = tmp_path_factory.mktemp("toolbench")
    example = toolbench_dir / "toolbench" / "data_example"
    # So few rows that the shares of a real run would hold none of them out.
    groups = GroupConfig(queries=example / "instruction", tool_share=0.3, category_share=0.3, instruction_share=0.6)
    source = ToolBenchSource(kind="toolbench", path=example / "answer", groups=groups)
    prepare(DataConfig(sources=(source,)), seed=0, out_dir=out, case_texts=[], count_tokens=None)
    return load_suite(out / "data" / "heldout.jsonl")


@pytest.mark.slow
def test_real_answers_give_cases_of_tooleval_groups_each_with_its_own_tools(suite: Suite) -> None:
    assert suite.name == "toolbench"
    assert set(suite.categories) <= set(map(str, HeldoutGroup))
    counts = Counter(case.category for case in suite.cases)
    assert len(counts) > 1
    for case in suite.cases:
        offered = {tool.name for tool in suite.tools_for(case)}
        assert {wanted.name for wanted in case.expected} <= offered, case.id


@pytest.mark.slow
def test_the_answers_that_were_held_out_pass(suite: Suite) -> None:
    with gold_backend([suite]) as gold:
        result = evaluate(gold, suite, model_name="gold", progress=False)
    assert [(case.id, case.explanation) for case in result.cases if not case.is_correct] == []
