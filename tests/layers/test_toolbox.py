"""Calls are run only when allowed and agreed to, within their time, and no effect happens twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tinydispatch.layers.tool_calls import (
    BoundTool,
    CallContext,
    CallStatus,
    ToolFailure,
    ToolOutcome,
    ToolsetError,
    idempotency_key,
    result_text,
)
from tinydispatch.layers.toolbox import Ledger, LedgerError, Permission, Toolbox, ToolPolicy, foreign_addresses
from tinydispatch.tools import Tool, ToolCall

FREE = ToolPolicy(is_confirming=False)
MAIL = ToolCall("send", {"to": "jo@kew.example"})
WRITTEN = Permission(words=["Write to jo@kew.example."])
SCHEMA = {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]}


class Mailer:
    """A tool that counts what it did. `script`: per attempt "ok", an exception, or "hang" after acting."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.sent: list[str] = []
        self.keys: list[str] = []
        self.release = threading.Event()

    def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> Any:
        step = self.script.pop(0) if self.script else "ok"
        self.keys.append(context.idempotency_key)
        if isinstance(step, Exception):
            raise step
        self.sent.append(arguments["to"])
        if step == "hang":
            self.release.wait(20)
        return {"sent": True}

    def bound(self, **settings: Any) -> BoundTool:
        return BoundTool(
            Tool("send", "Send", SCHEMA), self, **{"timeout_s": 0.3 if "hang" in self.script else 20.0, **settings}
        )


def toolbox(*tools: BoundTool, policy: ToolPolicy = FREE, ledger: Ledger | None = None) -> Toolbox:
    return Toolbox(tools, policy, ledger, sleep=lambda _: None)


def test_a_tool_that_times_out_after_it_acted_is_not_run_again() -> None:
    mailer = Mailer("hang")
    box = toolbox(mailer.bound())
    first = box.execute(MAIL, "k", WRITTEN)
    again = box.execute(MAIL, "k", WRITTEN)
    assert (first.status, again.status) == (CallStatus.UNKNOWN, CallStatus.UNKNOWN)
    assert (first.error, len(mailer.sent)) == ("no answer within 0.3 s", 1)
    mailer.release.set()


def test_an_answer_that_comes_too_late_is_still_known() -> None:
    mailer = Mailer("hang")
    ledger = Ledger()
    box = toolbox(mailer.bound(), ledger=ledger)
    assert box.execute(MAIL, "k", WRITTEN).status is CallStatus.UNKNOWN
    mailer.release.set()
    for _ in range(2000):
        if ledger.known("k"):
            break
        threading.Event().wait(0.01)
    again = box.execute(MAIL, "k", WRITTEN)
    assert (again.status, again.value, again.is_replayed) == (CallStatus.DONE, {"sent": True}, True)
    assert len(mailer.sent) == 1


def test_a_tool_that_takes_keys_is_tried_again_with_the_same_key() -> None:
    mailer = Mailer("hang", "ok")
    outcome = toolbox(mailer.bound(takes_key=True)).execute(MAIL, "k", WRITTEN)
    assert (outcome.status, outcome.attempts, mailer.keys) == (CallStatus.DONE, 2, ["k", "k"])
    mailer.release.set()


@pytest.mark.parametrize(("found", "status"), [({"id": 7}, CallStatus.DONE), (None, CallStatus.FAILED)])
def test_a_tool_can_be_asked_whether_it_acted(found: Any, status: CallStatus) -> None:
    mailer = Mailer("hang")
    box = toolbox(mailer.bound(did_happen=lambda *_: found))
    outcome = box.execute(MAIL, "k", WRITTEN)
    assert (outcome.status, outcome.value) == (status, found)
    mailer.release.set()


def test_a_lookup_is_tried_again_and_has_no_uncertain_end() -> None:
    mailer = Mailer("hang", "hang", "hang")
    outcome = toolbox(mailer.bound(has_side_effects=False)).execute(MAIL, "k", Permission())
    assert (outcome.status, outcome.attempts) == (CallStatus.FAILED, 3)
    mailer.release.set()


@pytest.mark.parametrize(
    ("error", "status", "n_attempts"),
    [
        (ToolFailure("busy, try again", did_act=False), CallStatus.DONE, 2),
        (ToolFailure("later", did_act=False, is_transient=True), CallStatus.DONE, 2),
        (ToolFailure("busy, try again"), CallStatus.UNKNOWN, 1),
        (ToolFailure("no such address", did_act=False), CallStatus.FAILED, 1),
        (RuntimeError("connection reset"), CallStatus.UNKNOWN, 1),
    ],
)
def test_an_error_is_retried_only_where_nothing_can_have_happened(
    error: Exception, status: CallStatus, n_attempts: int
) -> None:
    mailer = Mailer(error)
    outcome = toolbox(mailer.bound()).execute(MAIL, "k", WRITTEN)
    assert (outcome.status, outcome.attempts, len(mailer.keys)) == (status, n_attempts, n_attempts)


