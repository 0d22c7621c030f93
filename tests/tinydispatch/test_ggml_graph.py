from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from export.config import ExportConfig, Quantization
from export.export import export_gguf
from tests.fixtures_opt import make_tiny_opt, post_norm_export
from tinydispatch.ggml import bindings
from tinydispatch.ggml.cpu import CpuBackend
from tinydispatch.ggml.graph import Graph, GraphSize, GraphStore
from tinydispatch.ggml.header import read_header
from tinydispatch.ggml.kv_cache import KvCache
from tinydispatch.ggml.library import load_library
from tinydispatch.ggml.opt import OptModel
from tinydispatch.ggml.repack import layout
from tinydispatch.ggml.weights import MappedWeights


@pytest.fixture
def backend() -> Iterator[CpuBackend]:
    opened = CpuBackend(load_library(), 2)
    yield opened
    opened.close()


class _Fake:
    """A graph that holds so many bytes."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes, self.is_closed = n_bytes, False

    def close(self) -> None:
        self.is_closed = True


def test_a_graph_is_built_once_and_the_least_recently_used_ones_make_room() -> None:
    built: list[_Fake] = []

    def build(size: GraphSize) -> Graph:
        built.append(_Fake(size.n_ids))
        return cast(Graph, built[-1])

    store = GraphStore(build, max_bytes=10)
    sizes = [GraphSize(n_ids, 256, 1) for n_ids in (1, 4, 5, 6)]
    first = store.get(sizes[0])
    store.get(sizes[1])
    store.get(sizes[2])
    assert store.get(sizes[0]) is first
    store.get(sizes[3])  # 16 bytes are too many: 4 went first, then 5
    assert [graph.is_closed for graph in built] == [False, True, True, False]
    assert store.get(sizes[0]) is first
    store.get(GraphSize(99, 256, 1))  # larger than all room: kept alone
    assert [graph.is_closed for graph in built] == [True, True, True, True, False]
    store.close()
    assert built[-1].is_closed


@pytest.mark.parametrize("type_id", [bindings.GGML_TYPE_F16, bindings.GGML_TYPE_F32])
def test_a_cache_gives_back_what_was_written_and_refuses_other_lengths(type_id: int) -> None:
    cache = KvCache(load_library().c, type_id, n_layers=2, n_heads=4, head_width=16, n_cells=128)
    n_bytes = KvCache.n_bytes(type_id, 2, 4, 16, 100)
    assert not any(array.any() for array in cache.read(100))
    payload = np.random.default_rng(0).integers(1, 255, n_bytes).astype(np.uint8).tobytes()
    assert not cache.write(memoryview(payload), 99)
    assert cache.write(memoryview(payload), 100)
    assert b"".join(array.tobytes() for array in cache.read(100)) == payload
    assert sum(array.nbytes for array in cache.read(1)) == n_bytes // 100
    cache.close()
    cache.close()


@pytest.fixture(scope="module")
def k_quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 256, "ffn_dim": 512, "word_embed_proj_dim": 256, "num_hidden_layers": 2}
    folder = tmp_path_factory.mktemp("k")
    config = ExportConfig(quantizations=(Quantization.Q4_K_M,), max_verification_tokens=32)
    return export_gguf(make_tiny_opt(folder / "checkpoint", **sizes), folder, "k", config).files[0].path


def test_rearranged_weights_compute_what_the_files_own_do(
    k_quantized: Path, backend: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.handle is not None
    if layout(load_library().c, backend.handle, bindings.GGML_TYPE_Q4_K) is None:
        pytest.skip("ggml rearranges no Q4_K on this processor")
    ids = list(range(20, 60))
    with OptModel(k_quantized, n_ctx=64) as model:
        at_once, one = model.decode_all(ids), model.decode([5])
    monkeypatch.setattr(MappedWeights, "repacks", False)
    with OptModel(k_quantized, n_ctx=64) as model:
        expected, expected_one = model.decode_all(ids), model.decode([5])
    # Sums in another order; an activation that is then rounded to 8 bits the other way moves what comes after it.
    np.testing.assert_allclose(at_once[0], expected[0], atol=1e-4)
    assert np.abs(at_once - expected).mean() < 0.05 * expected.std()
    assert np.abs(one - expected_one).mean() < 0.05 * expected.std()


def test_every_tensor_has_one_handle_whether_mapped_or_laid_out_anew(k_quantized: Path, backend: CpuBackend) -> None:
    header = read_header(k_quantized)
    weights = MappedWeights(load_library().c, header, backend.handle)
    assert weights.handles.keys() == {tensor.name for tensor in header.tensors}
    weights.close()
    weights.close()
    assert not weights.handles


def test_logits_are_computed_for_the_ids_that_are_asked_for() -> None:
    ids = np.random.default_rng(0).integers(0, 320, 400).tolist()
    with OptModel(post_norm_export().files[0].path, n_ctx=512) as model:
        expected = model.decode_all(ids)
        for first in (399, 390, 200, 1):
            model.truncate(0)
            found = model.decode_all(ids, first)
            assert found.shape == expected[first:].shape
            np.testing.assert_allclose(found, expected[first:], atol=2e-5)


def test_sixteen_bit_numbers_stay_exact_over_a_long_prompt() -> None:
    """Adding up the values of many positions in 16 bits, as flash attention does for single ids, drifts apart."""
    ids = np.random.default_rng(0).integers(0, 320, 1024).tolist()
    with OptModel(post_norm_export().files[2].path, n_ctx=1024) as model:
        at_once = model.decode_all(ids, 1000)
        model.truncate(1000)
        one_by_one = np.stack([model.decode([token]) for token in ids[1000:]])
    np.testing.assert_allclose(one_by_one, at_once, atol=4e-3 * at_once.std())


def test_another_layout_of_the_thread_pools_parameters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "THREADPOOL_POLL", 51)
    with pytest.raises(ValueError, match="another layout of ggml_threadpool_params"):
        CpuBackend(load_library(), 2)


def test_a_closed_backend_can_be_closed_again(backend: CpuBackend) -> None:
    backend.close()
    backend.close()
    assert backend.handle is None
