from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from export.config import ExportConfig, Quantization
from export.errors import ExportError
from export.export import export_gguf
from export.merge import merge_adapter
from tests.fixtures_models import make_tiny_qwen3, make_tiny_tokenizer


def _make_adapter(base: Path, path: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(path)
    make_tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen3(tmp_path_factory.mktemp("base"), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make_adapter(base, tmp_path_factory.mktemp("adapter"))


def test_a_merged_model_computes_base_plus_adapter_in_the_bases_format(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    report = merge_adapter(adapter, tmp_path / "merged")
    assert report.dtype == "bfloat16"
    assert report.base == str(base)
    assert report.mean_logit_difference < 0.05 * report.logit_std
    merged = AutoModelForCausalLM.from_pretrained(report.path, dtype="auto")
    original = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    assert merged.dtype is torch.bfloat16
    ids = torch.tensor([[5, 6, 7]])
    assert (merged(ids).logits - original(ids).logits).abs().max() > 0.5, "the adapter changed nothing"


def test_a_merged_model_exports(adapter: Path, tmp_path: Path) -> None:
    merged = merge_adapter(adapter, tmp_path / "merged").path
    config = ExportConfig(quantizations=(Quantization.F16,), max_verification_tokens=64)
    assert export_gguf(merged, tmp_path / "gguf", "merged", config).files[0].path.is_file()


def test_a_missing_adapter_or_base_is_named(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"adapter_config\.json: no adapter there"):
        merge_adapter(tmp_path, tmp_path / "merged")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}), "utf-8")
    with pytest.raises(ExportError, match="names no base model"):
        merge_adapter(tmp_path, tmp_path / "merged")
    with pytest.raises(ExportError, match=r"absent' cannot be loaded; give a local path"):
        merge_adapter(adapter, tmp_path / "merged", base=tmp_path / "absent")
    assert not (tmp_path / "merged").exists()
