from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import OPTForCausalLM

from export.config import ExportConfig, OptGraph, Quantization
from export.export import ExportReport, export_gguf
from tests.fixtures_gguf import tiny_export
from tests.fixtures_opt import make_tiny_opt, post_norm_export, pre_norm_export
from tinydispatch import formats
from tinydispatch.ggml.architectures import read_shape
from tinydispatch.ggml.header import GgufError, GgufHeader, read_header
from tinydispatch.ggml.library import load_library
from tinydispatch.ggml.llama import LlamaModel
from tinydispatch.ggml.open import open_model
from tinydispatch.ggml.opt import OptModel
from tinydispatch.ggml.weights import MappedWeights


def _ids(count: int) -> list[int]:
    return np.random.default_rng(count).integers(0, 320, count).tolist()


@pytest.fixture(scope="module")
def model() -> Iterator[OptModel]:
    with OptModel(post_norm_export().files[0].path, n_ctx=1024) as opened:
        yield opened


@pytest.mark.parametrize("report", [post_norm_export, lambda: pre_norm_export(OptGraph.OPT)], ids=["350m", "125m"])
def test_the_graph_computes_what_transformers_computes(report: Any) -> None:
    exported: ExportReport = report()
    reference = OPTForCausalLM.from_pretrained(exported.checkpoint, dtype=torch.float32).eval()
    with OptModel(exported.files[0].path, n_ctx=1024) as full, OptModel(exported.files[1].path, n_ctx=1024) as half:
        for count in (1, 7, 300, 1024):
            ids = _ids(count)
            with torch.no_grad():
                expected = reference(torch.tensor([ids])).logits[0].numpy()
            for model, tolerance in ((full, 1e-4), (half, 2e-2)):
                model.truncate(0)
                assert np.abs(model.decode_all(ids) - expected).max() < tolerance


def test_decoding_at_once_and_one_by_one_give_the_same_logits(model: OptModel) -> None:
    ids = _ids(600)  # more than a batch, and over two steps of the cache that attention sees
    model.truncate(0)
    at_once = model.decode_all(ids)
    model.truncate(0)
    last = model.decode(ids)
    model.truncate(0)
    model.decode(ids[:250])
    one_by_one = np.stack([model.decode([token]) for token in ids[250:530]])
    np.testing.assert_allclose(one_by_one, at_once[250:530], atol=2e-5)
    np.testing.assert_allclose(last, at_once[-1], atol=2e-5)


@given(pieces=st.lists(st.integers(1, 20), min_size=1, max_size=6), keep=st.integers(0, 40))
@settings(max_examples=30, deadline=None)
def test_batches_of_any_size_after_any_truncation_agree(model: OptModel, pieces: list[int], keep: int) -> None:
    ids = _ids(120)
    model.truncate(0)
    model.decode([5] * 60)
    model.truncate(0)
    expected = model.decode_all(ids[: sum(pieces)])[-1]
    model.truncate(keep)
    start = len(model.cached_ids)
    if start >= sum(pieces):
        model.truncate(0)
        start = 0
    for size in pieces:
        if chunk := ids[start : start + size][: sum(pieces) - start]:
            actual = model.decode(chunk)
            start += len(chunk)
    if rest := ids[start : sum(pieces)]:
        actual = model.decode(rest)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_more_threads_compute_the_same() -> None:
    path = post_norm_export().files[2].path
    with OptModel(path, n_ctx=64, threads=1) as one, OptModel(path, n_ctx=64, threads=2) as two:
        np.testing.assert_allclose(two.decode(_ids(40)), one.decode(_ids(40)), atol=1e-4)


def test_our_graph_and_llama_cpps_gpt2_answer_alike_on_layer_norm_before_attention() -> None:
    ids = _ids(200)
    ours, theirs = pre_norm_export(OptGraph.OPT).files[0].path, pre_norm_export(OptGraph.GPT2).files[0].path
    with open_model(ours, 256) as one, open_model(theirs, 256) as other:
        assert (type(one), type(other)) == (OptModel, LlamaModel)
        np.testing.assert_allclose(one.decode_all(ids), other.decode_all(ids), atol=5e-3)
        assert one.tokenize("Zoë's 3 cafés", parse_special=True) == other.tokenize("Zoë's 3 cafés", parse_special=True)


def test_the_tokenizer_comes_from_the_file(model: OptModel) -> None:
    text = "What's the weather in Oslo? \n\n  Zoë 12.50"
    assert model.detokenize(model.tokenize(text, parse_special=False)) == text
    assert [model.eos_id] == model.tokenize(formats.TURN_END, parse_special=True)
    assert model.eog_ids >= {model.eos_id}
    assert model.chat_template == formats.default_chat_template()
    assert formats.TURN_START in model.control_tokens
    assert formats.CALL_START in model.marker_tokens


def test_what_does_not_fit_the_learned_positions_is_refused() -> None:
    with OptModel(post_norm_export().files[1].path, n_ctx=1 << 20) as model:
        assert model.n_ctx == 1024
        model.decode(_ids(1024))
        with pytest.raises(ValueError, match="do not fit the context of 1024"):
            model.decode([1])


