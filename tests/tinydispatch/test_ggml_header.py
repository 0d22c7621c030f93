from __future__ import annotations

import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinydispatch.ggml.header import TENSOR_BLOCKS, GgufError, read_header

_QUIET = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_uint32("qwen3.block_count", 2)
    writer.add_token_list(["a", "b", "ä"])
    writer.add_token_types([1, 1, 3])
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_tensor("token_embd.weight", np.ones((3, 32), np.float16))
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_header_is_read_as_it_was_written(small_file: Path) -> None:
    header = read_header(small_file)
    assert header.architecture == "qwen3"
    assert header.metadata["qwen3.block_count"] == 2
    assert header.metadata["tokenizer.ggml.tokens"] == ("a", "b", "ä")
    assert header.metadata["tokenizer.ggml.token_type"] == (1, 1, 3)
    assert header.metadata["tokenizer.ggml.add_bos_token"] is False
    embedding = header.tensors[0]
    assert (embedding.name, embedding.shape, embedding.n_bytes) == ("token_embd.weight", (32, 3), 192)


def test_the_block_sizes_are_those_of_the_gguf_package() -> None:
    assert {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()} == dict(TENSOR_BLOCKS)


def _file(n_tensors: int, n_keys: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + rest


_KEY = struct.pack("<Q", 1) + b"k"
_HUGE = 1 << 62


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"\0" * 4096, "zero bytes", id="zero bytes"),
        pytest.param(b"PK\x03\x04" + b"x" * 100, "not a GGUF file", id="foreign"),
        pytest.param(b"GG", "not a GGUF file", id="two bytes"),
        pytest.param(b"GGUF", "truncated", id="magic only"),
        pytest.param(_file(0, 0, version=1), "version 1", id="old version"),
        pytest.param(b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian", id="big-endian"),
        pytest.param(_file(_HUGE, 0), "it claims", id="tensor count"),
        pytest.param(_file(0, _HUGE), "it claims", id="key count"),
        pytest.param(_file(0, 1, struct.pack("<Q", _HUGE)), "a name of", id="key length"),
        pytest.param(_file(0, 1, _KEY + struct.pack("<IQ", 8, _HUGE)), "truncated", id="string length"),
        pytest.param(_file(0, 1, _KEY + struct.pack("<IIQ", 9, 8, _HUGE)), "does not fit", id="strings"),
        pytest.param(_file(0, 1, _KEY + struct.pack("<IIQ", 9, 4, _HUGE)), "does not fit", id="numbers"),
        pytest.param(_file(0, 1, _KEY + struct.pack("<IIQ", 9, 9, 1)), "array of value type 9", id="nested arrays"),
        pytest.param(_file(0, 1, _KEY + struct.pack("<I", 77)), "unknown value type 77", id="value type"),
        pytest.param(_file(0, 1, struct.pack("<Q", 2) + b"\xff\xfe" + bytes(8)), "UTF-8", id="key bytes"),
    ],
)
def test_a_file_that_is_no_gguf_is_refused_by_name(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(GgufError, match=problem) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="no such file"):
        read_header(tmp_path / "absent.gguf")
    with pytest.raises(GgufError, match="cannot be read"):
        read_header(tmp_path)


def test_every_truncation_is_noticed(small_file: Path) -> None:
    header = read_header(small_file)
    # The writer pads the end of the last tensor, which may be missing without harm.
    needed = header.data_offset + max(tensor.offset + tensor.n_bytes for tensor in header.tensors)
    for length in reversed(range(needed)):
        os.truncate(small_file, length)
        with pytest.raises(GgufError):
            read_header(small_file)


@given(position=st.integers(0, 400), value=st.integers(0, 255))
@_QUIET
def test_a_damaged_header_never_raises_anything_else(small_file: Path, position: int, value: int) -> None:
    content = bytearray(small_file.read_bytes())
    content[position % len(content)] = value
    damaged = small_file.with_name("damaged.gguf")
    damaged.write_bytes(content)
    try:
        header = read_header(damaged)
    except GgufError:
        return
    assert all(header.data_offset + tensor.offset + tensor.n_bytes <= len(content) for tensor in header.tensors)


@pytest.mark.parametrize("alignment", [0, 8, 16, 48, 1 << 21])
def test_an_alignment_on_which_ggml_would_abort_is_refused(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "aligned.gguf"
    key = b"general.alignment"
    path.write_bytes(_file(0, 1, struct.pack("<Q", len(key)) + key + struct.pack("<II", 4, alignment)))
    with pytest.raises(GgufError, match=f"'general.alignment' must be a power of two from 32, not {alignment}"):
        read_header(path)


def test_a_token_that_occurs_twice_is_refused_because_llama_cpp_would_abort(tmp_path: Path) -> None:
    path = tmp_path / "twice.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_token_list(["a", "b", "a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GgufError, match="a token twice"):
        read_header(path)


def test_a_part_of_a_split_model_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "model-00002-of-00003.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_uint16("split.no", 1)
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GgufError, match=r"00003\.gguf: part 2 of 3 files that make up one model: join them"):
        read_header(path)
