from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures_gguf import tiny_export
from tinydispatch import formats
from tinydispatch.ggml.bindings import GGML_TYPE_F16, GGML_TYPE_Q8_0
from tinydispatch.ggml.header import GgufError
from tinydispatch.ggml.llama import LlamaModel
from tinydispatch.ggml.model import default_threads
from tinydispatch.ggml.state import StateError

_IDS = list(range(20, 90))


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaModel]:
    with LlamaModel(tiny_export().files[0].path, n_ctx=128) as opened:
        yield opened


def test_decoding_at_once_and_one_by_one_give_the_same_logits(model: LlamaModel) -> None:
    model.truncate(0)
    at_once = model.decode_all(_IDS)
    model.truncate(0)
    one_by_one = np.stack([model.decode([token]) for token in _IDS])
    assert at_once.shape == (len(_IDS), model.n_vocab)
    # Batched and single products sum in another order, in 16 bits.
    np.testing.assert_allclose(at_once, one_by_one, atol=0.05)


def test_only_the_logits_that_are_asked_for_come_back_and_they_are_the_same(model: LlamaModel) -> None:
    model.truncate(0)
    expected = model.decode_all(_IDS)
    for first in (0, 3, len(_IDS) - 1):
        model.truncate(0)
        rows = model.decode_all(_IDS, first)
        assert rows.shape == (len(_IDS) - first, model.n_vocab)
        np.testing.assert_allclose(rows, expected[first:], atol=0.05)


def test_a_state_of_other_numbers_or_another_attention_is_refused() -> None:
    class Eight(LlamaModel):
        flash_attention = 1
        cache_type = GGML_TYPE_Q8_0

    class Flash(LlamaModel):
        flash_attention = 1

    class Sixteen(LlamaModel):  # how F16 files were once computed: states of that time may still lie on disks
        cache_type = GGML_TYPE_F16

    path = tiny_export().files[0].path
    with (
        LlamaModel(path, n_ctx=64) as plain,
        Flash(path, n_ctx=64) as flash,
        Eight(path, n_ctx=64) as eight,
        Sixteen(path, n_ctx=64) as sixteen,
    ):
        expected = plain.decode(_IDS[:20])
        state = plain.save_state()
        for other in (flash, eight, sixteen):
            with pytest.raises(StateError, match="another kind of cache"):
                other.load_state(state)
        np.testing.assert_allclose(flash.decode(_IDS[:20]), expected, atol=0.1)
        assert len(eight.decode(_IDS[:20])) == len(expected)
        assert len(eight.save_state()) < len(flash.save_state())


def test_a_truncated_cache_continues_like_a_fresh_one(model: LlamaModel) -> None:
    model.truncate(0)
    expected = model.decode([*_IDS[:40], 7, 8, 9])
    model.truncate(0)
    model.decode(_IDS)
    model.truncate(40)
    assert list(model.cached_ids) == _IDS[:40]
    actual = model.decode([7, 8, 9])
    np.testing.assert_allclose(actual, expected, atol=0.05)
    assert not np.allclose(actual, model.decode([1]), atol=0.5)


def test_longer_input_than_a_native_batch_is_decoded_in_pieces() -> None:
    with LlamaModel(tiny_export().files[0].path, n_ctx=1024) as model:
        ids = [20 + index % 300 for index in range(700)]
        rows = model.decode_all(ids)
        model.truncate(0)
        last = model.decode(ids)
    assert rows.shape[0] == 700
    np.testing.assert_allclose(rows[-1], last, atol=0.05)


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_survives_tokenizing(model: LlamaModel, text: str) -> None:
    assert model.detokenize(model.tokenize(text, parse_special=False)) == text


def test_special_tokens_are_single_ids_only_where_they_are_parsed(model: LlamaModel) -> None:
    for token in formats.SPECIAL_TOKENS:
        assert len(model.tokenize(token, parse_special=True)) == 1
    for token in model.control_tokens:
        assert len(model.tokenize(token, parse_special=False)) > 1


def test_the_file_says_which_tokens_steer_and_which_one_ends(model: LlamaModel) -> None:
    assert model.control_tokens == {formats.TURN_START, formats.TURN_END, formats.DOCUMENT_END}
    assert model.marker_tokens == {formats.CALL_START, formats.CALL_END, formats.RESULT_START, formats.RESULT_END}
    assert [model.eos_id] == model.tokenize(formats.TURN_END, parse_special=True)
    assert model.eos_id in model.eog_ids
    assert model.special_token("eos") == formats.TURN_END
    assert model.special_token("bos") is None


def test_the_chat_template_travels_inside_the_file(model: LlamaModel) -> None:
    assert model.chat_template == formats.default_chat_template()


def test_what_does_not_fit_the_context_is_refused_and_the_cache_stays_usable(model: LlamaModel) -> None:
    model.truncate(0)
    expected = model.decode([20, 21])
    with pytest.raises(ValueError, match="do not fit the context of 128"):
        model.decode([20] * 127)
    model.truncate(1)
    np.testing.assert_allclose(model.decode([21]), expected, atol=0.05)


def test_a_context_is_never_longer_than_the_model_was_made_for() -> None:
    with LlamaModel(tiny_export().files[0].path, n_ctx=1 << 20) as model:
        assert model.n_ctx == 1024


@pytest.mark.parametrize("ids", [[], [-1], [1 << 20]])
def test_ids_that_are_none_are_refused(model: LlamaModel, ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"nothing to decode|ids must be from 0"):
        model.decode(ids)


def test_lone_surrogates_are_refused_in_words(model: LlamaModel) -> None:
    with pytest.raises(ValueError, match="not valid Unicode at character 1"):
        model.tokenize("a\ud800", parse_special=False)


def test_a_closed_model_says_so() -> None:
    model = LlamaModel(tiny_export().files[0].path, n_ctx=32)
    model.close()
    model.close()
    with pytest.raises(ValueError, match="the model is closed"):
        model.decode([1])


def test_a_file_that_llama_cpp_refuses_is_an_error_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "strange.gguf"
    writer = gguf.GGUFWriter(path, "nonesuch")
    writer.add_token_list(["a", "b"])
    writer.add_tensor("x", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GgufError, match=r"strange\.gguf: llama\.cpp cannot load it.*nonesuch"):
        LlamaModel(path)


def test_a_truncated_model_never_reaches_native_code(tmp_path: Path) -> None:
    content = tiny_export().files[0].path.read_bytes()
    path = tmp_path / "short.gguf"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(GgufError, match="truncated: tensor"):
        LlamaModel(path)


def test_native_messages_go_to_logging_and_not_to_the_terminal(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG, "tinydispatch.llama"), LlamaModel(tiny_export().files[0].path, n_ctx=32):
        pass
    assert any("qwen3" in message for message in caplog.messages)
    assert capfd.readouterr() == ("", "")


def test_small_models_get_one_thread() -> None:
    assert default_threads(10_000_000) == 1
    assert default_threads(1 << 60) >= 1
