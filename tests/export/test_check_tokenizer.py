"""The tokenizers of OPT, Qwen and nano through llama.cpp, on what they are trained and measured on, and on worse."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.store import encode
from data.synth.generate import generate
from export.checkpoint import open_checkpoint
from export.config import ExportConfig, Quantization
from export.convert import write_gguf
from export.vocabulary import read_vocabulary
from scripts import check_tokenizer
from tests.fixtures_gguf import tiny_export
from tests.fixtures_opt import post_norm_export
from tinydispatch import formats
from tinydispatch.ggml.open import open_model
from training.random_checkpoint import make_checkpoint
from training.tokenizer import load_tokenizer

_NANO = Path(__file__).parents[2] / "training" / "nano" / "weights"
_TOOLBENCH = Path(__file__).parents[3] / "shared" / "data" / "toolbench" / "derived_toolllama_format.json"


def _checkpoint(name: str, folder: Path) -> Path:
    """Nano's own weights; OPT's and Qwen3's splitting, special tokens and number of ids otherwise."""
    if name == "nano":
        return _NANO
    make_checkpoint(name, folder)
    return folder


def _sets(checkpoint: Path, folder: Path) -> dict[str, check_tokenizer.TextSet]:
    tokenizer = load_tokenizer(checkpoint)
    opened = open_checkpoint(checkpoint)
    vocabulary = read_vocabulary(checkpoint, tokenizer, opened.config.vocab_size)
    path, data = folder / "x.gguf", folder / "train.jsonl"
    write_gguf(opened, vocabulary, path, "x", Quantization.F16, ExportConfig())
    data.write_text("".join(encode(one) + "\n" for one in generate(20, 0)), "utf-8")
    with open_model(path, 32) as model:
        sets = check_tokenizer.check(model, tokenizer, data, has_characters=True)
        return {one.name: one for one in sets}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of each set; the slow test takes all."""
    monkeypatch.setattr(check_tokenizer, "_N_MIXED", 100)
    monkeypatch.setattr(check_tokenizer, "shipped_suites", lambda: ["core"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nano", "tiny-opt", "tiny-qwen3", "tiny-qwen3.5"])
def test_every_text_and_every_character_become_the_same_ids(name: str, tmp_path: Path) -> None:
    found = _sets(_checkpoint(name, tmp_path / "checkpoint"), tmp_path)
    assert [one.mismatches for one in found.values()] == [()] * 5
    assert found["training conversations"].n_texts == 20
    assert found["evaluation prompts"].n_texts >= 100
    assert found["torture list"].n_texts > 2000
    assert found["special tokens"].n_texts >= len(formats.SPECIAL_TOKENS)
    assert found["every character"].n_tokens > 150_000


@pytest.mark.skipif(not _TOOLBENCH.is_file(), reason="ToolBench rows are not here")
def test_toolbench_rows_become_the_same_ids() -> None:
    texts = _TOOLBENCH.read_text("utf-8")[:200_000]
    report = post_norm_export()
    tokenizer = load_tokenizer(report.checkpoint)
    pieces = [texts[start : start + 2000] for start in range(0, len(texts), 2000)]
    with open_model(report.files[0].path, 32) as model:
        assert check_tokenizer.tokenizer_mismatches(model, tokenizer, pieces) == []


@pytest.mark.usefixtures("few")
def test_the_command_shows_each_set_and_fails_on_another_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    report = tiny_export()
    file = str(report.files[0].path)
    assert check_tokenizer.main([str(report.checkpoint), file]) == 0
    printed = capsys.readouterr().out
    assert [line.split("  ")[0] for line in printed.splitlines()[2:]] == [
        "evaluation prompts",
        "torture list",
        "special tokens",
    ]
    assert check_tokenizer.main([str(post_norm_export().checkpoint), file]) == 1
    assert " became " in capsys.readouterr().out
    assert check_tokenizer.main([str(report.checkpoint), file + ".absent"]) == 2
    assert "no such file" in capsys.readouterr().err
