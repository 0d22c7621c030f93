from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from export.checkpoint import check_architecture
from export.config import ExportConfig, Quantization, Tolerance
from export.errors import ExportError, UnsupportedArchitectureError, VerificationError
from export.export import export_gguf, sha256_of
from export.prompts import TOKENIZER_TEXTS
from export.verify import Reference, compare_logits, tokenizer_mismatches
from export.vocabulary import load_tokenizer
from tests.fixtures_gguf import tiny_export
from tests.fixtures_models import make_tiny_qwen3
from tinydispatch import formats
from tinydispatch.ggml.header import read_header
from tinydispatch.ggml.llama import LlamaModel

_F16_ONLY = ExportConfig(quantizations=(Quantization.F16,), max_verification_tokens=64)
# Text as users write it, and the pieces at which tokenizers part ways.
_PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from([*TOKENIZER_TEXTS, *formats.SPECIAL_TOKENS, "'LL", " 's", "\r\n", "  ", "007", "<|im_"]),
)


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return tiny_export().checkpoint


@pytest.fixture
def own_checkpoint(tmp_path: Path, checkpoint: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(checkpoint)


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaModel]:
    with LlamaModel(tiny_export().files[0].path, n_ctx=64) as opened:
        yield opened


def test_the_f16_file_computes_what_the_checkpoint_computes() -> None:
    verification = tiny_export().files[0].verification
    assert verification.n_positions > 500
    assert verification.logit_std > 1, "logits without spread would prove nothing"
    assert verification.max_difference < 2e-2
    assert verification.top1_agreement > 0.99


def test_the_q8_0_file_stays_close() -> None:
    verification = tiny_export().files[1].verification
    assert verification.mean_kl < 0.01
    assert verification.top1_agreement > 0.9


def test_the_report_names_files_that_are_there_with_their_hashes() -> None:
    report = tiny_export()
    folder = report.files[0].path.parent
    assert {path.name for path in folder.iterdir()} == {"tiny-f16.gguf", "tiny-q8_0.gguf", "tiny-export.json"}
    for file in report.files:
        assert sha256_of(file.path) == file.sha256
        assert file.path.stat().st_size == file.n_bytes
    assert json.loads((folder / "tiny-export.json").read_text("utf-8")) == report.to_json()


def test_the_same_checkpoint_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    again = export_gguf(checkpoint, tmp_path, "tiny", _F16_ONLY)
    assert again.files[0].sha256 == tiny_export().files[0].sha256


def test_the_file_says_what_servers_need() -> None:
    metadata = read_header(tiny_export().files[0].path).metadata
    assert metadata["general.architecture"] == "qwen3"
    assert metadata["tokenizer.ggml.pre"] == "qwen2"
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert metadata["tokenizer.chat_template"] == formats.default_chat_template()
    assert metadata["tinydispatch.template_hash"] == formats.template_hash(formats.default_chat_template())
    assert metadata["tokenizer.ggml.tokens"][metadata["tokenizer.ggml.eos_token_id"]] == formats.TURN_END
    assert metadata["qwen3.attention.key_length"] == 32
    assert metadata["qwen3.rope.freq_base"] == 10_000.0
    assert metadata["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


@given(pieces=st.lists(_PIECES, max_size=5))
@settings(max_examples=200, deadline=None)
def test_llama_cpp_and_the_checkpoint_tokenize_alike(
    model: LlamaModel, tokenizer: PreTrainedTokenizerBase, pieces: list[str]
) -> None:
    assert tokenizer_mismatches(model, tokenizer, ["".join(pieces)]) == []


def test_a_normalizing_tokenizer_is_reproduced(tmp_path: Path) -> None:
    path = make_tiny_qwen3(tmp_path / "checkpoint")
    file = path / "tokenizer.json"
    value = json.loads(file.read_text("utf-8"))
    value["normalizer"] = {"type": "NFC"}
    file.write_text(json.dumps(value), "utf-8")
    report = export_gguf(path, tmp_path / "gguf", "nfc", _F16_ONLY)  # its texts hold a decomposed é
    with LlamaModel(report.files[0].path, n_ctx=32) as model:
        assert model.tokenize("e\u0301", parse_special=True) == model.tokenize("é", parse_special=True)


def test_an_untied_output_head_and_bfloat16_weights_are_exported(own_checkpoint: Path, tmp_path: Path) -> None:
    file = own_checkpoint / "model.safetensors"
    weights = {name: weight.to(torch.bfloat16) for name, weight in load_file(file).items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(weights, file, {"format": "pt"})
    _edit_config(own_checkpoint, tie_word_embeddings=False)
    report = export_gguf(own_checkpoint, tmp_path / "gguf", "untied", _F16_ONLY)
    assert "output.weight" in {tensor.name for tensor in read_header(report.files[0].path).tensors}


def _edit_config(path: Path, **changes: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}), "utf-8")


def test_an_unknown_architecture_is_refused_by_name_with_what_is_supported(
    own_checkpoint: Path, tmp_path: Path
) -> None:
    _edit_config(own_checkpoint, architectures=["MambaForCausalLM"], model_type="mamba")
    with pytest.raises(UnsupportedArchitectureError) as caught:
        export_gguf(own_checkpoint, tmp_path / "gguf", "x", ExportConfig())
    assert str(caught.value).startswith(
        "GGUF export of MambaForCausalLM is not supported yet (supported: LlamaForCausalLM, "
    )
    assert str(caught.value).endswith(f"; the checkpoint is at {own_checkpoint}")
    assert not (tmp_path / "gguf").exists()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"attention_bias": True}, "'attention_bias' is True"),
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope_type' is 'yarn'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "'layer_types' is"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "'quantization_config'"),
    ],
)
def test_variants_that_the_graph_cannot_express_are_refused(
    own_checkpoint: Path, tmp_path: Path, changes: dict[str, object], key: str
) -> None:
    _edit_config(own_checkpoint, **changes)
    with pytest.raises(UnsupportedArchitectureError, match=key):
        export_gguf(own_checkpoint, tmp_path / "gguf", "x", ExportConfig())


