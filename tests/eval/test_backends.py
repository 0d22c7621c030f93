"""Backends: the same request text for every model, markers kept, failures as values."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, OPTConfig, OPTForCausalLM, Qwen3Config, Qwen3ForCausalLM

from eval.backends import BackendError, Failure, Generation, Request, open_backend
from eval.backends.checkpoint import CheckpointBackend
from eval.backends.gguf import GgufBackend
from eval.config import EvalConfig
from tests.fixtures_gguf import PlaybackRuntime
from tests.fixtures_models import make_tiny_qwen3, make_tiny_tokenizer, teach_reply
from tinydispatch.bundled import bundled_tools
from tinydispatch.formats import (
    CALL_END,
    CALL_START,
    default_chat_template,
    parse_reply,
    render_calls,
    render_prompt,
    with_reference_date,
)
from tinydispatch.tools import Message, Role, ToolCall

WEATHER = bundled_tools()[:1]
CONFIG = EvalConfig(max_new_tokens=40, device="cpu")
CALL = ToolCall("get_weather", {"location": "Oslo"})


def ask(text: str) -> Request:
    return Request((Message(Role.USER, text),), WEATHER, dt.date(2026, 3, 19))


def prompt_of(request: Request) -> str:
    return render_prompt(with_reference_date(request.messages, request.reference_date), request.tools)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers "Oslo?" with a call; its own settings would sample, its tokenizer calls the call markers special."""
    directory = make_tiny_qwen3(tmp_path_factory.mktemp("taught"))
    teach_reply(directory, prompt_of(ask("Oslo?")), render_calls([CALL]))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": [CALL_START, CALL_END]})
    tokenizer.save_pretrained(directory)
    GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=9.0).save_pretrained(directory)
    return directory


def test_call_markers_survive_decoding_and_the_end_token_does_not(taught: Path) -> None:
    with open_backend(taught, CONFIG) as backend:
        reply = backend.generate([ask("Oslo?")])[0]
    assert isinstance(reply, Generation)
    assert reply.text == render_calls([CALL])
    assert reply.is_complete
    assert parse_reply(reply.text).calls == (CALL,)
    assert reply.latency_s > 0


def test_a_reply_that_hits_the_token_limit_is_not_complete(taught: Path) -> None:
    with open_backend(taught, EvalConfig(max_new_tokens=3, device="cpu")) as backend:
        reply = backend.generate([ask("Oslo?")])[0]
    assert isinstance(reply, Generation)
    assert (reply.is_complete, reply.tokens) == (False, 3)


def test_a_prompt_without_room_is_a_failure_and_its_batch_goes_on(taught: Path) -> None:
    with open_backend(taught, CONFIG) as backend:
        long, short = backend.generate([ask("Oslo? " * 600), ask("Oslo?")])
    assert isinstance(long, Failure)
    assert "leaves no room in the model's 1024 positions" in long.reason
    assert isinstance(short, Generation)
    assert short.text == render_calls([CALL])


def test_a_model_without_a_template_is_prompted_with_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tiny_tokenizer()
    config = OPTConfig(vocab_size=408, hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2,
                       word_embed_proj_dim=16, max_position_embeddings=512)  # fmt: skip
    backend = CheckpointBackend(OPTForCausalLM(config), tokenizer, max_new_tokens=2, batch_size=1)
    seen: list[torch.Tensor] = []

    def generate(input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        seen.append(input_ids)
        return input_ids

    monkeypatch.setattr(backend._model, "generate", generate)
    for template in (default_chat_template(), None):
        tokenizer.chat_template = template
        backend.generate([ask("Oslo?")])
    assert torch.equal(seen[0], seen[1])
    assert tokenizer.decode(seen[0][0]) == prompt_of(ask("Oslo?"))


# Untied embeddings: with tied ones, a random model does nothing but repeat its last token.
SHAPE = {"vocab_size": 408, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "max_position_embeddings": 512, "tie_word_embeddings": False}  # fmt: skip
RANDOM_MODELS = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, num_key_value_heads=1, intermediate_size=64, head_dim=16,
                                            initializer_range=0.5)),
    "opt": (OPTForCausalLM, OPTConfig(**SHAPE, ffn_dim=64, word_embed_proj_dim=32, init_std=0.5)),
}  # fmt: skip


@pytest.mark.parametrize("architecture", RANDOM_MODELS)
def test_a_batch_of_unequal_lengths_says_what_each_request_says_alone(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model_class, config = RANDOM_MODELS[architecture]
    model_class(config).save_pretrained(tmp_path)
    make_tiny_tokenizer().save_pretrained(tmp_path)
    requests = [ask("Oslo?"), ask("What is the weather like over there, I mean in Oslo, tomorrow evening?"), ask("Hi")]
    with open_backend(tmp_path, EvalConfig(max_new_tokens=8, device="cpu")) as backend:
        together = backend.generate(requests)
        alone = [backend.generate([request])[0] for request in requests]
    texts = [[reply.text for reply in replies if isinstance(reply, Generation)] for replies in (together, alone)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1, "the model must answer differently for the comparison to mean anything"


def test_what_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"absent\.gguf: no such file"):
        open_backend(tmp_path / "absent.gguf", CONFIG)
    with pytest.raises(BackendError, match=r"holds neither config\.json nor adapter_config\.json"):
        open_backend(tmp_path, CONFIG)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(BackendError, match=r"bad\.gguf"):
        open_backend(tmp_path / "bad.gguf", CONFIG)
    with pytest.raises(BackendError, match=r"eval\.device='tpux'"):
        open_backend(make_tiny_qwen3(tmp_path / "m"), EvalConfig(device="tpux"))


def test_the_gguf_backend_renders_the_same_prompt_and_keeps_the_markers() -> None:
    runtime = PlaybackRuntime(render_calls([CALL]))
    with GgufBackend(runtime, max_new_tokens=200) as backend:
        replies = backend.generate([ask("Oslo?"), ask("Oslo?")])
        assert runtime.detokenize(runtime.cached_ids).startswith(prompt_of(ask("Oslo?")))
    assert runtime.is_closed
    for reply in replies:
        assert isinstance(reply, Generation)
        assert (reply.text, reply.is_complete) == (render_calls([CALL]), True)


def test_the_gguf_backend_reports_cut_off_replies_and_prompts_without_room() -> None:
    cut = GgufBackend(PlaybackRuntime("a long reply"), max_new_tokens=3).generate([ask("Oslo?")])[0]
    assert isinstance(cut, Generation)
    assert (cut.text, cut.is_complete) == ("a l", False)
    full = GgufBackend(PlaybackRuntime("x", n_ctx=10), max_new_tokens=3).generate([ask("Oslo?")])[0]
    assert isinstance(full, Failure)
    assert "does not fit the context of 10" in full.reason
