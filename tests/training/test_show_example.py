"""One example on the terminal, trained tokens in colour."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from scripts.show_example import TRAINED, coloured, main
from tests.training.samples import simple_conversation
from training.dataset import encode_conversation


def arguments(tmp_path: Path, model: Path, *more: str) -> list[str]:
    return ["--config", "nano.yaml", *more, f"model.path={model}", f"runs_dir={tmp_path}"]


def test_exactly_the_trained_text_is_coloured(opt_tokenizer: PreTrainedTokenizerBase) -> None:
    (example,) = encode_conversation(simple_conversation("Zürich"), opt_tokenizer)
    text = coloured(example, opt_tokenizer)
    green = [text.plain[span.start : span.end] for span in text.spans if span.style == TRAINED]
    expected = '<tool_call>{"name": "get_weather", "arguments": {"location": "Zürich"}}</tool_call><|im_end|>'
    assert green == [expected]
    assert text.plain == opt_tokenizer.decode(example.input_ids)


def test_an_example_of_the_runs_data_is_shown_with_a_legend(
    tmp_path: Path, opt_dir: Path, train_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nano" / "data").mkdir(parents=True)
    shutil.copy(train_path, tmp_path / "nano" / "data" / "train.jsonl")
    assert main(arguments(tmp_path, opt_dir, "--index", "3")) == 0
    printed = capsys.readouterr().out
    assert "What's the weather in Kyiv?" in printed
    assert "carries loss" in printed
    assert main(arguments(tmp_path, opt_dir, "--index", "99")) == 2
    assert "has fewer conversations" in capsys.readouterr().err


def test_without_data_a_sample_is_made_on_the_spot(
    tmp_path: Path, opt_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, opt_dir)) == 0
    printed = capsys.readouterr()
    assert "a small sample made on the spot" in printed.err
    assert "<|im_start|>assistant" in printed.out
    assert not any(tmp_path.iterdir())


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "nano.yaml", f"model.path={tmp_path / 'none'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