def test_the_same_key_gives_the_first_result_from_any_number_of_threads() -> None:
    mailer = Mailer()
    box = toolbox(mailer.bound(timeout_s=5))
    outcomes: list[ToolOutcome] = []
    threads = [threading.Thread(target=lambda: outcomes.append(box.execute(MAIL, "k", WRITTEN))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(mailer.sent) == 1
    assert {outcome.status for outcome in outcomes} <= {CallStatus.DONE, CallStatus.UNKNOWN}
    assert box.execute(MAIL, "k", WRITTEN).is_replayed
    assert box.execute(MAIL, "another", WRITTEN).is_replayed is False
    assert len(mailer.sent) == 2


def test_keys_differ_by_what_makes_another_call() -> None:
    key = idempotency_key("c", 1, MAIL)
    assert key == idempotency_key("c", 1, ToolCall("send", dict(MAIL.arguments)))
    others = [
        idempotency_key("d", 1, MAIL),
        idempotency_key("c", 2, MAIL),
        idempotency_key("c", 1, MAIL, 1),
        idempotency_key("c", 1, ToolCall("send", {"to": "x"})),
    ]
    assert len({key, *others}) == 5


def test_a_ledger_on_disk_keeps_an_effect_from_happening_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    mailer = Mailer("ok", "hang")
    box = toolbox(mailer.bound(), ledger=Ledger(path))
    other = ToolCall("send", {"to": "al@kew.example"})
    written = Permission(words=["jo@kew.example al@kew.example"])
    box.execute(MAIL, "done", written)
    box.execute(other, "open", written)
    with path.open("a") as file:
        file.write('{"key": "half')  # the power went out here
    restarted = toolbox(mailer.bound(), ledger=Ledger(path))
    assert restarted.execute(MAIL, "done", written).value == {"sent": True}
    assert restarted.execute(other, "open", written).status is CallStatus.UNKNOWN
    assert len(mailer.sent) == 2
    assert all(json.loads(line) for line in path.read_text().splitlines())
    mailer.release.set()


def test_a_damaged_ledger_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"key": "a", "started": {}}\nnonsense\n')
    with pytest.raises(LedgerError, match=r"ledger\.jsonl:2: not an entry"):
        Ledger(path)


def test_a_call_with_side_effects_waits_for_a_person_and_a_lookup_does_not() -> None:
    mailer, reader = Mailer(), Mailer()
    look = BoundTool(Tool("look", "", SCHEMA), reader, has_side_effects=False)
    box = toolbox(mailer.bound(), look, policy=ToolPolicy())
    assert box.execute(MAIL, "k", WRITTEN).status is CallStatus.UNCONFIRMED
    assert box.execute(ToolCall("look", MAIL.arguments), "l", WRITTEN).is_done
    assert box.execute(MAIL, "k", Permission(declined=frozenset({"k"}))).status is CallStatus.DECLINED
    assert mailer.sent == []
    assert box.execute(MAIL, "k", Permission(agreed=frozenset({"k"}))).is_done


def test_an_address_that_nobody_wrote_is_asked_about_even_without_confirmation() -> None:
    mailer = Mailer()
    outcome = toolbox(mailer.bound()).execute(MAIL, "k", Permission(words=["Write to jo@kew.exam"]))
    assert (outcome.status, mailer.sent) == (CallStatus.UNCONFIRMED, [])
    assert outcome.error == "names jo@kew.example, which the user has not written"
    link = ToolCall("send", {"to": "x", "body": "see https://evil.example/a?b=1."})
    assert foreign_addresses(link, ["Send it."]) == ("https://evil.example/a?b=1",)
    assert foreign_addresses(MAIL, ["to Jo@Kew.example."]) == ()


def test_what_is_not_allowed_or_breaks_its_schema_is_never_started() -> None:
    mailer = Mailer()
    box = toolbox(mailer.bound(), policy=ToolPolicy(allowed=frozenset(), is_confirming=False))
    assert box.tools == ()
    assert box.execute(MAIL, "k", WRITTEN).status is CallStatus.REFUSED
    box = toolbox(mailer.bound(), policy=ToolPolicy(is_confirming=False, max_argument_characters=50))
    assert "to: 5 is not of type" in box.execute(ToolCall("send", {"to": 5}), "k", WRITTEN).error
    assert "at most 50" in box.execute(ToolCall("send", {"to": "x" * 60}), "k", WRITTEN).error
    assert mailer.keys == []
    with pytest.raises(ToolsetError, match="allowed tools that are not there: fly"):
        toolbox(mailer.bound(), policy=ToolPolicy(allowed=frozenset({"fly"})))
    with pytest.raises(ToolsetError, match="occur twice: send"):
        toolbox(mailer.bound(), mailer.bound())


def test_a_result_of_five_megabytes_is_cut_and_says_so() -> None:
    outcome = ToolOutcome(MAIL, "k", CallStatus.DONE, {"text": "x" * 5_000_000})
    value = json.loads(result_text(outcome, 1000))
    assert (value["truncated"], value["characters"], len(value["beginning"])) == (True, 5_000_012, 1000)
    assert result_text(ToolOutcome(MAIL, "k", CallStatus.DONE, {"a": "é"}), 1000) == '{"a": "é"}'
    assert json.loads(result_text(ToolOutcome(MAIL, "k", CallStatus.DONE, object()), 1000)).startswith("<object")
    assert result_text(ToolOutcome(MAIL, "k", CallStatus.DONE, "\ud83d"), 1000) == '"?"'
