"""A checkpoint whose training moved its weights by less than 16 bits can hold."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from export import convert
from export.checkpoint import open_checkpoint
from export.config import ExportConfig, OptGraph, Quantization, Tolerance
from export.convert import half_weights
from export.errors import VerificationError
from export.export import export_gguf
from tests.fixtures_opt import make_tiny_opt, pre_norm_export

_F16 = ExportConfig(quantizations=(Quantization.F16,), max_verification_tokens=60)
_NO_OTHER_LIMIT = {"max_difference": 5.0, "max_mean_kl": 5.0, "min_top1_agreement": 0.0}


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OPT whose weights all lie just under half a step above a 16-bit number, as after a few steps of training."""
    path = make_tiny_opt(tmp_path_factory.mktemp("moved"))
    file = path / "model.safetensors"
    weights = load_file(file)
    for name, weight in weights.items():
        if weight.dim() > 1:
            half = weight.half()
            step = torch.nextafter(half, torch.full_like(half, torch.inf)).float() - half.float()
            weights[name] = half.float() + 0.49 * step
    save_file(weights, file, {"format": "pt"})
    return path


def _export(checkpoint: Path, out: Path, max_mean_difference: float) -> object:
    tolerance = Tolerance(max_mean_difference=max_mean_difference, **_NO_OTHER_LIMIT)
    return export_gguf(checkpoint, out, "x", _F16.model_copy(update={"f16": tolerance})).files[0]


def test_what_rounding_alone_explains_is_verified_against_the_rounded_weights_and_said(
    moved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wide = _export(moved, tmp_path / "wide", 1.0)
    assert wide.rounding is None
    share = wide.verification.mean_difference / wide.verification.logit_std
    with caplog.at_level(logging.WARNING, "export"):
        file = _export(moved, tmp_path / "narrow", 0.8 * share)
    assert file.path.is_file()
    assert file.verification.mean_difference == pytest.approx(wide.verification.mean_difference)
    assert file.rounding.mean_difference < 0.7 * file.verification.mean_difference
    assert "by less than 16-bit numbers can hold" in caplog.text
    assert "narrow" in caplog.text
    # The rounded weights are a yardstick of their own, not a way out.
    own = file.rounding.mean_difference / file.rounding.logit_std
    with pytest.raises(VerificationError, match="standard deviation"):
        _export(moved, tmp_path / "strict", 0.9 * own)


def test_a_wrong_file_is_not_excused_by_rounding(moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = convert._values

    def _with_one_wrong(tensor: convert.PlannedTensor, checkpoint: convert.Checkpoint) -> torch.Tensor:
        values = right(tensor, checkpoint)
        return values * 1.05 if tensor.name == "blk.1.ffn_down.weight" else values

    monkeypatch.setattr(convert, "_values", _with_one_wrong)
    with pytest.raises(VerificationError, match="does not compute what its checkpoint does"):
        _export(moved, tmp_path, 0.002)


def test_the_rounded_weights_are_those_that_the_file_holds_in_16_bits() -> None:
    checkpoint = open_checkpoint(pre_norm_export(OptGraph.GPT2).checkpoint)
    halves = half_weights(checkpoint, _F16)
    assert halves["model.decoder.layers.0.fc1.weight"] == 256.0
    assert halves["model.decoder.layers.0.fc2.weight"] == 1.0
    assert "model.decoder.embed_positions.weight" not in halves
    assert not any(name.endswith("bias") or "layer_norm" in name for name in halves)
