from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from export.config import OptGraph
from tests.fixtures_gguf import tiny_export, tiny_llama_export
from tests.fixtures_opt import pre_norm_export
from tinydispatch.ggml.header import GgufError, read_header
from tinydispatch.ggml.numbers import check_numbers


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),
        ("block_count", 513),
        ("embedding_length", 0),
        ("attention.head_count", 0),
        ("attention.head_count_kv", 5),
        ("attention.key_length", 31),
        ("attention.value_length", 64),
        ("rope.dimension_count", 16),
        ("rope.freq_base", float("nan")),
        ("rope.scaling.type", "sideways"),
        ("attention.layer_norm_rms_epsilon", -1e-6),
        ("feed_forward_length", -1),
        ("expert_used_count", 2),
        ("expert_count", 4),
        ("nextn_predict_layers", 3),
    ],
)
def test_numbers_on_which_llama_cpp_would_abort_are_refused_by_name(key: str, value: object) -> None:
    for report in (tiny_export(), tiny_llama_export()):
        header = read_header(report.files[0].path)
        architecture = header.architecture
        damaged = replace(header, metadata={**header.metadata, f"{architecture}.{key}": value})
        with pytest.raises(GgufError, match=rf"'{architecture}\.[a-z_.]+' is .*impossible or contradicts"):
            check_numbers(damaged)


def test_heads_of_width_one_are_refused() -> None:
    header = read_header(pre_norm_export(OptGraph.GPT2).files[0].path)
    width = header.metadata["gpt2.embedding_length"]
    damaged = replace(header, metadata={**header.metadata, "gpt2.attention.head_count": width})
    with pytest.raises(GgufError, match=r"'gpt2.attention.key_length' is 1, which is impossible"):
        check_numbers(damaged)


_LINEAR = {
    "qwen35.attention.head_count": 4,
    "qwen35.embedding_length": 64,
    "qwen35.block_count": 4,
    "qwen35.full_attention_interval": 4,
    "qwen35.ssm.conv_kernel": 4,
    "qwen35.ssm.state_size": 16,
    "qwen35.ssm.group_count": 2,
    "qwen35.ssm.time_step_rank": 6,
    "qwen35.ssm.inner_size": 96,
    "qwen35.attention.key_length": 32,
    "qwen35.attention.value_length": 32,
    "qwen35.rope.dimension_count": 8,
    "qwen35.rope.dimension_sections": (11, 11, 10, 0),
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ssm.inner_size", 1),
        ("ssm.state_size", 32),
        ("ssm.group_count", 4),
        ("ssm.group_count", 0),
        ("ssm.time_step_rank", 5),
        ("ssm.conv_kernel", 0),
        ("full_attention_interval", 0),
        ("rope.dimension_sections", (11, 11, 11, 0)),
        ("rope.dimension_sections", (0, 0, 0, 4)),
        ("rope.dimension_sections", ("a", 0, 0, 0)),
        ("rope.dimension_sections", 11),
    ],
)
def test_numbers_of_linear_attention_that_contradict_each_other_are_refused(key: str, value: object) -> None:
    header = read_header(tiny_export().files[0].path)
    check_numbers(replace(header, metadata={"general.architecture": "qwen35", **_LINEAR}))
    damaged = {"general.architecture": "qwen35", **_LINEAR, f"qwen35.{key}": value}
    with pytest.raises(GgufError, match=r"'qwen35\.(ssm|full_attention_interval|rope)"):
        check_numbers(replace(header, metadata=damaged))


def test_a_real_files_numbers_pass_and_so_do_those_of_a_mixture_of_experts() -> None:
    header = read_header(tiny_export().files[0].path)
    check_numbers(header)
    experts = {"other.block_count": 2, "other.expert_count": 8, "other.expert_used_count": 2}
    check_numbers(replace(header, metadata={"general.architecture": "other", **experts}))


def test_tokens_that_differ_only_after_a_zero_byte_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "zero.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_token_list(["a", "a\0b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GgufError, match="a token twice"):
        read_header(path)
