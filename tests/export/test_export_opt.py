from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import OPTForCausalLM, PreTrainedTokenizerBase

from export.config import ExportConfig, OptGraph, Quantization
from export.errors import UnsupportedArchitectureError
from export.export import export_gguf
from export.prompts import TOKENIZER_TEXTS
from export.verify import tokenizer_mismatches
from export.vocabulary import load_tokenizer
from tests.fixtures_opt import make_tiny_opt, post_norm_export, pre_norm_export
from tinydispatch import formats
from tinydispatch.ggml.header import read_header
from tinydispatch.ggml.model import GgufModel
from tinydispatch.ggml.open import open_model

_PRE_NORM = {"do_layer_norm_before": True, "word_embed_proj_dim": 64}
_F32_ONLY = ExportConfig(quantizations=(Quantization.F32,), max_verification_tokens=100)


def test_each_layout_gets_the_architecture_that_can_compute_it() -> None:
    assert read_header(post_norm_export().files[0].path).architecture == "opt"
    assert read_header(pre_norm_export(OptGraph.AUTO).files[0].path).architecture == "gpt2"
    assert read_header(pre_norm_export(OptGraph.OPT).files[0].path).architecture == "opt"


def test_every_file_was_verified_on_logits_that_spread() -> None:
    for report in (post_norm_export(), pre_norm_export(OptGraph.AUTO), pre_norm_export(OptGraph.OPT)):
        full, half, eighth = (file.verification for file in report.files)
        assert full.logit_std > 0.5
        assert full.max_difference < 1e-4
        assert half.max_difference < 2e-2
        assert eighth.mean_difference < 0.03 * eighth.logit_std


def _greedy(model: GgufModel, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    logits = model.decode(ids)
    for _ in range(count):
        ids.append(int(np.argmax(logits)))
        logits = model.decode(ids[-1:])
    return ids[len(prompt) :]


def test_stock_llama_cpp_writes_the_same_tokens_as_transformers() -> None:
    report = pre_norm_export(OptGraph.GPT2)
    prompt = np.random.default_rng(1).integers(4, 300, 50).tolist()
    reference = OPTForCausalLM.from_pretrained(report.checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        settings_ = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
        expected = reference.generate(torch.tensor([prompt]), **settings_)[0, 50:].tolist()
    for file in report.files[:2]:
        with open_model(file.path, 128) as model:
            assert _greedy(model, prompt, 40) == expected


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"activation_function": "gelu"}, id="gelu"),
        pytest.param({"enable_bias": False, "layer_norm_elementwise_affine": False}, id="no biases, plain norms"),
        pytest.param({"tie_word_embeddings": False}, id="a head of its own"),
    ],
)
@pytest.mark.parametrize("graph", [OptGraph.OPT, OptGraph.GPT2])
def test_variants_compute_the_same_under_both_architectures(
    tmp_path: Path, changes: dict[str, object], graph: OptGraph
) -> None:
    checkpoint = make_tiny_opt(tmp_path / "checkpoint", **_PRE_NORM, **changes)
    config = _F32_ONLY.model_copy(update={"opt_graph": graph})
    verification = export_gguf(checkpoint, tmp_path / "gguf", "x", config).files[0].verification
    # llama.cpp looks GELU up in a table of 16-bit numbers.
    is_looked_up = graph is OptGraph.GPT2 and changes.get("activation_function") == "gelu"
    assert verification.max_difference < (5e-3 if is_looked_up else 2e-4)
    assert verification.logit_std > 0.5


def test_a_model_without_final_norm_falls_back_to_our_graph(tmp_path: Path) -> None:
    checkpoint = make_tiny_opt(tmp_path / "checkpoint", **_PRE_NORM, _remove_final_layer_norm=True)
    report = export_gguf(checkpoint, tmp_path / "gguf", "x", _F32_ONLY)
    assert read_header(report.files[0].path).architecture == "opt"
    assert report.files[0].verification.max_difference < 1e-4


def test_gpt2_is_refused_where_it_cannot_compute_the_model(tmp_path: Path) -> None:
    config = _F32_ONLY.model_copy(update={"opt_graph": OptGraph.GPT2})
    with pytest.raises(UnsupportedArchitectureError, match=r"'export\.opt_graph' is gpt2.*'do_layer_norm_before'"):
        export_gguf(post_norm_export().checkpoint, tmp_path, "x", config)
    assert list(tmp_path.iterdir()) == []


def test_an_activation_that_no_graph_has_is_refused(tmp_path: Path) -> None:
    checkpoint = make_tiny_opt(tmp_path / "checkpoint")
    file = checkpoint / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"activation_function": "silu"}), "utf-8")
    with pytest.raises(UnsupportedArchitectureError, match="'activation_function' is 'silu'"):
        export_gguf(checkpoint, tmp_path / "gguf", "x", _F32_ONLY)


_PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from([*TOKENIZER_TEXTS, *formats.SPECIAL_TOKENS, "</s>", "<s>", "'LL", " 's", "\r\n", "007", "<|im_"]),
)


@pytest.fixture(scope="module")
def model() -> Iterator[GgufModel]:
    with open_model(post_norm_export().files[1].path, 32) as opened:
        yield opened


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(post_norm_export().checkpoint)


@given(pieces=st.lists(_PIECES, max_size=5))
@settings(max_examples=150, deadline=None)
def test_opts_tokenizer_is_the_same_through_llama_cpp(
    model: GgufModel, tokenizer: PreTrainedTokenizerBase, pieces: list[str]
) -> None:
    assert tokenizer_mismatches(model, tokenizer, ["".join(pieces)]) == []


def test_our_special_tokens_are_one_id_each_in_rows_that_no_word_uses(model: GgufModel) -> None:
    ids = [model.tokenize(token, parse_special=True) for token in formats.SPECIAL_TOKENS]
    assert ids == [[row] for row in range(320 - len(formats.SPECIAL_TOKENS), 320)]


def test_the_runtime_needs_no_torch() -> None:
    path = post_norm_export().files[1].path
    code = (
        "import sys; from pathlib import Path; from tinydispatch.ggml.open import open_model\n"
        f"model = open_model(Path({str(path)!r}), 32); model.decode([1, 2, 3]); model.close()\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'gguf')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
