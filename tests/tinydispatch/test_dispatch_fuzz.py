"""A model that chooses at random among what the grammar allows: whatever it ends up with can be called."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from scripts import fuzz_dispatch
from tests.fixtures_playback import TODAY, PlaybackRuntime
from tinydispatch.bundled import bundled_tools
from tinydispatch.decoding.reply import ToolChoice
from tinydispatch.decoding.schema import KeyOrder
from tinydispatch.dispatcher import Dispatcher
from tinydispatch.engine import EngineOptions
from tinydispatch.ggml.runtime import Logits
from tinydispatch.tools import Tool

_WORDS = ('{"', '": ', '", "', '"}', "</tool_call>", '"]', "2026-", "@", "Europe/", "true", "null", "}}", '"', ", ")
_ADDRESS = {
    "type": "object",
    "properties": {
        "mail": {"type": "string", "format": "email"},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        "kind": {"enum": ["home", "work", None, 3]},
    },
    "required": ["mail", "kind"],
    "additionalProperties": False,
}
_STRESS = Tool(
    "ship.it-now_2",
    "Everything that a schema can ask for",
    {
        "type": "object",
        "properties": {
            "to": {"type": "array", "items": _ADDRESS, "minItems": 1, "maxItems": 3},
            "on": {"type": "string", "format": "date"},
            "at": {"type": "string", "format": "local-date-time"},
            "zone": {"type": "string", "format": "iana-time-zone"},
            "weight": {"type": "number", "exclusiveMinimum": 0, "maximum": 99.5},
            "count": {"type": "integer", "minimum": -7, "maximum": 1440},
            "note": {"type": "string", "minLength": 1, "maxLength": 20},
            "either": {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 4}, {"$ref": "#/$defs/pair"}]},
            "free": {},
        },
        "required": ["to", "count"],
        "$defs": {"pair": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}},
    },
)


class _RandomRuntime(PlaybackRuntime):
    """Every id is likely at random; those that end something are likelier, so that replies come to an end."""

    def __init__(self, seed: int) -> None:
        super().__init__("", words=_WORDS)
        self._random = np.random.default_rng(seed)
        self._ends = [index for index, text in enumerate(self._texts) if text[-1:] in (b'"', b"}", b"]", b">")]

    def _logits(self) -> Logits:
        logits = self._random.normal(size=self.n_vocab).astype(np.float32)
        logits[self._ends] += 2.5
        return logits


@pytest.mark.parametrize("order", list(KeyOrder))
@pytest.mark.parametrize("tools", [bundled_tools(), (_STRESS,)], ids=["bundled", "stress"])
def test_every_finished_reply_of_a_random_model_holds_valid_calls(tools: Sequence[Tool], order: KeyOrder) -> None:
    n_calls = n_finished = 0
    runtime = _RandomRuntime(3)
    options = EngineOptions(key_order=order)
    dispatcher = Dispatcher(runtime, tools, TODAY, options=options, max_new_tokens=800)
    for number in range(16):
        dispatch = dispatcher.dispatch(
            fuzz_dispatch.random_prompt(random.Random(number))[1][:200], choice=ToolChoice.REQUIRED, is_parallel=False
        )
        assert dispatch.violations == ()
        # No grammar forbids a key to occur twice where a schema leaves all of an object free; it is not handed on.
        is_twice = tools != bundled_tools() and "a key occurs twice" in "".join(
            found.error for found in dispatch.unparsed
        )
        assert dispatch.unparsed == () or is_twice or not dispatch.is_complete
        n_calls += len(dispatch.calls) + (is_twice and dispatch.is_complete)
        n_finished += dispatch.is_complete
    assert n_calls == n_finished
    assert n_finished >= 4


def test_a_prompt_depends_on_its_number_and_every_kind_occurs() -> None:
    prompts = [fuzz_dispatch.random_prompt(random.Random(f"7/{number}")) for number in range(300)]
    assert prompts[:5] == [fuzz_dispatch.random_prompt(random.Random(f"7/{number}")) for number in range(5)]
    assert {kind for kind, _ in prompts} == set(fuzz_dispatch.PromptKind)
    longest = max((text for _, text in prompts), key=len)
    assert len(longest.encode()) >= 10_000
    assert any("<tool_call>" in text for _, text in prompts)


def _fuzz(monkeypatch: pytest.MonkeyPatch, log: Path, *options: str) -> int:
    runtime = PlaybackRuntime("Sure.")
    monkeypatch.setattr(
        fuzz_dispatch, "Dispatcher", lambda _, tools, *__, **___: Dispatcher(runtime, tools, TODAY, max_new_tokens=30)
    )
    return fuzz_dispatch.main(["model.gguf", "--log", str(log), *options])


def test_a_run_that_was_stopped_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    assert _fuzz(monkeypatch, log, "--count", "4") == 0
    first = log.read_text().splitlines()
    assert _fuzz(monkeypatch, log, "--count", "6") == 0
    assert log.read_text().splitlines()[: len(first)] == first
    assert len(log.read_text().splitlines()) == 7
    assert _fuzz(monkeypatch, log, "--count", "6", "--seed", "8") == 2
    assert "the log of another run" in capsys.readouterr().err


def test_an_invalid_call_is_found_and_fails_the_run() -> None:
    reply = '<tool_call>{"name": "get_weather", "arguments": {"location": 3}}</tool_call>'
    unconstrained = EngineOptions(is_constrained=False)
    dispatcher = Dispatcher(PlaybackRuntime(reply), bundled_tools(), TODAY, options=unconstrained)
    assert fuzz_dispatch.answer(dispatcher, 1, 7).problem.startswith("schema_violation")
    dispatcher = Dispatcher(PlaybackRuntime("<tool_call>oops"), bundled_tools(), TODAY, options=unconstrained)
    assert fuzz_dispatch.answer(dispatcher, 1, 7).problem.startswith("unparsed")
