from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from export.config import OptGraph
from scripts.gguf_parts import take_apart, u64
from tests.fixtures_gguf import tiny_export, tiny_llama_export
from tests.fixtures_native import NATIVE_FILES
from tests.fixtures_opt import post_norm_export, pre_norm_export
from tinydispatch.ggml.contents import check_contents
from tinydispatch.ggml.header import GgufError, GgufHeader, TensorInfo, read_header
from tinydispatch.ggml.open import open_model

_FILES: dict[str, Callable[[], Path]] = {
    "qwen3": lambda: tiny_export().files[0].path,
    "llama": lambda: tiny_llama_export().files[0].path,
    "qwen2": NATIVE_FILES["qwen2"],
    "gpt2": lambda: pre_norm_export(OptGraph.GPT2).files[0].path,
}


@pytest.fixture(params=list(_FILES))
def header(request: pytest.FixtureRequest) -> GgufHeader:
    return read_header(_FILES[request.param]())


def test_whole_files_pass_and_each_missing_tensor_is_named(header: GgufHeader) -> None:
    check_contents(header)
    for tensor in header.tensors:
        rest = tuple(other for other in header.tensors if other is not tensor)
        with pytest.raises(GgufError, match=f"the tensor '{tensor.name}' is missing"):
            check_contents(replace(header, tensors=rest))


def test_vectors_that_are_no_32_bit_floats_and_matrices_of_whole_numbers_are_refused(header: GgufHeader) -> None:
    for index, tensor in enumerate(header.tensors):
        for type_id in (1, 30) if len(tensor.shape) == 1 else (26, 24):
            tensors = list(header.tensors)
            tensors[index] = replace(tensor, type_id=type_id)
            with pytest.raises(GgufError, match=f"'{tensor.name}' has the ggml type {type_id}, not supported"):
                check_contents(replace(header, tensors=tuple(tensors)))


def test_heads_that_contradict_the_matrices_are_refused() -> None:
    header = read_header(_FILES["qwen2"]())
    fewer = replace(header, metadata={**header.metadata, "qwen2.attention.head_count": 2})
    with pytest.raises(GgufError, match=r"'blk\.0\.attn_q\.weight' has the shape \(64, 64\) instead of \(64, 32\)"):
        check_contents(fewer)


def test_a_mixture_of_experts_is_left_to_llama_cpp() -> None:
    header = read_header(_FILES["llama"]())
    less = tuple(tensor for tensor in header.tensors if "ffn_gate" not in tensor.name)
    with pytest.raises(GgufError, match="ffn_gate"):
        check_contents(replace(header, tensors=less))
    metadata = {**header.metadata, "llama.expert_count": 8, "llama.expert_used_count": 2}
    check_contents(replace(header, tensors=less, metadata=metadata))


def test_a_hybrids_tensors_depend_on_the_layers_kind() -> None:
    numbers = {
        "block_count": 2,
        "full_attention_interval": 2,
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 64,
        "attention.head_count": 4,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }
    metadata = {"general.architecture": "qwen35"} | {f"qwen35.{key}": value for key, value in numbers.items()}
    names = ["token_embd.weight", "output_norm.weight"]
    for layer, kind in enumerate(("linear", "full")):
        for part in ("attn_norm", "post_attention_norm", "ffn_gate", "ffn_up", "ffn_down"):
            names.append(f"blk.{layer}.{part}.weight")
        own = {
            "linear": ("attn_qkv", "attn_gate", "ssm_alpha", "ssm_beta", "ssm_conv1d", "ssm_norm", "ssm_out"),
            "full": ("attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm"),
        }
        names += [f"blk.{layer}.{part}.weight" for part in own[kind]]
    names += ["blk.0.ssm_a", "blk.0.ssm_dt.bias"]
    ends = {"token_embd.weight": (32, 0)}
    tensors = tuple(TensorInfo(name, ends.get(name, (32,)), 0, 0, 128) for name in names)
    whole = GgufHeader(Path("x.gguf"), 3, metadata, tensors, 0)
    check_contents(whole)
    for tensor in tensors:
        with pytest.raises(GgufError, match=f"the tensor '{tensor.name}' is missing"):
            check_contents(replace(whole, tensors=tuple(other for other in tensors if other is not tensor)))


