from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

from export.config import ExportConfig, Quantization
from export.errors import UnsupportedArchitectureError
from export.export import ExportReport, export_gguf
from tests.fixtures_models import make_tiny_tokenizer
from tinydispatch.ggml.header import read_header
from tinydispatch.ggml.open import open_model


def _make(directory: Path, n_value_heads: int) -> Path:
    config = Qwen3_5TextConfig(
        vocab_size=408,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=n_value_heads,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    model = Qwen3_5ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "A_log" not in name:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    make_tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=[2, 6], ids=["as many value heads as keys", "three times as many"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    folder = tmp_path_factory.mktemp("qwen35")
    config = ExportConfig(quantizations=(Quantization.F32, Quantization.F16), max_verification_tokens=300)
    return export_gguf(_make(folder / "checkpoint", request.param), folder / "gguf", "tiny", config)


def test_a_hybrid_of_linear_and_full_attention_computes_the_same(report: ExportReport) -> None:
    full, half = (file.verification for file in report.files)
    assert read_header(report.files[0].path).architecture == "qwen35"
    assert full.logit_std > 0.5
    assert full.max_difference < 2e-3  # the cache holds 16 bits
    assert half.mean_difference < 0.01 * half.logit_std
    assert half.top1_agreement > 0.98


def test_a_recurrent_state_is_saved_and_restored(report: ExportReport) -> None:
    with open_model(report.files[1].path, 128) as model:
        model.decode(list(range(20, 60)))
        state = model.save_state()
        expected = model.decode([7])
        model.truncate(0)
        model.decode([9, 9, 9])
        model.load_state(state)
        np.testing.assert_array_equal(model.decode([7]), expected)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
        ({"linear_value_head_dim": 32}, "'linear_value_head_dim' is 32"),
        ({"layer_types": ["full_attention", *["linear_attention"] * 3]}, "'layer_types' is"),
    ],
)
def test_variants_that_the_graph_cannot_express_are_refused(
    report: ExportReport, tmp_path: Path, changes: dict[str, object], key: str
) -> None:
    config = json.loads((report.checkpoint / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | changes), "utf-8")
    with pytest.raises(UnsupportedArchitectureError, match=key):
        export_gguf(tmp_path, tmp_path / "gguf", "x", ExportConfig())
