"""Workflow cases played against simulated tools: gold passes, and each way to go wrong has its own outcome."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.backends import Failure, Generation, PlaybackBackend, Request
from eval.cases import Case, Suite
from eval.evaluate import evaluate
from eval.matchers import accepts
from eval.matching import Outcome
from eval.results import CaseResult, load_result
from eval.suites import load_suite
from tinydispatch.formats import render_calls, render_prompt
from tinydispatch.tools import ToolCall

WORKFLOW = load_suite("workflow")
CASES = {case.id: case for case in WORKFLOW.cases}
Script = list[list[str]]  # by message of the user's, the replies to it


def gold_script(case: Case) -> Script:
    assert case.episode is not None
    return [
        [
            *(render_calls([wanted.examples()[0] for wanted in step.calls]) for step in phase.steps),
            "All done." if phase.steps else "What exactly?",
        ]
        for phase in case.episode.phases
    ]


def run(case: Case, script: Sequence[Sequence[str | Failure | Generation]], suite: Suite = WORKFLOW) -> CaseResult:
    assert case.episode is not None
    users = [case.prompt, *(phase.user or "" for phase in case.episode.phases[1:])]
    replies = {user: list(texts) for user, texts in zip(users, script, strict=False)}
    alone = replace(suite, cases=(case,))
    return evaluate(PlaybackBackend(replies), alone, model_name="m", progress=False).cases[0]


def call(name: str, **arguments: Any) -> str:
    return render_calls([ToolCall(name, arguments)])


@pytest.mark.parametrize("case", WORKFLOW.cases, ids=lambda case: case.id)
def test_the_script_itself_passes_and_reaches_the_final_state(case: Case) -> None:
    result = run(case, gold_script(case))
    assert (result.outcome, result.explanation, result.is_goal_reached) == (Outcome.CORRECT, "", True)


@pytest.mark.parametrize("category", WORKFLOW.categories)
def test_each_category_has_eight_cases_or_more(category: str) -> None:
    assert sum(case.category == category for case in WORKFLOW.cases) >= 8


LIST = call("list_calendar_events", start_date="2026-04-16", end_date="2026-04-16")
GARDENING = call("create_calendar_event", title="Gardening", start="2026-04-16T10:00")
KINLOCHARD = call("get_weather", location="Kinlochard", date="2027-03-30")
GENOA = call("get_weather", location="Genoa", date="2027-03-30")
EURO = call("convert_currency", amount=80, from_currency="USD", to_currency="EUR")
ROOF = call("create_calendar_event", title="Roof inspection", start="2026-10-20T08:00")
BOOKED = call("send_email", to=["owner@ridge.example"], subject="Roof", body="It's booked.")
FERNS = call("set_reminder", text="water the ferns", remind_at="2028-03-07T18:00")
CHOIR = call("create_calendar_event", title="Choir practice", start="2028-03-08T19:30")
KEYS = call("send_email", to=["finn@harbour.example"], subject="Keys", body="The keys are under the mat.")

DEFECTS: list[tuple[str, str, Script, Outcome, str]] = [
    ("both steps at once", "sq-01", [[LIST + GARDENING, "Done."]], Outcome.PREMATURE_CALL,
     'reply 1: create_calendar_event({"title": "Gardening", "start": "2026-04-16T10:00"}) must wait for the result of '
     "list_calendar_events"),
    ("the second step first", "sq-01", [[GARDENING, LIST, "Done."]], Outcome.PREMATURE_CALL, "reply 1: "),
    ("the condition does not hold and the call is made all the same", "sq-02", [[LIST, GARDENING, "Done."]],
     Outcome.EXTRA_CALL, "reply 2: not asked for: create_calendar_event"),
    ("stops half way", "sq-01", [[LIST, "The day is free."]], Outcome.NO_CALL,
     "reply 2: stops; still due: create_calendar_event"),
    ("ordered steps, the other way round", "sq-10", [[CHOIR, FERNS, "Done."]], Outcome.WRONG_ORDER,
     "reply 1: create_calendar_event comes before set_reminder"),
    ("ordered steps, the other way round in one reply", "sq-10", [[CHOIR + FERNS, "Done."]], Outcome.WRONG_ORDER,
     "reply 1: create_calendar_event comes before set_reminder"),
    ("the failed call again", "er-03", [[EURO, EURO, "Sorry."]], Outcome.IGNORED_ERROR,
     'reply 2: convert_currency({"amount": 80, "from_currency": "USD", "to_currency": "EUR"}) failed before'),
    ("goes on after a failure", "er-05", [[ROOF, BOOKED, "Done."]], Outcome.IGNORED_ERROR,
     "reply 2: goes on with send_email"),
    ("gives up where the error says what to do", "er-01",
     [[call("get_weather", location="Brannock Hill", date="2026-09-28"), "I could not find it."]], Outcome.NO_CALL,
     "reply 2: stops after get_weather"),
    ("repeats the call that worked beside the one that failed", "er-07",
     [[GENOA + KINLOCHARD, GENOA + call("get_weather", location="Kinlochard, Scotland", date="2027-03-30"), "Done."]],
     Outcome.EXTRA_CALL, 'reply 2: get_weather({"location": "Genoa", "date": "2027-03-30"}) made once more'),
    ("retries once more after the retry worked", "er-02", [[KEYS, KEYS, KEYS, "Done."]], Outcome.EXTRA_CALL,
     "reply 3: send_email"),
    ("guesses instead of asking", "cl-04",
     [[call("get_weather", location="London", date="2027-06-20"), "Fine."], ["Ok"]],
     Outcome.EXTRA_CALL, "reply 1: not asked for: get_weather"),
    ("asks once more after the answer", "cl-04", [["Where?"], ["Which Utrecht?"]], Outcome.NO_CALL, "reply 2: stops"),
    ("does not understand the answer", "cl-04", [["Where?"], [call("get_weather", location="Utrecht"), "Fine."]],
     Outcome.MISSING_ARGUMENT, "reply 2: date: expected"),
    ("acts on thanks", "ab-01", [[call("get_current_time", timezone="Asia/Tokyo"), "It is late."]],
     Outcome.EXTRA_CALL, "reply 1"),
    ("uses another tool", "er-03", [[call("search_web", query="80 USD in EUR"), "Here."]], Outcome.WRONG_TOOL,
     "reply 1: wanted convert_currency, got search_web"),
    ("a value from nowhere", "sq-05",
     [[call("convert_currency", amount=250, from_currency="EUR", to_currency="CHF"),
       call("send_email", to=["reto@alpenhof.example"], subject="Deposit", body="It is 240 francs."), "Sent."]],
     Outcome.WRONG_ARGUMENT, "reply 2: body: expected contains"),
    ("a date that the schema refuses", "sq-01",
     [[call("list_calendar_events", start_date="Thursday", end_date="2026-04-16"), "Done."]],
     Outcome.SCHEMA_VIOLATION, "reply 1: start_date"),
    ("a call that cannot be read", "sq-01", [[LIST, "<tool_call>{", "Done."]], Outcome.UNPARSEABLE, "reply 2: "),
    ("nothing at all where text was due", "ab-01", [[" "]], Outcome.UNPARSEABLE, "reply 1: an empty reply"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case_id", "script", "outcome", "evidence"), [row[1:] for row in DEFECTS], ids=[row[0] for row in DEFECTS]
)
def test_each_defect_has_its_own_outcome_with_evidence(
    case_id: str, script: Script, outcome: Outcome, evidence: str
) -> None:
    result = run(CASES[case_id], script)
    assert result.outcome is outcome
    assert result.explanation.startswith(evidence)


def mutations(calls: Sequence[ToolCall]) -> list[list[ToolCall]]:
    """The calls of one step with one of them dropped, doubled, renamed, or changed in one argument."""
    found = [[*calls, calls[0]]]
    for index, wanted in enumerate(calls):
        rest = [other for place, other in enumerate(calls) if place != index]
        found += [[*rest, ToolCall("look_up", wanted.arguments)], [*rest, ToolCall(wanted.name, {})]]
        for name, value in wanted.arguments.items():
            found += [
                [*rest, ToolCall(wanted.name, {**wanted.arguments, name: other})]
                for other in (json.dumps(value), [value], f"{value}0", None)
            ]
    return found


@pytest.mark.parametrize("case", [case for case in WORKFLOW.cases if case.expected], ids=lambda case: case.id)
def test_any_change_to_any_call_of_any_step_fails(case: Case) -> None:
    assert case.episode is not None
    for number, step in enumerate(case.episode.phases[0].steps):
        for calls in mutations([wanted.examples()[0] for wanted in step.calls]):
            if all(accepts(a.arguments, b.arguments, {}) for a, b in zip(step.calls, calls, strict=False)):
                continue  # a value that the matcher takes
            script = gold_script(case)
            script[0][number] = render_calls(calls)
            assert run(case, script).outcome is not Outcome.CORRECT, render_calls(calls)


def test_every_outcome_occurs_among_the_defects() -> None:
    assert {row[3] for row in DEFECTS} | {Outcome.CORRECT} == set(Outcome)


def test_calls_of_one_step_may_come_one_after_the_other() -> None:
    script = [[KINLOCHARD, GENOA, *gold_script(CASES["er-07"])[0][1:]]]
    assert run(CASES["er-07"], script).outcome is Outcome.CORRECT


def test_ordered_steps_that_need_not_wait_may_share_a_reply() -> None:
    assert run(CASES["sq-10"], [[FERNS + CHOIR, "Done."]]).outcome is Outcome.CORRECT


def test_a_way_round_that_reaches_the_goal_fails_strictly_and_shows_as_reached() -> None:
    lookup = call("get_current_time", timezone="Europe/London")
    result = run(CASES["sq-01"], [[lookup, LIST, GARDENING, "Done."]])
    assert (result.outcome, result.is_goal_reached) == (Outcome.WRONG_TOOL, True)


def test_the_transcript_holds_all_that_was_said() -> None:
    transcript = run(CASES["cl-04"], gold_script(CASES["cl-04"])).transcript
    assert [line["role"] for line in transcript] == ["assistant", "user", "assistant", "tool", "assistant"]
    assert transcript[1]["content"] == "In Utrecht."
    assert '"location": "Utrecht"' in transcript[3]["content"]


def test_a_model_that_never_stops_is_stopped() -> None:
    result = run(CASES["ab-01"], [[call("get_current_time", timezone="Asia/Tokyo")] * 50])
    assert result.outcome is Outcome.EXTRA_CALL
    assert len([line for line in result.transcript if line["role"] == "assistant"]) <= 4


def test_a_backend_that_fails_on_the_way_leaves_the_case_unscored() -> None:
    result = run(CASES["sq-01"], [[LIST, Failure("out of memory")]])
    assert (result.outcome, result.explanation) == (None, "reply 2: out of memory")


def test_a_reply_that_is_cut_off_on_the_way_is_unparseable() -> None:
    cut = Generation(GARDENING[:-20], latency_s=0.0, tokens=384, is_complete=False)
    result = run(CASES["sq-01"], [[LIST, cut]])
    assert (result.outcome, result.is_goal_reached) == (Outcome.UNPARSEABLE, False)
    assert "384 tokens" in result.explanation


def test_half_a_surrogate_pair_in_a_call_reaches_neither_the_prompt_nor_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = '<tool_call>{"name": "get_weather", "arguments": {"location": "\\ud83d"}}</tool_call>'
    replies = {CASES["ab-01"].prompt: [reply, "Fine."]}
    alone = replace(WORKFLOW, cases=(CASES["ab-01"],))
    backend = PlaybackBackend(replies)
    seen: list[str] = []
    generate = backend.generate

    def listen(requests: Sequence[Request]) -> list[Generation | Failure]:
        seen.extend(render_prompt(request.messages, request.tools) for request in requests)
        return generate(requests)

    monkeypatch.setattr(backend, "generate", listen)
    result = evaluate(backend, alone, model_name="m", progress=False)
    assert load_result(result.save(tmp_path)) == result
    assert all(prompt.encode() for prompt in seen)
    assert len(seen) == 2