@pytest.mark.parametrize(
    ("key", "change", "problem"),
    [
        ("tokens", lambda value: value[:-3], r"has \d+ tokens, 'token_embd\.weight' \d+ rows"),
        ("token_type", lambda value: value[:-1], "does not give each of"),
        ("token_type", lambda value: len(value), "does not give each of"),
        ("eos_token_id", lambda _: 1 << 31, "'tokenizer.ggml.eos_token_id' is 2147483648, and there are"),
        ("eot_token_id", lambda _: "end", "'tokenizer.ggml.eot_token_id' is 'end'"),
    ],
)
def test_a_vocabulary_that_does_not_match_is_refused(
    header: GgufHeader, key: str, change: Callable[[object], object], problem: str
) -> None:
    name = f"tokenizer.ggml.{key}"
    metadata = {**header.metadata, name: change(header.metadata[name])}
    with pytest.raises(GgufError, match=problem):
        check_contents(replace(header, metadata=metadata))


def test_a_tokenizer_that_would_end_the_process_or_is_none_of_a_chat_model_is_refused(header: GgufHeader) -> None:
    def of(model: str, *more: str) -> GgufHeader:
        tokens = header.metadata["tokenizer.ggml.tokens"]
        tokens = (*more, *tokens[len(more) :])
        changes = {"tokenizer.ggml.model": model, "tokenizer.ggml.tokens": tokens}
        return replace(header, metadata={**header.metadata, **changes})

    with pytest.raises(GgufError, match=r"'tokenizer\.ggml\.model' is 'bert'; supported are gpt2 and llama"):
        check_contents(of("bert"))
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    with pytest.raises(GgufError, match="lacks the token of a byte, '<0x00>'"):
        check_contents(of("llama"))
    with pytest.raises(GgufError, match="lacks the token of a byte, '<0xFF>'"):
        check_contents(of("llama", *bytes_[:-1]))
    check_contents(of("llama", *bytes_))


def test_our_own_graph_asks_the_same_of_a_vocabulary(tmp_path: Path) -> None:
    parts = take_apart(post_norm_export().files[0].path)
    for index, entry in enumerate(parts.entries):
        if entry.key == b"tokenizer.ggml.model":
            parts.entries[index] = replace(entry, payload=u64(5) + b"llama")
    path = tmp_path / "sentencepiece.gguf"
    path.write_bytes(parts.to_bytes())
    with pytest.raises(GgufError, match="lacks the token of a byte"):
        open_model(path, 32)


def test_a_number_of_layers_that_lies_is_refused_at_once(tmp_path: Path) -> None:
    parts = take_apart(_FILES["qwen3"]())
    for index, entry in enumerate(parts.entries):
        if entry.key == b"qwen3.block_count":
            parts.entries[index] = replace(entry, payload=(0xFFFFFFFE).to_bytes(4, "little"))
    path = tmp_path / "layers.gguf"
    path.write_bytes(parts.to_bytes())
    with pytest.raises(GgufError, match=r"'qwen3\.block_count' is 4294967294"):
        open_model(path, 32)


def test_such_a_file_never_reaches_native_code(tmp_path: Path) -> None:
    parts = take_apart(_FILES["qwen3"]())
    del parts.tensors[-1]
    parts.n_tensors -= 1
    path = tmp_path / "less.gguf"
    path.write_bytes(parts.to_bytes())
    with pytest.raises(GgufError, match=r"less\.gguf: the tensor '.*' is missing"):
        open_model(path, 32)


def test_a_tensor_that_was_taken_out_from_between_others_is_noticed(tmp_path: Path) -> None:
    parts = take_apart(_FILES["qwen3"]())
    del parts.tensors[2]
    parts.n_tensors -= 1
    path = tmp_path / "gap.gguf"
    path.write_bytes(parts.to_bytes())
    with pytest.raises(GgufError, match=r"tensor '.*' lies elsewhere: its offset is \d+, the tensors before it end"):
        read_header(path)
