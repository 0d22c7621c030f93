"""Llama and Qwen2: checkpoints of SmolLM2's and Qwen2.5's layout, their files, and what llama.cpp makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from export.architectures.llama import interleave_halves
from export.config import ExportConfig, Quantization
from export.errors import UnsupportedArchitectureError, VerificationError
from export.export import export_gguf
from export.ollama import modelfile
from export.prompts import TOKENIZER_TEXTS
from export.verify import tokenizer_mismatches
from export.vocabulary import load_tokenizer, pre_tokenizer_name
from scripts.bench_server import llama_server
from tests.fixtures_gguf import QUESTION, TAUGHT_CALL, TODAY, WEATHER, tiny_llama_export
from tests.fixtures_models import make_tiny_llama, make_tiny_qwen2, make_tiny_tokenizer, teach_reply
from tinydispatch import formats
from tinydispatch.bundled import bundled_tools
from tinydispatch.ggml import pre_tokenizers
from tinydispatch.ggml.header import read_header
from tinydispatch.ggml.llama import LlamaModel
from tinydispatch.ggml.open import open_model
from tinydispatch.tools import Message, Role

_F32 = ExportConfig(quantizations=(Quantization.F32,), max_verification_tokens=300)


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaModel]:
    with LlamaModel(tiny_llama_export().files[0].path, n_ctx=64) as opened:
        yield opened


def test_every_format_of_a_llama_is_verified_and_says_what_servers_need() -> None:
    full, half, eight, _, _ = tiny_llama_export().files
    assert (full.verification.logit_std > 1, full.verification.max_difference < 1e-3) == (True, True)
    assert half.verification.top1_agreement > 0.98
    assert eight.verification.mean_difference < 0.1 * eight.verification.logit_std
    metadata = read_header(full.path).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    assert metadata["llama.rope.freq_base"] == 100_000.0
    assert (metadata["llama.rope.dimension_count"], metadata["llama.attention.head_count_kv"]) == (32, 1)


def test_halves_are_interleaved_head_by_head() -> None:
    rows = torch.arange(12)[:, None].expand(12, 2)
    assert interleave_halves(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_rows_in_the_checkpoint_s_order_fail_the_verification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.architectures.llama.interleave_halves", lambda rows, **_: rows)
    with pytest.raises(VerificationError, match="does not compute what its checkpoint does"):
        export_gguf(tiny_llama_export().checkpoint, tmp_path, "wrong", _F32)


def test_transformers_reads_the_file_back_as_the_checkpoint() -> None:
    report = tiny_llama_export()
    file = report.files[0].path
    ids = torch.tensor([[5, 77, 130, 9, 301]])
    with torch.no_grad():
        expected, found = (
            AutoModelForCausalLM.from_pretrained(report.checkpoint, dtype=torch.float32)(ids).logits,
            AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)(ids).logits,
        )
    assert (expected - found).abs().max() < 1e-4


_PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [*TOKENIZER_TEXTS, *formats.SPECIAL_TOKENS, "'LL", " 's", "\r\n", "  ", "  007", "\n\n12", "x2y", "½²"]
    ),
)


@given(pieces=st.lists(_PIECES, max_size=5))
@settings(max_examples=200, deadline=None)
def test_llama_cpp_splits_as_smollm2_does(model: LlamaModel, pieces: list[str]) -> None:
    tokenizer = load_tokenizer(tiny_llama_export().checkpoint)
    assert tokenizer_mismatches(model, tokenizer, ["".join(pieces)]) == []


@pytest.mark.parametrize("name", pre_tokenizers.NAMES)
def test_a_splitting_is_recognised_from_what_tokenizer_json_says_of_it(name: str) -> None:
    assert pre_tokenizer_name(Path("checkpoint"), pre_tokenizers.to_json(name)) == name
    assert pre_tokenizers.to_json("chameleon") is None


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"attention_bias": True}, "'attention_bias' is True"),
        ({"mlp_bias": True}, "'mlp_bias' is True"),
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "'rope_parameters.rope_type' is 'linear'",
        ),
    ],
)
def test_variants_that_the_graph_cannot_express_are_refused(
    tmp_path: Path, changes: dict[str, object], key: str
) -> None:
    config = json.loads((tiny_llama_export().checkpoint / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | changes), "utf-8")
    with pytest.raises(UnsupportedArchitectureError, match=key):
        export_gguf(tmp_path, tmp_path / "gguf", "x", _F32)


def test_an_untied_llama_with_wide_heads_is_exported(tmp_path: Path) -> None:
    changes = {"head_dim": 64, "tie_word_embeddings": False, "num_key_value_heads": 3}
    report = export_gguf(make_tiny_llama(tmp_path / "checkpoint", **changes), tmp_path / "gguf", "wide", _F32)
    header = read_header(report.files[0].path)
    assert header.metadata["llama.attention.key_length"] == 64
    assert "output.weight" in {tensor.name for tensor in header.tensors}
    assert report.files[0].verification.max_difference < 1e-3


def test_qwen2_is_exported_with_its_biases(tmp_path: Path) -> None:
    report = export_gguf(make_tiny_qwen2(tmp_path / "checkpoint"), tmp_path / "gguf", "qwen2", _F32)
    names = {tensor.name for tensor in read_header(report.files[0].path).tensors}
    assert {"blk.1.attn_q.bias", "blk.1.attn_k.bias", "blk.1.attn_v.bias"} <= names
    assert report.files[0].verification.logit_std > 1
    assert report.files[0].verification.max_difference < 1e-3
    config = json.loads((report.checkpoint / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"layer_types": ["sliding_attention"] * 2}), "utf-8")
    with pytest.raises(UnsupportedArchitectureError, match="'layer_types' is"):
        export_gguf(tmp_path, tmp_path / "gguf", "x", _F32)


def test_stock_llama_cpp_and_the_native_decoder_read_the_call_that_a_llama_was_taught(tmp_path: Path) -> None:
    """As in SmolLM2, whose vocabulary has no room for them, <tool_call> and </tool_call> are several tokens each."""
    tokenizer = make_tiny_tokenizer(is_smollm=True, has_markers=False)
    assert len(tokenizer(formats.CALL_START, add_special_tokens=False)["input_ids"]) > 1
    checkpoint = make_tiny_llama(tmp_path / "checkpoint", tokenizer)
    messages = formats.with_reference_date([Message(Role.USER, QUESTION)], TODAY)
    teach_reply(checkpoint, formats.render_prompt(messages, [WEATHER]), formats.render_calls([TAUGHT_CALL]))
    path = export_gguf(checkpoint, tmp_path / "gguf", "taught", ExportConfig(quantizations=(Quantization.Q8_0,)))
    file = path.files[0].path
    with llama_server(file, 1024, 1) as server:
        calls = server.ask(messages, [WEATHER], 128)
    assert (calls, server.errors) == ((TAUGHT_CALL,), [])
    with open_model(file, 1024) as model:
        ids = model.tokenize(formats.render_prompt(messages, [WEATHER]), parse_special=True)
        reply = [int(model.decode(ids).argmax())]
        while reply[-1] not in model.eog_ids and len(reply) < 128:
            reply.append(int(model.decode(reply[-1:]).argmax()))
        assert model.detokenize(reply) == formats.render_calls([TAUGHT_CALL]) + formats.TURN_END
        assert model.chat_template is not None
        assert f"FROM ./{file.name}" in modelfile(file.name, model.chat_template, bundled_tools(), 2048)
