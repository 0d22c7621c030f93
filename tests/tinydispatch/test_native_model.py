"""The native decoder: the numbers that a file's weights give, the same ones however an id comes to be computed."""

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
from tests.fixtures_native import NATIVE_FILES
from tests.fixtures_opt import post_norm_export
from tests.tinydispatch.reference_decoder import ReferenceDecoder, least_difference
from tinydispatch.ggml.header import GgufError, read_header
from tinydispatch.ggml.llama import LlamaModel
from tinydispatch.ggml.model import GgufModel
from tinydispatch.ggml.open import open_model
from tinydispatch.ggml.opt import OptModel
from tinydispatch.native import library
from tinydispatch.native import model as native_model
from tinydispatch.native.library import find_native
from tinydispatch.native.model import NativeModel, read_native_shape

pytestmark = pytest.mark.skipif(find_native() is None, reason="no native decoder for this processor, or no compiler")

_IDS = [int(token) for token in np.random.default_rng(0).integers(20, 320, 600)]


@pytest.fixture(scope="module", params=list(NATIVE_FILES))
def path(request: pytest.FixtureRequest) -> Path:
    return NATIVE_FILES[request.param]()


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[NativeModel]:
    with NativeModel(path, 700, 1) as opened:
        yield opened


@pytest.fixture(params=[variant.name for variant in library.VARIANTS])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> library.Variant:
    chosen = next(each for each in library.VARIANTS if each.name == request.param)
    if not chosen.features <= library.cpu_features():
        pytest.skip(f"this processor has no {chosen.name}")
    monkeypatch.setenv(library.VARIABLE, chosen.name)
    return chosen


def test_a_few_ids_have_the_logits_of_the_file_s_numbers(path: Path, variant: library.Variant) -> None:
    with NativeModel(path, 64, 1) as model:
        assert model._native.variant is variant
        assert least_difference(model, _IDS[:90]) < 2e-6  # 64 bits against 32


def test_a_long_prompt_is_as_exact_as_ggml_s(path: Path, model: NativeModel) -> None:
    expected = ReferenceDecoder(path, rounds=False)(_IDS[:300])
    model.truncate(0)
    with open_model(path, 700, is_native=False) as theirs:
        assert type(theirs) is not NativeModel
        ours, other = (np.abs(each.decode_all(_IDS[:300]) - expected).mean() for each in (model, theirs))
    # Both round activations to 8 bits, and everything after to slightly different numbers.
    assert ours < 1.2 * other < 0.04 * expected.std()


