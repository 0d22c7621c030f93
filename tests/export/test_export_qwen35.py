from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from export.config import ExportConfig, Quantization
from export.errors import UnsupportedArchitectureError
from export.export import ExportReport, export_gguf
from tests.fixtures_models import make_tiny_qwen35
from tinydispatch.ggml.header import read_header
from tinydispatch.ggml.open import open_model


@pytest.fixture(scope="module", params=[2, 6], ids=["as many value heads as keys", "three times as many"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    folder = tmp_path_factory.mktemp("qwen35")
    config = ExportConfig(quantizations=(Quantization.F32, Quantization.F16), max_verification_tokens=300)
    return export_gguf(make_tiny_qwen35(folder / "checkpoint", request.param), folder / "gguf", "tiny", config)


def test_a_hybrid_of_linear_and_full_attention_computes_the_same(report: ExportReport) -> None:
    full, half = (file.verification for file in report.files)
    assert read_header(report.files[0].path).architecture == "qwen35"
    assert full.logit_std > 0.5
    assert full.max_difference < 2e-4
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
