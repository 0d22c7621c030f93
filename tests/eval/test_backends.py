"""Backends: the same request text for every model, markers kept, failures as values."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, OPTConfig, OPTForCausalLM, Qwen3Config, Qwen3ForCausalLM

from eval.backends import BackendError, Failure, Generation, Request, open_backend
from eval.backends.batched import BatchedGreedy
from eval.backends.checkpoint import CheckpointBackend, batch_that_fits
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
CONFIG = EvalConfig(max_new_tokens=40, device="cpu", constrained=False)
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
    backend = CheckpointBackend(OPTForCausalLM(config), tokenizer, max_new_tokens=2, batch_size=1, is_plain=True)
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


@pytest.fixture(params=RANDOM_MODELS)
def random_model(request: pytest.FixtureRequest) -> Any:
    """Says something else to each request, and ends now and then: a tenth of its tokens are ends."""
    torch.manual_seed(0)
    model_class, config = RANDOM_MODELS[request.param]
    model = model_class(config)
    model.generation_config.eos_token_id = list(range(0, 400, 10))
    return model


def backend_of(model: Any, batch_size: int, *, is_plain: bool = False) -> CheckpointBackend:
    return CheckpointBackend(model, make_tiny_tokenizer(), max_new_tokens=24, batch_size=batch_size, is_plain=is_plain)


SAID = ("Oslo?", "What is the weather like over there, I mean in Oslo, tomorrow evening?", "Hi", "Rome", "And Bern?",
        "Oslo? " * 9, "A day in the mountains would be nice, would it not?")  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_a_batch_says_what_the_library_says_to_each_request_alone(random_model: Any, batch_size: int) -> None:
    requests = [ask(text) for text in SAID]
    alone = backend_of(random_model, 1, is_plain=True).generate(requests)
    together = backend_of(random_model, batch_size).generate(requests)
    found = [
        [(reply.text, reply.tokens, reply.is_complete) for reply in replies if isinstance(reply, Generation)]
        for replies in (together, alone)
    ]
    assert found[0] == found[1]
    assert len({tokens for _, tokens, _ in found[0]}) > 2, "rows must end at different times for this to mean anything"


def test_other_tools_and_shorter_beginnings_do_not_disturb_what_is_kept(random_model: Any) -> None:
    few = [Request(request.messages, bundled_tools()[2:4], request.reference_date) for request in map(ask, SAID[:3])]
    later = [Request(request.messages, WEATHER, dt.date(2026, 4, 1)) for request in map(ask, SAID[:3])]
    kept = backend_of(random_model, 3)
    for requests in (few, later, [ask(text) for text in SAID], few[:1], later):
        fresh = backend_of(random_model, 1, is_plain=True)
        assert texts_of(kept.generate(requests)) == texts_of(fresh.generate(requests))


def texts_of(replies: list[Generation | Failure]) -> list[str]:
    return [reply.text if isinstance(reply, Generation) else reply.reason for reply in replies]


def test_what_prompts_begin_with_is_computed_once(random_model: Any) -> None:
    computed: list[int] = []
    hook = random_model.base_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: computed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    backend = backend_of(random_model, 3)
    lengths = [len(ids) for ids in (backend._encode(ask(text)) for text in SAID[:3]) if isinstance(ids, list)]
    backend.generate([ask(text) for text in SAID[:3]])
    first = sum(computed)
    assert first < sum(lengths)
    computed.clear()
    backend.generate([ask(text) for text in SAID[:3]])
    assert first - sum(computed) > 100, "the tools and the date are there already"
    hook.remove()


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


@pytest.mark.parametrize("look_every", [2, 5, 24, 100])
def test_looking_rarely_at_the_device_changes_no_reply(random_model: Any, look_every: int) -> None:
    backend = backend_of(random_model, 7)
    prompts = [ids for ids in (backend._encode(ask(text)) for text in SAID) if isinstance(ids, list)]

    def replies(every: int) -> list[list[int]]:
        with torch.inference_mode():
            return BatchedGreedy(random_model, backend._end_ids, 0, every).replies(prompts, 24)

    assert replies(look_every) == replies(1)


def test_a_batch_is_as_large_as_memory_holds() -> None:
    qwen = Qwen3Config(vocab_size=151_936, hidden_size=2560, num_hidden_layers=36, num_attention_heads=32,
                       num_key_value_heads=8, head_dim=128, intermediate_size=9728)  # fmt: skip
    fitting = [batch_that_fits(qwen, 2, 4096, free) for free in (2 * 10**9, 8 * 10**9, 70 * 10**9, 10**12)]
    # Keys and values of 4,096 positions in 36 layers are 604 MB.
    assert fitting[0] == 1
    assert 6 <= fitting[1] <= 8 * 10**9 // 604_000_000
    assert 60 <= fitting[2] <= 70 * 10**9 // 604_000_000
    assert fitting[3] == 256
    small = OPTConfig(**SHAPE)
    assert batch_that_fits(small, 4, 10**6, 10**9) == batch_that_fits(small, 4, 512, 10**9) > 1, "the model's positions"