def test_an_unmerged_adapter_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no checkpoint there"):
        check_architecture(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(ExportError, match="merge it into its base model"):
        check_architecture(tmp_path)


def test_missing_weights_are_named(own_checkpoint: Path, tmp_path: Path) -> None:
    file = own_checkpoint / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    weights["model.layers.1.mlp.router.weight"] = torch.zeros(2)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ExportError, match=r"lacks 1 weights: model\.layers\.1\.mlp\.up_proj\.weight"):
        export_gguf(own_checkpoint, tmp_path / "gguf", "x", ExportConfig())


def test_truncated_weights_are_refused(own_checkpoint: Path, tmp_path: Path) -> None:
    file = own_checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"model\.safetensors: damaged or truncated"):
        export_gguf(own_checkpoint, tmp_path / "gguf", "x", ExportConfig())


@pytest.mark.parametrize(("value", "problem"), [(float("nan"), "not finite"), (1e6, "beyond 65504")])
def test_weights_that_16_bits_cannot_hold_are_refused(
    own_checkpoint: Path, tmp_path: Path, value: float, problem: str
) -> None:
    file = own_checkpoint / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = value
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ExportError, match=rf"model\.layers\.0\.mlp\.up_proj\.weight holds values.*{problem}"):
        export_gguf(own_checkpoint, tmp_path / "gguf", "x", _F16_ONLY)
    assert list((tmp_path / "gguf").iterdir()) == []


def test_a_file_outside_its_tolerance_is_removed_and_the_old_one_stays(checkpoint: Path, tmp_path: Path) -> None:
    old = tmp_path / "tiny-f16.gguf"
    old.write_bytes(b"the previous export")
    strict = Tolerance(max_difference=1e-9, max_mean_kl=1.0, min_top1_agreement=0.0)
    with pytest.raises(VerificationError, match=r"a logit differs by .* \(allowed 1e-09 of it\).*export\.f16"):
        export_gguf(checkpoint, tmp_path, "tiny", _F16_ONLY.model_copy(update={"f16": strict}))
    assert old.read_bytes() == b"the previous export"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-f16.gguf"]


def test_a_tokenizer_that_llama_cpp_reads_otherwise_fails_the_export(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The wrong name for the splitting rules: digits would no longer stand alone.
    monkeypatch.setattr("export.vocabulary.pre_tokenizer_name", lambda *_: "gpt-2")
    with pytest.raises(VerificationError, match="texts are tokenized otherwise"):
        export_gguf(checkpoint, tmp_path, "tiny", _F16_ONLY)


def test_a_logit_that_is_no_number_is_outside_every_tolerance() -> None:
    broken = replace(tiny_export().files[0].verification, max_difference=float("nan"), mean_kl=float("nan"))
    assert len(broken.excesses(ExportConfig().f16)) == 2


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_how_wide_logits_lie_decides_what_a_difference_means(scale: float) -> None:
    measured = replace(tiny_export().files[0].verification, max_difference=0.4 * scale, logit_std=scale)
    limits = ExportConfig().f16
    assert not [line for line in measured.excesses(limits) if "a logit differs" in line]
    beyond = replace(measured, max_difference=0.6 * scale).excesses(limits)
    assert [line for line in beyond if "a logit differs" in line]


class _ManyLogits:
    """A model of 152,000 tokens that gives the same logits everywhere, which take no memory of their own."""

    row = np.random.default_rng(0).normal(size=152_000).astype(np.float32)

    def __init__(self) -> None:
        self.at_once: list[int] = []

    def truncate(self, n_positions: int) -> None:
        assert n_positions == 0

    def decode_all(self, ids: Sequence[int]) -> np.ndarray:
        self.at_once.append(len(ids))
        return np.broadcast_to(self.row, (len(ids), len(self.row)))


@pytest.mark.slow
def test_2048_positions_of_152000_logits_are_compared_in_little_memory() -> None:
    model = _ManyLogits()
    reference = Reference(tuple(range(2048)), np.broadcast_to(model.row, (2048, len(model.row))))
    tracemalloc.start()
    found = compare_logits(model, [reference])  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.n_positions, found.max_difference, found.top1_agreement) == (2048, 0.0, 1.0)
    assert peak < 200e6, "the logits of all positions are 1.2 GB"
    assert (sum(model.at_once), max(model.at_once)) == (2048, 256)


def test_prompts_without_any_token_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="hold no token"):
        export_gguf(checkpoint, tmp_path, "tiny", _F16_ONLY, prompts=[""])


def test_the_config_refuses_unknown_keys_and_repetitions() -> None:
    with pytest.raises(ValidationError, match="quantisations"):
        ExportConfig.model_validate({"quantisations": ["f16"]})
    with pytest.raises(ValidationError, match="listed twice"):
        ExportConfig.model_validate({"quantizations": ["f16", "f16"]})
    with pytest.raises(ValidationError, match="quantizations"):
        ExportConfig.model_validate({"quantizations": []})
