"""What is written is what every reader of GGUF reads, and number formats are ggml's own."""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.fixtures_default import numbers
from tinydispatch.ggml import bindings
from tinydispatch.ggml.header import GgufError, read_header
from tinydispatch.ggml.library import load_library
from tinydispatch.ggml.mixtures import GGML_TYPE_Q4_1, Quantization, dequantize, quantize_rows
from tinydispatch.ggml.writer import NewTensor, write_gguf

METADATA = {
    "general.architecture": "llama",
    "a.text": "Zoë \u2713",
    "a.yes": True,
    "a.number": 4_000_000_000,
    "a.fraction": 0.1,
    "a.texts": ("x", "", "long " * 400_000, "Zoë"),
    "a.numbers": (1, -2, 3),
    "a.fractions": (0.5, 1.0),
}


def _tensors() -> list[NewTensor]:
    values = {"one": numbers(1, 3), "two": numbers(2, 5, 7)}
    return [
        NewTensor(name, value.shape[::-1], bindings.GGML_TYPE_F32, lambda value=value: iter([value.tobytes()]))
        for name, value in values.items()
    ]


def test_both_readers_find_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    written = write_gguf(path, METADATA, _tensors())
    assert written.n_bytes == path.stat().st_size
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    header = read_header(path)
    assert {**header.metadata, "a.fraction": 0.1} == METADATA
    theirs = gguf.GGUFReader(path)
    assert {tensor.name: np.asarray(tensor.data).tolist() for tensor in theirs.tensors} == {
        "one": numbers(1, 3).tolist(),
        "two": numbers(2, 5, 7).tolist(),
    }
    for key, value in METADATA.items():
        found = theirs.fields[key].contents()
        assert found == pytest.approx(list(value) if isinstance(value, tuple) and "frac" in key else found)
        if "frac" not in key:
            assert found == (list(value) if isinstance(value, tuple) else value)


def test_it_is_what_gguf_py_writes(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    metadata = {key: value for key, value in METADATA.items() if not isinstance(value, tuple) or len(set(value)) > 1}
    write_gguf(ours, metadata, _tensors())
    writer = gguf.GGUFWriter(theirs, "llama")
    add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for key, value in metadata.items():
        if isinstance(value, tuple):
            writer.add_array(key, value)
        elif key != "general.architecture":
            add[type(value)](key, value)
    writer.add_tensor("one", numbers(1, 3))
    writer.add_tensor("two", numbers(2, 5, 7))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert ours.read_bytes() == theirs.read_bytes()


def test_strings_longer_than_a_piece_and_cut_ones_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(path, METADATA, _tensors())
    data = path.read_bytes()
    assert len(METADATA["a.texts"][2]) > 1 << 20  # type: ignore[index,arg-type]
    for length in (len(data) // 2, 400, 1 << 20):
        path.write_bytes(data[:length])
        with pytest.raises(GgufError, match="truncated"):
            read_header(path)
    path.write_bytes(data.replace("Zoë".encode(), b"Zo\xff\xff", 2))
    with pytest.raises(GgufError, match="not UTF-8"):
        read_header(path)


@pytest.mark.parametrize(
    ("type_id", "function"), [(bindings.GGML_TYPE_Q8_0, "dequantize_row_q8_0"), (GGML_TYPE_Q4_1, "dequantize_row_q4_1")]
)
def test_values_are_ggmls_to_the_last_bit(type_id: int, function: str) -> None:
    encoded = quantize_rows(numbers(5, 9, 96), type_id)
    expected = np.empty(9 * 96, dtype=np.float32)
    native = getattr(load_library().c, function)
    native.argtypes, native.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64), None
    native(encoded.ctypes.data, expected.ctypes.data, expected.size)
    found = dequantize(memoryview(encoded.tobytes()), type_id)
    assert np.array_equal(found, expected)
    assert np.abs(found - numbers(5, 9, 96).reshape(-1)).max() < 0.02


def test_a_token_table_in_eight_bits_stays_as_it_is_when_it_is_written_anew() -> None:
    encoded = quantize_rows(numbers(6, 40, 64), bindings.GGML_TYPE_Q8_0)
    again = quantize_rows(dequantize(memoryview(encoded.tobytes()), bindings.GGML_TYPE_Q8_0).reshape(40, 64), 8)
    assert np.array_equal(encoded, again)


@pytest.mark.parametrize("form", list(Quantization))
def test_a_files_type_is_llama_cpps_number(form: Quantization) -> None:
    prefix = "ALL" if form is Quantization.F32 else "MOSTLY"
    assert form.file_type == gguf.LlamaFileType[f"{prefix}_{form.upper()}"]
