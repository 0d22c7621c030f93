"""OPT-125M and OPT-350M at full size with random weights; the tiny ones below run the same command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.config import ExportConfig, OptGraph, Quantization
from export.export import export_gguf
from scripts.check_logits import main
from tests.fixtures_models import make_tiny_qwen35
from tests.fixtures_opt import post_norm_export, pre_norm_export
from training.random_checkpoint import make_checkpoint
from training.tokenizer import load_tokenizer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "graph"), [("opt-125m", OptGraph.OPT), ("opt-125m", OptGraph.GPT2), ("opt-350m", OptGraph.OPT)]
)
def test_full_size_opt_computes_what_transformers_does_up_to_its_last_position(
    name: str, graph: OptGraph, tmp_path: Path
) -> None:
    checkpoint = tmp_path / name
    make_checkpoint(name, checkpoint, dtype=torch.float32)
    formats = (Quantization.F32, Quantization.F16)
    config = ExportConfig(quantizations=formats, opt_graph=graph, max_verification_tokens=64)
    report = export_gguf(checkpoint, tmp_path / "gguf", name, config, tokenizer=load_tokenizer(checkpoint))
    assert main([str(checkpoint), *(str(file.path) for file in report.files)]) == 0


def test_the_check_passes_on_good_files_and_shows_each_length(capsys: pytest.CaptureFixture[str]) -> None:
    report = post_norm_export()
    files = [str(file.path) for file in report.files[:2]]
    assert main([str(report.checkpoint), *files, "--lengths", "1", "7", "300"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["1", "7", "300"] * 2


def test_the_check_passes_on_a_recurrent_model_whose_state_cannot_be_cut(tmp_path: Path) -> None:
    checkpoint = make_tiny_qwen35(tmp_path / "checkpoint", n_value_heads=6)
    config = ExportConfig(quantizations=(Quantization.F32,), max_verification_tokens=64)
    report = export_gguf(checkpoint, tmp_path / "gguf", "x", config)
    assert main([str(checkpoint), str(report.files[0].path), "--lengths", "1", "20"]) == 0


def test_the_check_fails_on_the_file_of_another_checkpoint() -> None:
    other = pre_norm_export(OptGraph.OPT).checkpoint
    assert main([str(other), str(post_norm_export().files[0].path), "--lengths", "7"]) == 1


def test_more_tokens_than_positions_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    report = post_norm_export()
    assert main([str(report.checkpoint), str(report.files[0].path), "--lengths", "5000"]) == 2
    assert "has 1024 positions, 5000 were asked for" in capsys.readouterr().err
