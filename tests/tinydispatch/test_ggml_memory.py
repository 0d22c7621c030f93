from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures_gguf import tiny_export
from tests.fixtures_opt import post_norm_export
from tinydispatch.ggml import memory
from tinydispatch.ggml.header import GgufError, read_header
from tinydispatch.ggml.llama import LlamaModel
from tinydispatch.ggml.memory import available_bytes, cache_bytes
from tinydispatch.ggml.open import open_model
from tinydispatch.native.library import find_native

_FILES: dict[str, Callable[[], Path]] = {
    "llama": lambda: tiny_export().files[0].path,
    "opt": lambda: post_norm_export().files[1].path,
}


@pytest.mark.parametrize("kind", list(_FILES))
def test_a_cache_that_does_not_fit_is_refused_in_words(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _FILES[kind]()
    monkeypatch.setattr(memory, "available_bytes", lambda: 100_000)
    with pytest.raises(GgufError, match=r"a cache of 1024 positions takes .* MB, and 0 MB are free: lower n_ctx"):
        open_model(path, 1024)


@pytest.mark.skipif(find_native() is None, reason="no native decoder for this processor, or no compiler")
def test_where_the_weights_take_memory_too_the_way_without_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 100_000)
    with pytest.raises(GgufError, match=r"the weights and a cache of 1024 positions take .*TINYDISPATCH_NATIVE=off"):
        open_model(tiny_export().files[1].path, 1024)


def test_the_estimate_counts_keys_and_values_of_every_layer() -> None:
    # 2 layers, 2 key heads of 32, keys and values; the model was made for 1,024 positions.
    header = read_header(tiny_export().files[0].path)
    assert cache_bytes(header, 512, 2) == 2 * 2 * 32 * 2 * 2 * 512
    assert cache_bytes(header, 512, 4) == 2 * cache_bytes(header, 512, 2)
    assert cache_bytes(header, 1 << 30, 2) == 2 * cache_bytes(header, 512, 2)
    hybrid = replace(header, metadata={**header.metadata, "qwen3.block_count": 8, "qwen3.full_attention_interval": 4})
    assert cache_bytes(hybrid, 512, 2) == cache_bytes(header, 512, 2)


@pytest.mark.parametrize(("index", "item_bytes"), [(0, 4), (1, 2)], ids=["F16", "Q8_0"])
def test_the_estimate_is_that_of_the_numbers_in_the_cache(
    index: int, item_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_export().files[index].path
    needed = cache_bytes(read_header(path), 1024, item_bytes)
    monkeypatch.setattr(memory, "available_bytes", lambda: needed)
    with LlamaModel(path, 1024) as model:
        model.decode(list(range(20, 60)))
        # A saved state holds the same numbers, and little besides.
        assert needed * 40 // 1024 <= len(model.save_state()) < needed * 40 // 1024 + 4096
    monkeypatch.setattr(memory, "available_bytes", lambda: needed - 1)
    with pytest.raises(GgufError, match="a cache of 1024 positions"):
        LlamaModel(path, 1024)


def test_a_system_that_does_not_say_refuses_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "absent")
    assert available_bytes() is None
    with open_model(_FILES["opt"](), 64) as model:
        assert model.n_ctx == 64


def test_free_memory_is_read_where_linux_says_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 16 kB\nMemAvailable:        8 kB\n", "ascii")
    monkeypatch.setattr(memory, "_MEMINFO", file)
    assert available_bytes() == 8192


def _with_context_length(path: Path, copy: Path, n_positions: int) -> Path:
    """The same model, said to be made for so many positions."""
    key = b"qwen3.context_length" + struct.pack("<I", 4)
    content = path.read_bytes()
    place = content.index(key) + len(key)
    copy.write_bytes(content[:place] + struct.pack("<I", n_positions) + content[place + 4 :])
    return copy


@pytest.mark.parametrize("index", [0, 1], ids=["llama.cpp", "native"])
def test_without_a_number_the_cache_grows_to_the_models_limit_and_counts_the_same(index: int, tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    _with_context_length(tiny_export().files[index].path, path, 6000)
    ids = [20 + number % 60 for number in range(2100)]
    with open_model(path, is_native=index == 1) as model, open_model(path, 6000, is_native=index == 1) as large:
        assert model.n_ctx == 6000
        for one in (model, large):  # in the same batches: llama.cpp has other attention for few rows than for many
            one.decode(ids[:2000])
        np.testing.assert_allclose(model.decode_all(ids[2000:]), large.decode_all(ids[2000:]), atol=0.05)
        assert model.cached_ids == ids
        with open_model(path, is_native=index == 1) as other:
            other.load_state(model.save_state())
            assert other.cached_ids == ids


def test_where_memory_is_short_the_ordinary_context_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.gguf"
    _with_context_length(tiny_export().files[0].path, path, 6000)
    needed = cache_bytes(read_header(path), 2048, 4)
    monkeypatch.setattr(memory, "available_bytes", lambda: needed)
    with open_model(path) as model:
        assert model.n_ctx == 2048
