from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures_gguf import tiny_export
from tests.fixtures_opt import post_norm_export
from tinydispatch.ggml.header import read_header
from tinydispatch.ggml.llama import LlamaModel
from tinydispatch.ggml.model import GgufModel
from tinydispatch.ggml.open import open_model
from tinydispatch.ggml.opt import OptModel
from tinydispatch.ggml.state import StateError, pack_state, unpack_state
from tinydispatch.native.library import find_native
from tinydispatch.native.model import NativeModel

_FILES: dict[str, tuple[Callable[[], Path], type[GgufModel]]] = {
    "llama": (lambda: tiny_export().files[0].path, LlamaModel),
    "opt": (lambda: post_norm_export().files[1].path, OptModel),
    "native": (lambda: post_norm_export().files[2].path, NativeModel),
}
_IDS = list(range(20, 90))


@pytest.fixture(params=list(_FILES))
def kind(request: pytest.FixtureRequest) -> type[GgufModel]:
    found = _FILES[request.param][1]
    if found is NativeModel and find_native() is None:
        pytest.skip("no native decoder for this processor, or no compiler")
    return found


@pytest.fixture
def path(kind: type[GgufModel]) -> Path:
    return next(file() for file, graph in _FILES.values() if graph is kind)


@pytest.fixture
def model(path: Path, kind: type[GgufModel]) -> Iterator[GgufModel]:
    with kind(path, 128) as opened:
        yield opened


def test_a_restored_state_continues_as_if_nothing_had_happened(
    model: GgufModel, path: Path, kind: type[GgufModel]
) -> None:
    model.decode(_IDS)
    state = model.save_state()
    expected = [model.decode([token]) for token in (7, 8, 9)]
    model.truncate(0)
    model.decode([30] * 100)
    model.load_state(state)
    assert list(model.cached_ids) == _IDS
    np.testing.assert_array_equal([model.decode([token]) for token in (7, 8, 9)], expected)
    with kind(path, 80) as other:  # another process with a smaller context
        other.load_state(state)
        np.testing.assert_array_equal([other.decode([token]) for token in (7, 8, 9)], expected)


def test_an_empty_cache_is_a_state_too(model: GgufModel) -> None:
    state = model.save_state()
    model.decode([5])
    model.load_state(state)
    assert list(model.cached_ids) == []
    model.decode([5])


def test_a_truncated_cache_is_saved_without_what_was_dropped(model: GgufModel) -> None:
    model.decode(_IDS)
    model.truncate(10)
    state = model.save_state()
    expected = model.decode([7])
    model.load_state(state)
    assert list(model.cached_ids) == _IDS[:10]
    np.testing.assert_array_equal(model.decode([7]), expected)


@pytest.mark.parametrize("damage", ["short", "flipped", "foreign", "empty"])
def test_a_damaged_state_is_refused_and_the_cache_stays(model: GgufModel, damage: str) -> None:
    model.decode(_IDS[:5])
    state = bytearray(model.save_state())
    state[-100] ^= 1 if damage == "flipped" else 0
    broken = {"short": bytes(state[:-1]), "flipped": bytes(state), "foreign": b"PK" + bytes(200), "empty": b""}
    with pytest.raises(StateError, match=r"damaged state|not a saved state"):
        model.load_state(broken[damage])
    assert list(model.cached_ids) == _IDS[:5]


def test_a_state_of_another_quantization_is_refused() -> None:
    with open_model(tiny_export().files[0].path, 64) as one, open_model(tiny_export().files[1].path, 64) as other:
        one.decode(_IDS[:5])
        with pytest.raises(StateError, match="of another model file"):
            other.load_state(one.save_state())


def test_a_retrained_file_of_the_same_header_is_another_model(
    path: Path, kind: type[GgufModel], tmp_path: Path
) -> None:
    copy = Path(shutil.copy(path, tmp_path / "retrained.gguf"))
    header = read_header(copy)
    tensor = next(tensor for tensor in header.tensors if tensor.type_id != gguf.GGMLQuantizationType.F32)
    with copy.open("r+b") as stream:
        stream.seek(header.data_offset + tensor.offset)
        stream.write(b"\x01\x02")
    with kind(path, 64) as one, kind(copy, 64) as other:
        one.decode(_IDS[:5])
        with pytest.raises(StateError, match="of another model file"):
            other.load_state(one.save_state())


def test_a_longer_state_than_the_context_is_refused(model: GgufModel, path: Path, kind: type[GgufModel]) -> None:
    model.decode(_IDS)
    with kind(path, 32) as small, pytest.raises(StateError, match="70 positions does not fit the context of 32"):
        small.load_state(model.save_state())


def test_a_payload_that_is_no_cache_leaves_the_cache_empty(model: GgufModel) -> None:
    model.decode(_IDS[:5])
    forged = pack_state(model._owner, _IDS[:5], b"x" * 99)
    with pytest.raises(StateError, match="cannot be restored"):
        model.load_state(forged)
    assert list(model.cached_ids) == []
    model.decode(_IDS[:5])


@given(st.binary(min_size=16, max_size=16), st.lists(st.integers(0, 2**31 - 1)), st.binary(max_size=50))
@settings(max_examples=50, deadline=None)
def test_what_is_packed_is_unpacked(model_id: bytes, ids: list[int], payload: bytes) -> None:
    unpacked, content = unpack_state(model_id, pack_state(model_id, ids, payload))
    assert (unpacked, bytes(content)) == (ids, payload)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_arbitrary_bytes_are_refused_as_a_value_error(data: bytes) -> None:
    with pytest.raises(StateError):
        unpack_state(bytes(16), b"TDKV\x01\x00\x00\x00" + data)