def test_a_closed_model_says_so() -> None:
    model = OptModel(post_norm_export().files[0].path, n_ctx=32)
    model.decode([1, 2])
    model.close()
    model.close()
    with pytest.raises(ValueError, match="the model is closed"):
        model.decode([1])


def test_k_quants_run_where_rows_divide_into_their_blocks(tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "ffn_dim": 256, "word_embed_proj_dim": 256, "num_hidden_layers": 4}
    checkpoint = make_tiny_opt(tmp_path / "checkpoint", **sizes)
    config = ExportConfig(quantizations=(Quantization.Q5_K_M, Quantization.Q4_K_M), max_verification_tokens=64)
    report = export_gguf(checkpoint, tmp_path, "k", config)
    for file, base in zip(report.files, (13, 12), strict=True):
        types = {tensor.name: tensor.type_id for tensor in read_header(file.path).tensors}
        assert types["blk.0.attn_q.weight"] == base
        assert types["token_embd.weight"] == types["blk.2.ffn_down.weight"] == types["blk.3.attn_v.weight"] == 14
        assert types["blk.1.ffn_down.weight"] == base
        assert file.verification.mean_difference < 0.2 * file.verification.logit_std


def _without(header: GgufHeader, name: str) -> GgufHeader:
    return replace(header, tensors=tuple(tensor for tensor in header.tensors if tensor.name != name))


def _edited(header: GgufHeader, edited_name: str, **changes: Any) -> GgufHeader:
    edited = [replace(tensor, **changes) if tensor.name == edited_name else tensor for tensor in header.tensors]
    return replace(header, tensors=tuple(edited))


def _with(header: GgufHeader, changes: Mapping[str, object]) -> GgufHeader:
    return replace(header, metadata={**header.metadata, **changes})


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda h: _without(h, "blk.1.ffn_up.weight"), "the tensor 'blk.1.ffn_up.weight' is missing"),
        (lambda h: _without(h, "blk.0.layer_output_norm.bias"), "layer_output_norm.bias' is missing"),
        (lambda h: _without(h, "project_out.weight"), "'project_out.weight' is missing"),
        (lambda h: _without(h, "token_embd.weight"), "'token_embd.weight' is missing"),
        (lambda h: _edited(h, "project_in.weight", shape=(32, 63)), r"'project_in.weight' has the shape \(32, 63\)"),
        (lambda h: _edited(h, "blk.0.attn_q.weight", type_id=20), "has the ggml type 20, not supported here"),
        (lambda h: _edited(h, "blk.0.attn_q.bias", type_id=1), "'blk.0.attn_q.bias' has the ggml type 1"),
        (lambda h: _edited(h, "blk.2.attn_k.bias", name="surprise"), "1 tensors that no opt graph reads: surprise"),
        (lambda h: _with(h, {"opt.block_count": 1 << 40}), "'opt.block_count' must be a whole number"),
        (lambda h: _with(h, {"opt.block_count": 4}), "'blk.3.attn_q.weight' is missing"),
        (lambda h: _with(h, {"opt.attention.head_count": 5}), "a width of 64 cannot be shared by 5"),
        (lambda h: _with(h, {"opt.attention.layer_norm_epsilon": float("nan")}), "must be a number from 0 to 1"),
        (lambda h: _with(h, {"opt.context_length": 2048}), "'position_embd.weight' has the shape"),
        (lambda h: _with(h, {"opt.hidden_activation": "tanh"}), "'tanh', not one of relu, gelu"),
        (lambda h: _with(h, {"tokenizer.ggml.tokens": ("a", "b")}), "has 2 tokens, 'token_embd.weight' 320 rows"),
        (lambda h: _with(h, {"tokenizer.ggml.tokens": 7}), "'tokenizer.ggml.tokens' or"),
    ],
)
def test_a_file_that_native_code_would_abort_on_is_refused_by_name(edit: Any, problem: str) -> None:
    with pytest.raises(GgufError, match=problem):
        read_shape(edit(read_header(post_norm_export().files[1].path)))


def test_the_right_file_passes_the_same_check() -> None:
    shape = read_shape(read_header(post_norm_export().files[1].path))
    assert (shape.width, shape.embedding_width, shape.is_pre_norm, shape.has_final_norm) == (64, 32, False, False)


def test_a_file_that_shrank_after_its_check_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shrinking.gguf"
    content = post_norm_export().files[1].path.read_bytes()
    path.write_bytes(content)
    header = read_header(path)
    path.write_bytes(content[:-4096])
    with pytest.raises(GgufError, match="changed since it was checked"):
        MappedWeights(load_library().c, header)


def test_another_architecture_is_no_opt() -> None:
    with pytest.raises(GgufError, match="its architecture is 'qwen3', and this graph is OPT's"):
        OptModel(tiny_export().files[0].path, 32)
    header = read_header(tiny_export().files[0].path)
    with pytest.raises(GgufError, match="its architecture 'mamba' is none of llama, qwen2,"):
        read_shape(replace(header, metadata={**header.metadata, "general.architecture": "mamba"}))
