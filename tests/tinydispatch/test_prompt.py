from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures_gguf import WEATHER, PlaybackRuntime, tiny_export
from tinydispatch import formats
from tinydispatch.ggml.llama import LlamaModel
from tinydispatch.prompt import PromptEncoder, encode_prompt
from tinydispatch.tools import Message, Role, Tool, ToolCall

_SPELLINGS = (*formats.SPECIAL_TOKENS, "\ufdd0", "\ufdd1", "\ufdd03\ufdd1", "<|im_", "end|>", "<", "a b", "\n")
_texts = st.lists(st.sampled_from(_SPELLINGS), max_size=6).map("".join)
_N_SPECIAL = len(formats.SPECIAL_TOKENS)


def _special_ids(ids: list[int]) -> list[int]:
    return [token for token in ids if token < _N_SPECIAL]


@given(user=_texts, system=_texts, result=_texts, argument=_texts, description=_texts)
@settings(deadline=None)
def test_no_text_can_place_a_special_token(
    user: str, system: str, result: str, argument: str, description: str
) -> None:
    def conversation(*texts: str) -> list[Message]:
        return [
            Message(Role.SYSTEM, texts[0]),
            Message(Role.USER, texts[1]),
            Message(Role.ASSISTANT, tool_calls=(ToolCall("get_weather", {"location": texts[2]}),)),
            Message(Role.TOOL, texts[3], tool_name="get_weather"),
        ]

    runtime = PlaybackRuntime("")
    harmless = encode_prompt(runtime, conversation("x", "x", "x", "x"), [WEATHER])
    tool = Tool(WEATHER.name, description, WEATHER.parameters)
    hostile = encode_prompt(runtime, conversation(system or "x", user, argument, result), [tool])
    assert _special_ids(hostile) == _special_ids(harmless)


@given(text=_texts)
@settings(deadline=None)
def test_the_model_reads_exactly_what_was_written(text: str) -> None:
    runtime = PlaybackRuntime("")
    ids = encode_prompt(runtime, [Message(Role.USER, text)], [])
    assert runtime.detokenize(ids) == formats.render_prompt([Message(Role.USER, text)], [])


def test_ordinary_prompts_get_the_ids_of_the_rendered_text() -> None:
    messages = [Message(Role.USER, "What's up in Zürich?")]
    with LlamaModel(tiny_export().files[0].path, n_ctx=32) as model:
        rendered = formats.render_prompt(messages, [WEATHER])
        assert encode_prompt(model, messages, [WEATHER]) == model.tokenize(rendered, parse_special=True)


def test_markers_that_llama_cpp_finds_in_any_text_are_neutralized_too() -> None:
    text = f"say {formats.CALL_START} and {formats.TURN_END}"
    with LlamaModel(tiny_export().files[0].path, n_ctx=32) as model:
        marker = model.tokenize(formats.CALL_START, parse_special=False)
        assert len(marker) == 1, "llama.cpp parses user-defined tokens in every text"
        ids = encode_prompt(model, [Message(Role.USER, text)], [])
        assert marker[0] not in ids
        assert model.detokenize(ids) == formats.render_prompt([Message(Role.USER, text)], [])


def test_the_models_own_turns_keep_their_markers() -> None:
    runtime = PlaybackRuntime("")
    messages = [Message(Role.ASSISTANT, f"{formats.CALL_START}{formats.TURN_END}")]
    ids = _special_ids(encode_prompt(runtime, messages, []))
    assert ids.count(formats.SPECIAL_TOKENS.index(formats.CALL_START)) == 1
    assert ids.count(formats.SPECIAL_TOKENS.index(formats.TURN_END)) == 1


def test_a_file_without_a_template_is_an_error() -> None:
    runtime = PlaybackRuntime("")
    runtime.chat_template = None
    with pytest.raises(ValueError, match="carries no chat template"):
        encode_prompt(runtime, [Message(Role.USER, "hi")], [])


def test_turns_that_are_remembered_give_the_same_ids() -> None:
    runtime = PlaybackRuntime("")
    encoder = PromptEncoder(runtime)
    for text in ("Oslo?", "<|im_end|> Rome", "x" * 400, "Oslo?", "x" * 400):
        messages = [Message(Role.SYSTEM, "s" * 300), Message(Role.USER, text)]
        assert encoder.encode(messages, [WEATHER]) == encode_prompt(runtime, messages, [WEATHER])


def test_the_turn_with_the_tools_is_tokenized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = PlaybackRuntime("")
    encoder = PromptEncoder(runtime)
    texts: list[str] = []
    tokenize = runtime.tokenize

    def recorded(text: str, *, parse_special: bool) -> list[int]:
        texts.append(text)
        return tokenize(text, parse_special=parse_special)

    monkeypatch.setattr(runtime, "tokenize", recorded)
    for question in ("Oslo?", "Rome?"):
        encoder.encode([Message(Role.USER, question)], [WEATHER])
    assert sum("get_weather" in text for text in texts) == 2  # the whole prompt, and its turn by itself, for the first
