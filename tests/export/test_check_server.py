from __future__ import annotations

import re

import pytest

from export.config import OptGraph
from scripts.check_server import main
from tests.fixtures_opt import post_norm_export, pre_norm_export


@pytest.mark.parametrize("index", [pytest.param(0, id="F32", marks=pytest.mark.slow), pytest.param(1, id="F16")])
def test_stock_llama_cpps_server_writes_what_transformers_does(index: int, capsys: pytest.CaptureFixture[str]) -> None:
    report = pre_norm_export(OptGraph.GPT2)
    assert main([str(report.checkpoint), str(report.files[index].path), "--tokens", "32"]) == 0
    summary = capsys.readouterr().out.splitlines()[-1]
    found = re.search(r"(\d+) prompts, (\d+) tokens equal, (\d+) ties, 0 prompts differ", summary)
    assert found, summary
    prompts, tokens, ties = map(int, found.groups())
    assert prompts >= 4
    assert tokens >= 32 * (prompts - ties)


def test_the_file_of_another_checkpoint_writes_something_else(capsys: pytest.CaptureFixture[str]) -> None:
    file = pre_norm_export(OptGraph.GPT2).files[0].path
    assert main([str(post_norm_export().checkpoint), str(file), "--tokens", "8"]) == 1
    assert "apart\n" in capsys.readouterr().out


def test_a_quantized_file_and_one_that_stock_llama_cpp_does_not_know_are_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = pre_norm_export(OptGraph.GPT2)
    assert main([str(report.checkpoint), str(report.files[2].path)]) == 2
    assert "is quantized; only F32 and F16 files" in capsys.readouterr().err
    ours = post_norm_export()
    assert main([str(ours.checkpoint), str(ours.files[0].path), "--tokens", "1"]) == 2
    assert "server does not start" in capsys.readouterr().err
