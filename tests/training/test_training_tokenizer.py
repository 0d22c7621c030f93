"""Chat template, end token, padding and embedding fit together before training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM, PreTrainedTokenizerBase

from tinydispatch import formats
from training.config import Dtype
from training.errors import ConfigError, ModelNotFoundError, TokenizerError
from training.model import check_length, fit_embedding, load_model
from training.tokenizer import added_tokens, load_tokenizer


def test_opt_gets_our_template_in_its_free_rows(opt_dir: Path, opt_tokenizer: PreTrainedTokenizerBase) -> None:
    assert opt_tokenizer.chat_template == formats.default_chat_template()
    ids = [opt_tokenizer.convert_tokens_to_ids(token) for token in formats.SPECIAL_TOKENS]
    assert ids == list(range(50265, 50272))
    assert added_tokens(opt_dir, opt_tokenizer) == list(formats.SPECIAL_TOKENS)


def test_opt_stops_at_the_turns_end_and_pads_with_another_token(opt_tokenizer: PreTrainedTokenizerBase) -> None:
    assert opt_tokenizer.eos_token == formats.TURN_END
    assert opt_tokenizer.pad_token == "<pad>"


def test_nothing_is_put_before_what_the_template_writes(opt_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    opt_tokenizer.save_pretrained(tmp_path)
    for tokenizer in (opt_tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert tokenizer.convert_tokens_to_ids("</s>") not in tokenizer("Hi")["input_ids"]


def test_opts_embedding_keeps_its_shape(opt_dir: Path, opt_tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_model(opt_dir, opt_tokenizer, Dtype.FLOAT32)
    assert model.get_input_embeddings().weight.shape == (50272, 16)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 50266


def test_an_opt_without_free_rows_is_refused(opt_tokenizer: PreTrainedTokenizerBase) -> None:
    config = OPTConfig(vocab_size=50265, hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(TokenizerError, match="50271"):
        fit_embedding(OPTForCausalLM(config), opt_tokenizer)


def test_a_models_own_template_is_kept_without_thinking(
    qwen_dir: Path, qwen_tokenizer: PreTrainedTokenizerBase
) -> None:
    own = (qwen_dir / "chat_template.jinja").read_text("utf-8")
    assert qwen_tokenizer.chat_template == formats.without_thinking(own) != own
    assert (qwen_tokenizer.eos_token, qwen_tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert added_tokens(qwen_dir, qwen_tokenizer) == []


def test_further_stops_of_a_model_are_kept(qwen_dir: Path, qwen_tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_model(qwen_dir, qwen_tokenizer, Dtype.FLOAT32)
    assert model.config.eos_token_id == qwen_tokenizer.eos_token_id
    assert len(model.generation_config.eos_token_id) == 2


def changed_tokenizer(qwen_dir: Path, folder: Path, **settings: object) -> Path:
    for name in ("tokenizer.json", "chat_template.jinja"):
        shutil.copy(qwen_dir / name, folder)
    config = json.loads((qwen_dir / "tokenizer_config.json").read_text("utf-8")) | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def test_the_end_token_is_what_the_template_writes_not_what_a_base_model_declares(
    qwen_dir: Path, tmp_path: Path
) -> None:
    directory = changed_tokenizer(qwen_dir, tmp_path, eos_token="<|endoftext|>")
    assert load_tokenizer(directory).eos_token == "<|im_end|>"


def test_padding_is_never_the_end_token(qwen_dir: Path, tmp_path: Path) -> None:
    directory = changed_tokenizer(qwen_dir, tmp_path, pad_token="<|im_end|>")
    assert load_tokenizer(directory).pad_token == "<|endoftext|>"


def test_a_template_that_ends_a_reply_without_a_token_is_refused(qwen_dir: Path, tmp_path: Path) -> None:
    directory = changed_tokenizer(qwen_dir, tmp_path)
    template = "{{ tools }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    (directory / "chat_template.jinja").write_text(template, "utf-8")
    with pytest.raises(TokenizerError, match="could not learn to stop"):
        load_tokenizer(directory)


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)


def test_a_directory_whose_model_cannot_be_read_is_named(
    tmp_path: Path, qwen_tokenizer: PreTrainedTokenizerBase
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_model"}', "utf-8")
    with pytest.raises(ModelNotFoundError, match="no causal language model"):
        load_model(tmp_path, qwen_tokenizer, Dtype.FLOAT32)


def test_a_length_beyond_the_models_positions_is_refused(opt_dir: Path) -> None:
    check_length(opt_dir, 2048)
    with pytest.raises(ConfigError, match=r"data.max_length_tokens is 8192, .* has 2048 positions"):
        check_length(opt_dir, 8192)
