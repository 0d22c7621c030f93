"""A challenger beside the champion: a shadow that nobody waits for, a canary that is rolled back by itself."""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.fixtures_server import ONE_CALL, GatedRuntime, Running, make_dispatcher, running, wait_until
from tinydispatch.dispatch_log import DispatchLog
from tinydispatch.server.holder import ModelHolder, Serving
from tinydispatch.server.request import ChatRequest
from tinydispatch.server.rollout import Arm, Canary, Phase, Rollout, Shadow, Signal, fault, is_error
from tinydispatch.tools import Message, Role

OTHER_CALL = ONE_CALL.replace("Oslo", "Rome")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


@contextmanager
def beside(rollout: Rollout, folder: Path, **settings: Any) -> Iterator[Running]:
    with running(dispatch_log=DispatchLog(folder), rollout=rollout, **settings) as server:
        yield server


def shadow(folder: Path, reply: str, runtime: GatedRuntime | None = None) -> Shadow:
    return Shadow(lambda: Serving(make_dispatcher(reply, runtime=runtime)[0], "new"), "new", DispatchLog(folder))


def canary(folder: Path, reply: str = ONE_CALL, step_answers: int = 10, runtime: GatedRuntime | None = None) -> Canary:
    folder.mkdir(exist_ok=True)
    serving = Serving(make_dispatcher(reply, runtime=runtime)[0], "new")
    return Canary(serving, folder / "state", DispatchLog(folder), step_answers=step_answers)


def answer(server: Running, text: str) -> dict[str, Any]:
    response = server.post(server.ask(text))
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def go_on(server: Running, text: str, first: dict[str, Any], result: str, **more: Any) -> int:
    """Report the first call's result, as an agent does."""
    message = first["choices"][0]["message"]
    call = message["tool_calls"][0]
    body = server.ask(text, **more)
    body["messages"] += [message, {"role": "tool", "tool_call_id": call["id"], "content": result}]
    return server.post(body).status_code


def test_a_shadow_answers_nobody_and_its_disagreements_are_logged_for_a_person(tmp_path: Path) -> None:
    with beside(shadow(tmp_path, OTHER_CALL), tmp_path) as server:
        told = answer(server, "Oslo?")
        assert told["system_fingerprint"] == "fp_first"
        wait_until(lambda: server.metric('tinydispatch_shadow_requests_total{result="disagreed"}') == 1)
        assert server.health()["shadow"]["id"] == "new"
    own, found = lines(tmp_path)
    assert own["id"] == found["id"]
    assert found["calls"] == own["calls"]
    assert found["challenger"]["calls"][0]["arguments"] == {"location": "Rome"}
    assert found["challenger"]["model"] == "new"
    assert found["is_accepted"] is False, "nobody said yet who is right, so it is not trained on"


def test_a_shadow_that_agrees_adds_nothing_to_the_log(tmp_path: Path) -> None:
    with beside(shadow(tmp_path, ONE_CALL), tmp_path) as server:
        answer(server, "Oslo?")
        wait_until(lambda: server.metric('tinydispatch_shadow_requests_total{result="agreed"}') == 1)
    assert len(lines(tmp_path)) == 1


def test_a_shadow_that_hangs_holds_nobody_up_and_what_it_does_not_hear_is_counted(tmp_path: Path) -> None:
    stuck = GatedRuntime(ONE_CALL)
    stuck.shut()
    with beside(shadow(tmp_path, ONE_CALL, stuck), tmp_path) as server:
        for number in range(70):
            answer(server, f"Oslo {number}?")  # gives up after a time of its own
        assert server.metric('tinydispatch_shadow_requests_total{result="dropped"}') >= 70 - 64 - 1
        stuck.gate.set()


@pytest.mark.parametrize(("result", "expected"), [
    ('{"error": "no such place"}', True), ("Error: timeout", True), ('{"is_error": true}', True),
    ('{"error": null, "temperature": 3}', False), ("12 degrees, no errors", False), ("", False), ("{", False),
])  # fmt: skip
def test_what_reads_as_an_error_of_a_tool(result: str, expected: bool) -> None:
    assert is_error(result) is expected


