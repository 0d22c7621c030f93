"""The embedded model through the engine: the same answers, the tokenizer's own split, no invalid call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.suites import load_suite
from export.config import ExportConfig, Quantization
from export.export import export_gguf
from scripts import fuzz_dispatch
from tests.fixtures_playback import TODAY
from tinydispatch.bundled import bundled_tools
from tinydispatch.dispatcher import Dispatcher
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


def test_replies_to_random_prompts_hold_no_invalid_call(runtime: Runtime) -> None:
    dispatcher = Dispatcher(runtime, bundled_tools(), TODAY, max_new_tokens=96)
    found = [fuzz_dispatch.answer(dispatcher, index, 7) for index in range(150)]
    assert [answer for answer in found if answer.problem] == []
    assert sum(answer.n_calls for answer in found) > 50
