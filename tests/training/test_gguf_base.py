"""A GGUF file as a place to start from."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.fixtures_gguf import tiny_llama_export
from training.config import ModelConfig
from training.errors import ModelNotFoundError
from training.hub import resolve_model
from training.tokenizer import load_tokenizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINYDISPATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def exported() -> tuple[Path, Path]:
    """The F32 file of a small random Llama, and the checkpoint that it was made of."""
    report = tiny_llama_export()
    file = next(one.path for one in report.files if one.path.name.endswith("f32.gguf"))
    return file, Path(report.checkpoint)


def test_a_gguf_file_computes_what_its_checkpoint_did(own_cache: Path) -> None:
    file, checkpoint = exported()
    folder = resolve_model(ModelConfig(path=str(file)))
    assert folder.is_relative_to(own_cache)
    ids = torch.tensor([[5, 9, 1, 7, 30, 2]])
    with torch.no_grad():
        before, after = (
            AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32)(ids).logits for one in (checkpoint, folder)
        )
    assert torch.allclose(before, after, atol=1e-5)
    assert resolve_model(ModelConfig(path=str(file))) == folder  # made once


def test_its_tokenizer_splits_text_as_the_file_says() -> None:
    file, checkpoint = exported()
    folder = resolve_model(ModelConfig(path=str(file)))
    one, other = AutoTokenizer.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(folder)
    for text in ("on 2026-03-19 at  7", "a\n\n12 b", "  x 1234", "it's"):
        assert one(text)["input_ids"] == other(text)["input_ids"]


def test_a_model_whose_template_knows_no_tools_gets_ours_and_no_new_tokens(tmp_path: Path) -> None:
    file, _ = exported()
    folder = resolve_model(ModelConfig(path=str(file)))
    before = AutoTokenizer.from_pretrained(folder)
    before.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    before.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "config.json").write_text((folder / "config.json").read_text())
    after = load_tokenizer(tmp_path / "plain")
    assert "tool_calls" in str(after.chat_template)
    assert len(after) == len(before)


def test_a_damaged_file_and_another_architecture_are_refused_by_name(tmp_path: Path, own_cache: Path) -> None:
    damaged = tmp_path / "cut.gguf"
    damaged.write_bytes(exported()[0].read_bytes()[:3000])
    with pytest.raises(ModelNotFoundError, match=r"model.path '.*cut.gguf': "):
        resolve_model(ModelConfig(path=str(damaged)))
    assert not list(own_cache.rglob("config.json"))