def test_a_canary_that_makes_tool_errors_is_rolled_back_by_itself_and_no_request_is_lost(tmp_path: Path) -> None:
    new = canary(tmp_path, OTHER_CALL, step_answers=200)
    new.state.step = 1
    by_model: Counter[str] = Counter()

    def dialogue(number: int) -> int:
        text = f"What is the weather like for traveller {number}?"
        first = answer(server, text)
        by_model[first["system_fingerprint"]] += 1
        result = '{"error": "no such place"}' if first["system_fingerprint"] == "fp_new" else '{"temperature": 3}'
        return go_on(server, text, first, result)

    with beside(new, tmp_path) as server, ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(dialogue, range(40)))
        assert server.health()["canary"]["phase"] == "rolled_back"
        assert "tool_error" in server.health()["canary"]["reason"]
        assert server.metric("tinydispatch_canary_share") == 0
        before = by_model["fp_new"]
        assert [dialogue(number) for number in range(40, 60)] == [200] * 20
        assert by_model["fp_new"] == before, "it gets no further request"
    assert statuses == [200] * 40
    assert 3 <= before <= 25, "it had a quarter of the dialogues"
    errors = [line for line in lines(tmp_path) if "tool_error" in line]
    assert len(errors) >= 3
    assert {line["model"] for line in errors} == {"new"}


def test_the_state_survives_a_restart_and_another_challenger_begins_anew(tmp_path: Path) -> None:
    new = canary(tmp_path, step_answers=1)
    new.state.step = 1
    with beside(new, tmp_path) as server:
        for number in range(20):
            answer(server, f"How is Oslo on day {number}?")
        share = server.health()["canary"]["share"]
        assert share == 100
    again = canary(tmp_path, step_answers=1)
    assert (again.state.share, again.state.canary.answers) == (share, again.state.canary.answers)
    assert again.state.canary.answers > 0
    again.close()
    other = Canary(Serving(make_dispatcher()[0], "newer"), tmp_path / "state")
    assert (other.state.share, other.state.canary.answers) == (5, 0)
    other.close()


def test_a_state_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("[]")
    dispatcher, _ = make_dispatcher()
    with pytest.raises(ValueError, match="delete it to begin anew"):
        Canary(Serving(dispatcher, "new"), tmp_path / "state")


def test_a_canary_that_does_well_ends_with_every_dialogue(tmp_path: Path) -> None:
    with beside(canary(tmp_path, step_answers=1), tmp_path) as server:
        number = 0
        while server.health()["canary"]["phase"] == "running":
            answer(server, f"How is Oslo on day {number}?")
            number += 1
            assert number < 300
        assert server.health()["canary"] == {"id": "new", "phase": "completed", "share": 100}
        assert answer(server, "And Oslo now?")["system_fingerprint"] == "fp_new"


def test_where_the_canary_breaks_the_champion_answers(tmp_path: Path) -> None:
    class Broken(GatedRuntime):
        def decode_all(self, *_: Any) -> Any:
            raise RuntimeError("out of memory")

        def decode(self, *_: Any) -> Any:
            raise RuntimeError("out of memory")

    new = canary(tmp_path, runtime=Broken(ONE_CALL))
    new.state.step = 2
    with beside(new, tmp_path) as server:
        told = [answer(server, f"How is Oslo on day {number}?")["system_fingerprint"] for number in range(8)]
        assert told == ["fp_first"] * 8
        assert new.state.phase is Phase.ROLLED_BACK


