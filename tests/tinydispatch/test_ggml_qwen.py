"""Our graph of Qwen3 against llama.cpp's: the same numbers, whatever sizes the batches have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.make_widened_model import Target, widen
from tests.fixtures_gguf import scratch, tiny_export
from tests.fixtures_opt import post_norm_export
from tinydispatch.ggml import bindings, qwen
from tinydispatch.ggml import open as opening
from tinydispatch.ggml.header import GgufError, read_header
from tinydispatch.ggml.library import load_library
from tinydispatch.ggml.llama import LlamaModel
from tinydispatch.ggml.model import GgufModel
from tinydispatch.ggml.open import open_model
from tinydispatch.ggml.opt import OptModel
from tinydispatch.ggml.qwen import QwenModel
from tinydispatch.ggml.qwen_shape import read_shape
from tinydispatch.ggml.repack import is_repacked

_IDS = [int(token) for token in np.random.default_rng(0).integers(20, 400, 600)]


@pytest.fixture(scope="module", params=[0, 1], ids=["f16", "q8_0"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[LlamaModel, QwenModel]]:
    path = tiny_export().files[request.param].path
    with LlamaModel(path, 700, 1) as theirs, QwenModel(path, 700, 1) as ours:
        # As with a small vocabulary: rows of logits are rounded up. And as with a large file: a few rows are multiplied
        # one by one.
        ours._row_step = 4 if request.param else 1
        ours._options = replace(ours._options, multiplies_rows=bool(request.param))
        yield theirs, ours


def _assert_same(theirs: GgufModel, ours: GgufModel, ids: list[int], first: int) -> None:
    expected, found = theirs.decode_all(ids, first), ours.decode_all(ids, first)
    assert found.shape == expected.shape == (len(ids) - first, theirs.n_vocab)
    # The same operations on the same numbers; a batch that is rounded up is summed in another order, and numbers that
    # are rounded to 16 bits in between may then be rounded the other way.
    np.testing.assert_allclose(found, expected, atol=0.01 * expected.std())


@given(steps=st.lists(st.tuples(st.integers(1, 70), st.integers(0, 80), st.integers(0, 60)), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_batches_of_any_size_after_cuts_of_any_depth_give_llama_cpps_logits(
    pair: tuple[LlamaModel, QwenModel], steps: list[tuple[int, int, int]]
) -> None:
    theirs, ours = pair
    for model in pair:
        model.truncate(0)
    for n_ids, n_dropped, first in steps:
        kept = max(0, len(ours.cached_ids) - n_dropped)
        for model in pair:
            model.truncate(kept)
        _assert_same(theirs, ours, _IDS[kept : kept + n_ids], min(first, n_ids - 1))
        assert list(ours.cached_ids) == list(theirs.cached_ids)


def test_a_prompt_of_several_batches_gives_llama_cpps_logits(pair: tuple[LlamaModel, QwenModel]) -> None:
    theirs, ours = pair
    for model in pair:
        model.truncate(0)
    _assert_same(theirs, ours, _IDS, 590)
    _assert_same(theirs, ours, _IDS[:100], 0)


def test_graphs_that_are_built_before_they_are_needed_give_the_same_logits() -> None:
    path = tiny_export().files[0].path
    with QwenModel(path, 300, 1) as ready, LlamaModel(path, 300, 1) as theirs:
        for model in (ready, theirs):
            model.decode(_IDS[:100])
        ready.prepare()
        n_built = len(ready._graphs)
        for n_ids, n_rows in ((33, 1), (9, 2), (2, 2), (5, 1), (9, 2), (1, 1), *[(17, 1)] * 6):
            for model in (ready, theirs):
                model.truncate(100)
            _assert_same(theirs, ready, _IDS[100 : 100 + n_ids], n_ids - n_rows)
            if n_ids == 33:
                assert len(ready._graphs) == n_built  # the one of 36 or 40 does
        # What is asked for again and again gets a graph of its own.
        assert n_built < len(ready._graphs) <= n_built + 4


def test_more_sizes_than_are_kept_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwen, "_MAX_GRAPHS", 3)
    path = tiny_export().files[1].path
    with QwenModel(path, 300, 1) as few, LlamaModel(path, 300, 1) as theirs:
        for n_ids in (1, 5, 9, 30, 1, 70, 5, 1):
            _assert_same(theirs, few, _IDS[:n_ids], n_ids - 1)
        assert len(few._graphs) <= 3


def test_the_last_position_of_the_context_can_be_filled() -> None:
    with QwenModel(tiny_export().files[1].path, 65, 1) as model:
        model.decode(_IDS[:56])
        model.decode(_IDS[56:65])  # nine, computed as ten
        with pytest.raises(ValueError, match="do not fit the context of 65"):
            model.decode([5])


def test_who_computes_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_export().files[1].path
    for keeps_graphs, expected in ((True, QwenModel), (False, LlamaModel)):
        with open_model(path, 64, keeps_graphs=keeps_graphs) as model:
            assert type(model) is expected
    with open_model(post_norm_export().files[1].path, 64, keeps_graphs=False) as model:
        assert type(model) is OptModel
    monkeypatch.setattr(opening, "SHORT_CONTEXT", 63)
    with open_model(path, 64) as model:
        assert type(model) is LlamaModel
    monkeypatch.setattr(opening, "SHORT_CONTEXT", 64)
    monkeypatch.setattr(opening, "is_repacked", lambda *_: True)
    with open_model(path, 64) as model:
        assert type(model) is LlamaModel


def test_what_ggml_lays_out_anew_depends_on_the_type() -> None:
    c = load_library().c
    backend = c.ggml_backend_init_by_type(bindings.GGML_BACKEND_DEVICE_TYPE_CPU, None)
    try:
        assert not any(is_repacked(c, backend, kind) for kind in (bindings.GGML_TYPE_F32, bindings.GGML_TYPE_F16))
    finally:
        c.ggml_backend_free(backend)


def test_a_file_with_more_in_it_than_the_graph_computes_is_left_to_llama_cpp() -> None:
    header = read_header(tiny_export().files[1].path)
    assert read_shape(header) is not None
    bias = replace(header.tensors[1], name="blk.0.attn_q.bias")
    embedding = replace(header.tensors[0], type_id=12)
    for other in (
        replace(header, metadata={**header.metadata, "qwen3.rope.scaling.type": "yarn"}),
        replace(header, metadata={**header.metadata, "qwen3.attention.head_count": 3}),
        replace(header, metadata={**header.metadata, "general.architecture": "qwen2"}),
        replace(header, tensors=(*header.tensors, bias)),
        replace(header, tensors=header.tensors[:-1]),
        replace(header, tensors=(embedding, *header.tensors[1:])),
    ):
        assert read_shape(other) is None
    with pytest.raises(GgufError, match="not a plain Qwen3 file"):
        QwenModel(header.path, 64, header=replace(header, tensors=header.tensors[:-1]))


def test_a_widened_model_answers_like_the_small_one() -> None:
    small = tiny_export().files[1].path
    large = scratch() / "wide.gguf"
    widen(small, large, Target(4, 128, 192, 12, 3, 64, 700))
    with open_model(small, 300) as one, open_model(large, 300) as other, LlamaModel(large, 300) as theirs:
        expected, found = one.decode_all(_IDS[:200]), other.decode_all(_IDS[:200])
        # Activations are rounded to 8 bits too, at a scale that is another one here.
        difference = np.abs(found[:, : one.n_vocab] - expected) / expected.std()
        assert (difference.mean() < 0.03, difference.max() < 0.3) == (True, True)
        assert other.n_vocab == 700
        assert found[:, one.n_vocab :].max() < expected.max(axis=1).min()
        np.testing.assert_allclose(found, theirs.decode_all(_IDS[:200]), atol=0.01 * expected.std())
        assert other.tokenize("what is the weather in Oslo?", parse_special=True) == one.tokenize(
            "what is the weather in Oslo?", parse_special=True
        )


def test_a_model_that_has_no_room_is_not_widened() -> None:
    with pytest.raises(ValueError, match="not a plain Qwen3 file with room for it"):
        widen(tiny_export().files[1].path, Path("never.gguf"), Target(4, 32, 192, 12, 3, 64, 700))
