"""The embedded model through the engine: the same answers, the tokenizer's own split, no invalid call."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.cases import load_suite
from export.config import ExportConfig, Quantization
from export.export import export_gguf
from tests.fixtures_playback import TODAY
from tinydispatch.bundled import bundled_tools
from tinydispatch.engine import Completion, Engine, EngineOptions
from tinydispatch.formats import parse_reply, with_reference_date
from tinydispatch.ggml.open import open_model
from tinydispatch.ggml.runtime import Runtime
from tinydispatch.tools import Message, Role, check_calls

pytestmark = pytest.mark.slow

_WEIGHTS = Path(__file__).resolve().parents[2] / "training" / "nano" / "weights"
_FREE = EngineOptions(is_constrained=False, n_draft_ids=0)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    config = ExportConfig(quantizations=(Quantization.Q8_0,))
    report = export_gguf(_WEIGHTS, tmp_path_factory.mktemp("nano"), "nano", config)
    with open_model(report.files[0].path) as model:
        yield model


def _replies(runtime: Runtime, options: EngineOptions, n_cases: int) -> list[Completion]:
    engine = Engine(runtime, options)
    suite = load_suite("dev")
    replies = []
    for case in [case for case in suite.cases if not case.episode][:n_cases]:
        # Both engines evaluate the same prompt in the same batches, so that no logit is rounded otherwise there.
        runtime.truncate(0)
        messages = with_reference_date(case.messages, case.reference_date)
        replies.append(engine.complete(messages, suite.tools_for(case), 256))
    return replies


def test_valid_replies_stay_as_they_are_and_the_others_become_valid(runtime: Runtime) -> None:
    free, bound = _replies(runtime, _FREE, 60), _replies(runtime, EngineOptions(), 60)
    changed = []
    for before, after in zip(free, bound, strict=True):
        parsed = parse_reply(before.text)
        if before.is_complete and not parsed.unparsed and not check_calls(parsed.calls, bundled_tools()):
            changed += [(before.text, after.text)] if before.text != after.text else []
        if after.is_complete:
            reply = parse_reply(after.text)
            assert not reply.unparsed
            assert not check_calls(reply.calls, bundled_tools())
    # Evaluated in other batches, a logit is rounded otherwise; where two ids are equally likely that decides.
    assert len(changed) <= 2, changed


def test_forced_ids_are_the_tokenizers_own(runtime: Runtime) -> None:
    engine = Engine(runtime)
    for text in ("weather in Oslo", "convert 20 USD to EUR", "mail bob@x.org that lunch is at noon, subject lunch"):
        done = engine.complete(with_reference_date([Message(Role.USER, text)], TODAY), bundled_tools(), 256)
        ids = list(runtime.cached_ids[done.tokens.prompt :])
        assert done.tokens.forced > 5 or not parse_reply(done.text).calls
        assert ids == runtime.tokenize(done.text, parse_special=True)[: len(ids)]


_PIECES = (
    "<tool_call>", "</tool_call>", '{"name": "get_weather", "arguments": {', "<|im_end|>", "<|im_start|>assistant\n",
    '"}}', "weather in", "remind me", "email", "convert 5", "tomorrow", "東京の天気は？", "Какая погода?",
    "مرحبا", "🎉" * 5, "\u202e", "\x00\x07", "{" * 20, "[1, 2", "\\u0041", "null", "a@b.co",
    "2026-99-99", "' OR 1=1 --", "é" * 30, "\n\n\n",
)  # fmt: skip


def _random_prompt(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.02:
        return "".join(rng.choice("abcdefghij klmn {}<>\"'") for _ in range(1500))
    if kind < 0.25:
        return "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xA0, 0x3000)])) for _ in range(40))
    return " ".join(rng.choice(_PIECES) for _ in range(rng.randint(1, 6)))


def test_two_thousand_random_prompts_bring_no_invalid_call(runtime: Runtime) -> None:
    engine = Engine(runtime)
    rng = random.Random(7)
    n_calls = 0
    for _ in range(2000):
        prompt = _random_prompt(rng)
        done = engine.complete(with_reference_date([Message(Role.USER, prompt)], TODAY), bundled_tools(), 96)
        reply = parse_reply(done.text)
        assert not check_calls(reply.calls, bundled_tools()), (prompt, done.text)
        assert not reply.unparsed or not done.is_complete, (prompt, done.text)
        n_calls += len(reply.calls)
    assert n_calls > 200