@given(steps=st.lists(st.tuples(st.integers(1, 90), st.integers(0, 80), st.integers(0, 70)), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_an_id_has_the_same_logits_in_whatever_batch_and_after_whatever_cuts(
    model: NativeModel, steps: list[tuple[int, int, int]]
) -> None:
    model.truncate(0)
    at_once = model.decode_all(_IDS[:600])
    model.truncate(0)
    for n_ids, n_dropped, first in steps:
        kept = max(0, len(model.cached_ids) - n_dropped)
        model.truncate(kept)
        first = min(first, n_ids - 1)
        found = model.decode_all(_IDS[kept : kept + n_ids], first)
        np.testing.assert_array_equal(found, at_once[kept + first : kept + n_ids])


def test_threads_change_nothing(path: Path, model: NativeModel) -> None:
    model.truncate(0)
    expected = model.decode_all(_IDS)
    for threads in (2, 3, 300):
        with NativeModel(path, 700, threads) as shared:
            np.testing.assert_array_equal(shared.decode_all(_IDS), expected)
            shared.truncate(10)
            np.testing.assert_array_equal(shared.decode(_IDS[10:11]), expected[10])


def test_the_last_position_of_the_context_can_be_filled() -> None:
    with NativeModel(NATIVE_FILES["qwen"](), 65, 1) as model:
        model.decode(_IDS[:56])
        model.decode(_IDS[56:65])
        with pytest.raises(ValueError, match="do not fit the context of 65"):
            model.decode([5])


def test_who_computes_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(path: Path, *, is_native: bool = True) -> type[GgufModel]:
        with open_model(path, 64, is_native=is_native) as model:
            return type(model)

    qwen, opt = NATIVE_FILES["qwen"](), NATIVE_FILES["opt-350m"]()
    assert [kind(qwen), kind(opt)] == [NativeModel, NativeModel]
    assert [kind(qwen, is_native=False), kind(opt, is_native=False)] == [LlamaModel, OptModel]
    assert [kind(tiny_export().files[0].path), kind(post_norm_export().files[1].path)] == [LlamaModel, OptModel]
    monkeypatch.setenv(library.VARIABLE, "off")
    assert [kind(qwen), kind(opt)] == [LlamaModel, OptModel]


def test_a_file_with_more_in_it_than_the_decoder_computes_is_left_to_llama_cpp() -> None:
    header = read_header(NATIVE_FILES["qwen"]())
    bias = replace(header.tensors[1], name="blk.0.attn_q.bias")
    embedding = replace(header.tensors[0], type_id=10)
    for other in (
        replace(header, metadata={**header.metadata, "qwen3.rope.scaling.type": "yarn"}),
        replace(header, metadata={**header.metadata, "qwen3.attention.head_count": 3}),
        replace(header, metadata={**header.metadata, "qwen3.attention.sliding_window": 64}),
        replace(header, metadata={**header.metadata, "general.architecture": "qwen2"}),
        replace(header, tensors=(*header.tensors, bias)),
        replace(header, tensors=header.tensors[:-1]),
        replace(header, tensors=(embedding, *header.tensors[1:])),
    ):
        assert read_native_shape(other) is None
    found = read_native_shape(header)
    assert found is not None
    assert [native_model._fits(header, replace(found, head_width=width)) for width in (16, 24, 32)] == [
        True,
        False,
        True,
    ]
    with pytest.raises(GgufError, match="does not compute this file"):
        NativeModel(header.path, 64, header=replace(header, tensors=header.tensors[:-1]))


def test_too_little_memory_is_said_before_any_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, n_bytes: int, n_ctx: int, *, has_weights: bool) -> None:
        assert has_weights
        raise GgufError(path, f"{n_bytes} bytes for {n_ctx}")

    monkeypatch.setattr(native_model, "require_memory", refuse)
    # Keys and values of 64 positions, two layers of two heads of 32 numbers; and at least a byte for each weight.
    with pytest.raises(GgufError, match=r" [1-9]\d{5} bytes for 60") as caught:
        NativeModel(NATIVE_FILES["qwen"](), 60)
    n_bytes = int(str(caught.value).split(": ")[-1].split(" ")[0])
    n_cache, n_file = (
        2 * 2 * 64 * 2 * 2 * 32,
        sum(tensor.n_bytes for tensor in read_header(NATIVE_FILES["qwen"]()).tensors),
    )
    assert n_bytes > n_cache + n_file / 2


def test_a_widened_model_answers_like_the_small_one() -> None:
    small, large = NATIVE_FILES["qwen"](), scratch() / "wide.gguf"
    widen(small, large, Target(4, 128, 192, 12, 3, 64, 700))
    with open_model(small, 300) as one, open_model(large, 300) as other:
        expected, found = one.decode_all(_IDS[:200]), other.decode_all(_IDS[:200])
        # Activations are rounded to 8 bits too, at a scale that is another one here.
        difference = np.abs(found[:, : one.n_vocab] - expected) / expected.std()
        assert (difference.mean() < 0.03, difference.max() < 0.3) == (True, True)
        assert other.n_vocab == 700
        assert found[:, one.n_vocab :].max() < expected.max(axis=1).min()
        assert other.tokenize("what is the weather in Oslo?", parse_special=True) == one.tokenize(
            "what is the weather in Oslo?", parse_special=True
        )


def test_a_model_that_has_no_room_is_not_widened() -> None:
    with pytest.raises(ValueError, match="not a plain Qwen3 file with room for it"):
        widen(NATIVE_FILES["qwen"](), Path("never.gguf"), Target(4, 32, 192, 12, 3, 64, 700))
