"""Stand-ins for real models have their vocabulary, their shape and a warning."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from scripts.make_random_checkpoint import main
from training.random_checkpoint import ARCHITECTURES, make_checkpoint


def test_opts_tokenizer_has_opts_ids(opt_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(opt_dir)
    assert len(tokenizer) == 50265
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<s>", "<pad>", "</s>", "<unk>"]
    assert tokenizer.chat_template is None
    assert AutoConfig.from_pretrained(opt_dir).vocab_size == 50272


def test_every_text_can_be_written(opt_dir: Path, qwen_dir: Path) -> None:
    for directory in (opt_dir, qwen_dir):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        text = "Zoë's naïve ☕ 東京\n\t{}"
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_opt_350m_has_the_real_shape() -> None:
    settings = ARCHITECTURES["opt-350m"].settings
    assert settings["word_embed_proj_dim"] == 512
    assert settings["do_layer_norm_before"] is False


def test_the_readme_says_that_the_weights_are_random(opt_dir: Path) -> None:
    assert "**random weights**" in (opt_dir / "README.md").read_text("utf-8")


def test_a_directory_in_use_is_not_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["tiny-opt", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no architecture 'gpt'"):
        make_checkpoint("gpt", tmp_path / "new")
