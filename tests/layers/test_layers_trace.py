"""What is written about a run, and which words of a request make it one of several steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.layers.kitchen import LIST, OSLO, THURSDAY, Kitchen, ScriptedDispatcher, Server, endpoint, stack
from tinydispatch.layers.stack import dependence
from tinydispatch.layers.trace import Tracer


def test_each_step_is_traced_without_what_people_wrote(tmp_path: Path, mid: Server) -> None:
    path = tmp_path / "trace.jsonl"
    mid.replies = [[LIST], "secret words"]
    with stack(
        Kitchen(), ScriptedDispatcher(), tracer=Tracer(path, is_otel=False), orchestration=endpoint(mid.url)
    ) as made:
        made.run(THURSDAY)
    spans = [json.loads(line) for line in path.read_text().splitlines()]
    assert [span["name"] for span in spans] == ["hand_up", "orchestration", "tool", "orchestration", "run"]
    assert len({span["trace"] for span in spans}) == 1
    assert {span["parent"] for span in spans[:-1]} == {spans[-1]["span"]}
    assert spans[0]["attributes"]["reasons"] == ["dependent_words"]
    assert spans[1]["attributes"]["prompt_tokens"] == 200
    assert all(word not in path.read_text() for word in ("Lumen", "secret", "2026-03-19"))
    large = {"calls": [{"id": "day", "tool": LIST.name, "arguments": dict(LIST.arguments)}]}
    mid.replies = [large]
    planned = tmp_path / "planned.jsonl"
    with stack(Kitchen(), tracer=Tracer(planned, is_otel=False), planning=endpoint(mid.url)) as made:
        made.run("My day?")
    by_name = {span["name"]: span for span in map(json.loads, planned.read_text().splitlines())}
    assert by_name["tool"]["parent"] == by_name["plan"]["span"]
    told = tmp_path / "told.jsonl"
    with stack(Kitchen(), ScriptedDispatcher("Hi!"), tracer=Tracer(told, has_content=True, is_otel=False)) as made:
        made.run("Hello there")
    assert "Hello there" in told.read_text()


def test_spans_reach_opentelemetry_with_their_parents() -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(memory))
    tracer = Tracer(is_otel=True)
    tracer._otel = provider.get_tracer("test")
    stack(Kitchen(), ScriptedDispatcher([OSLO], "Fine."), tracer=tracer).run("Oslo?")
    spans = {span.name: span for span in memory.get_finished_spans()}
    assert set(spans) == {"tinydispatch.run", "tinydispatch.dispatch", "tinydispatch.tool"}
    assert spans["tinydispatch.tool"].parent.span_id == spans["tinydispatch.run"].context.span_id
    assert spans["tinydispatch.tool"].attributes["tinydispatch.tool"] == "get_weather"


@pytest.mark.parametrize(
    ("text", "is_dependent", "is_conditional"),
    [
        (THURSDAY, True, True),
        ("What is the weather in Oslo?", False, False),
        ("Weather in Oslo and Rome", False, False),
        ("Convert 5 euros, and email the result to jo@kew.example", True, False),
        ("Once you have the rate, send it", True, False),
        ("Remind me at 6 unless it rains", True, True),
        ('Send an e-mail with the body "If you can, then call me"', False, False),
        ("Set a reminder for 5: water the ferns, next week", False, False),
    ],
)
def test_words_of_dependence_are_those_of_the_request(text: str, is_dependent: bool, is_conditional: bool) -> None:
    found = dependence(text)
    assert (bool(found.marks), found.is_conditional) == (is_dependent, is_conditional)