def test_feedback_is_logged_with_its_answer_and_counts_against_who_gave_it(tmp_path: Path) -> None:
    new = canary(tmp_path)
    new.state.step = 2
    with beside(new, tmp_path) as server:
        told = answer(server, "Oslo?")
        call = {"name": "get_weather", "arguments": {"location": "Bergen"}}
        said = {"id": told["id"], "correction": {"calls": [call]}}
        assert server.send("/v1/feedback", said).status_code == 200
        assert server.send("/v1/feedback", said).status_code == 200, "said twice, counted once"
        assert new.state.canary.signals["correction"] == 1
        by_call = told["choices"][0]["message"]["tool_calls"][0]["id"]
        assert server.send("/v1/feedback", {"id": by_call, "tool_error": "timeout"}).status_code == 200
        assert server.send("/v1/feedback", {"id": "chatcmpl-0", "tool_error": True}).status_code == 404
        wrong = server.send("/v1/feedback", {"id": told["id"], "correction": "Bergen"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "correction")
    corrected = [line for line in lines(tmp_path) if "correction" in line]
    assert corrected[0]["correction"]["calls"] == [call]
    assert corrected[0]["messages"] == lines(tmp_path)[0]["messages"]


def test_an_equal_canary_stays_and_a_worse_one_goes() -> None:
    def arm(answers: int, **signals: int) -> Arm:
        found = Arm(answers)
        found.signals.update(signals)
        return found

    assert fault(arm(400, tool_error=8), arm(100, tool_error=3)) is None
    assert fault(arm(0), arm(2, tool_error=2)) is None
    assert fault(arm(0), arm(3, tool_error=3)) is not None
    reason = fault(arm(400, correction=8), arm(100, correction=14))
    assert reason == "correction: 14 of 100 answers, and 8 of 400 of the champion"


@contextmanager
def alone(folder: Path, step_answers: int = 10) -> Iterator[Canary]:
    """A canary and its champion without a server around them."""
    new = canary(folder, step_answers=step_answers)
    champion = ModelHolder(Serving(make_dispatcher()[0], "first"))
    new.bind(champion, CollectorRegistry())
    try:
        yield new
    finally:
        new.close()
        champion.close()


def asked(*texts: str, session: str | None = None) -> ChatRequest:
    return ChatRequest(tuple(Message(Role.USER, text) for text in texts), (), session=session)


def is_canarys(new: Canary, request: ChatRequest) -> bool:
    return new.route(request)[0] is not new.holder


def answered(new: Canary, count: int, by: str = "new", **more: Any) -> None:
    """So many answers, each of a dialogue of its own."""
    dispatch = SimpleNamespace(violations=(), unparsed=())
    whole = {"serving_id": by, "calls": (), "finish_reason": "stop", "dispatch": dispatch, **more}
    for number in range(count):
        new.finished(asked(f"{number}"), SimpleNamespace(**whole), f"{by}{number}")  # type: ignore[arg-type]


@pytest.mark.parametrize(("step", "least", "most"), [(0, 25, 80), (1, 200, 300), (2, 1000, 1000)])
def test_a_canary_has_its_share_of_the_dialogues_and_no_more(tmp_path: Path, step: int, least: int, most: int) -> None:
    with alone(tmp_path) as new:
        new.state.step = step
        assert least <= sum(is_canarys(new, asked(f"request {number}")) for number in range(1000)) <= most
        new.state.phase = Phase.ROLLED_BACK
        assert not any(is_canarys(new, asked(f"request {number}")) for number in range(100))


def test_a_dialogue_stays_with_the_model_that_it_began_with(tmp_path: Path) -> None:
    with alone(tmp_path) as new:
        new.state.step = 1
        began = [asked(f"request {number}") for number in range(100)]
        goes_on = [asked(f"request {number}", "and tomorrow?") for number in range(100)]
        assert [is_canarys(new, each) for each in began] == [is_canarys(new, each) for each in goes_on]
        for session in map(str, range(20)):
            assert len({is_canarys(new, asked(f"{text}", session=session)) for text in range(10)}) == 1


def test_a_step_wants_all_its_answers_anew(tmp_path: Path) -> None:
    with alone(tmp_path, step_answers=10) as new:
        for share in (5, 25, 100):
            assert (new.state.share, new.state.phase) == (share, Phase.RUNNING)
            answered(new, 9)
            answered(new, 50, by="first")
            assert (new.state.share, new.state.phase) == (share, Phase.RUNNING)
            answered(new, 1)
        assert new.state.phase is Phase.COMPLETED


def test_a_canary_that_does_a_little_worse_is_neither_given_more_nor_rolled_back(tmp_path: Path) -> None:
    with alone(tmp_path, step_answers=10) as new:
        answered(new, 60, by="first")
        answered(new, 9)
        new.signalled("new", Signal.CORRECTION)
        answered(new, 40)
        assert (new.state.share, new.state.phase) == (5, Phase.RUNNING), "1 of 49 is two points more than 0 of 60"
        answered(new, 51)
        assert new.state.share == 25, "1 of 100 is one point"


@pytest.mark.parametrize("bad", [
    {"finish_reason": "length"},
    {"dispatch": SimpleNamespace(violations=("3 is not of type 'string'",), unparsed=())},
    {"dispatch": SimpleNamespace(violations=(), unparsed=("<tool_call>",))},
])  # fmt: skip
def test_answers_that_cannot_be_used_roll_a_canary_back_even_when_it_answers_everything(
    tmp_path: Path, bad: dict[str, Any]
) -> None:
    with alone(tmp_path) as new:
        answered(new, 100, by="first")
        new.state.step, new.state.phase = 2, Phase.COMPLETED
        answered(new, 20)
        assert new.state.phase is Phase.COMPLETED
        answered(new, 8, **bad)
        assert (new.state.phase, new.state.share) == (Phase.ROLLED_BACK, 0)
        assert new.state.reason.startswith("invalid: ")
    again = canary(tmp_path)
    assert again.state.phase is Phase.ROLLED_BACK, "a server that is killed the moment after does not ask it again"
    again.close()


def test_what_is_said_of_the_champion_does_not_count_against_the_canary(tmp_path: Path) -> None:
    with alone(tmp_path) as new:
        answered(new, 20, by="first", finish_reason="length")
        answered(new, 5)
        assert (new.state.champion.signals["invalid"], new.state.canary.signals["invalid"]) == (20, 0)
        assert new.state.phase is Phase.RUNNING


@pytest.mark.parametrize(
    ("labels", "signal"),
    [
        ({"escalation": {"calls": []}}, "escalation"),
        ({"correction": {"calls": []}}, "correction"),
        ({"tool_error": True}, "tool_error"),
    ],
)
def test_each_kind_of_feedback_counts_under_its_name(tmp_path: Path, labels: dict[str, Any], signal: str) -> None:
    with beside(canary(tmp_path), tmp_path) as server:
        told = answer(server, "Oslo?")
        assert server.send("/v1/feedback", {"id": told["id"], **labels}).status_code == 200
        counted = f'tinydispatch_canary_signals_total{{arm="champion",signal="{signal}"}}'
        assert server.metric(counted) + server.metric(counted.replace("champion", "canary")) == 1


@pytest.mark.parametrize("kind", ["shadow", "canary"])
def test_what_a_client_wants_kept_out_of_the_log_is_never_written_into_it(tmp_path: Path, kind: str) -> None:
    new = shadow(tmp_path, OTHER_CALL) if kind == "shadow" else canary(tmp_path)
    with beside(new, tmp_path) as server:
        body = server.ask("A secret?", store=False)
        told = server.post(body).json()
        assert server.send("/v1/feedback", {"id": told["id"], "correction": {"calls": []}}).status_code == 200
        assert go_on(server, "A secret?", told, "Error: no", store=False) == 200
        answer(server, "Oslo?")
        if kind == "shadow":
            wait_until(lambda: server.metric("tinydispatch_shadow_requests_total") >= 1)
    assert {line["messages"][0]["content"] for line in lines(tmp_path)} == {"Oslo?"}


def test_a_shadow_that_is_interrupted_by_a_request_begins_again_and_hears_everything(tmp_path: Path) -> None:
    slow = GatedRuntime(ONE_CALL)
    slow.shut()
    with beside(shadow(tmp_path, ONE_CALL, slow), tmp_path) as server:
        answer(server, "Oslo?")
        assert slow.entered.wait(60), "it has begun"
        answer(server, "And Oslo?")  # what it computes ends here
        slow.gate.set()
        wait_until(lambda: server.metric('tinydispatch_shadow_requests_total{result="agreed"}') == 2)
        assert server.metric('tinydispatch_shadow_requests_total{result="dropped"}') == 0
