"""What production says becomes training data: labelled, redacted, reviewed, counted once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data.sources.dispatch_log import Trust, labelled
from retraining.cases import production_suite
from retraining.config import AfterRefusal, IntakeConfig
from retraining.engine import sha256_of
from retraining.errors import RetrainError
from retraining.intake import Earlier, earlier_runs, quarantined, take_in
from retraining.ledger import Ledger, StageRecord
from retraining.records import pool_row
from retraining.stages import Done, RunState, Stage, Stop
from tinydispatch.bundled import bundled_tools
from tinydispatch.review import Decision, Order, Stack

LINE = {"messages": [{"role": "user", "content": "weather in Bergen please, right now"}]}
CALL = {"name": "get_weather", "arguments": {"location": "Bergen"}}
OTHER = {"name": "get_weather", "arguments": {"location": "Oslo"}}


def ask(text: str, **rest: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **rest}


def weather(place: str) -> dict[str, Any]:
    return {"name": "get_weather", "arguments": {"location": place}}


def email(to: str) -> dict[str, Any]:
    return {"name": "send_email", "arguments": {"to": [to], "subject": "Hi", "body": "Hello there"}}


def log_of(tmp_path: Path, *lines: Mapping[str, Any]) -> Path:
    path = tmp_path / "log" / "dispatch-2026-11-24.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def config_of(*paths: Path, **settings: Any) -> IntakeConfig:
    sources = [{"kind": "dispatch_log", "path": str(path)} for path in paths]
    return IntakeConfig.model_validate_json(json.dumps({"sources": sources, "min_new": 1, **settings}))


def take(
    tmp_path: Path, config: IntakeConfig, earlier: Earlier | None = None, name: str = "run", cases: tuple[str, ...] = ()
) -> Done:
    folder = tmp_path / "runs" / name / "intake"
    return take_in(folder, config, earlier or Earlier(), default_tools=bundled_tools(), case_texts=cases, seed=0)


def rows(tmp_path: Path, name: str = "run") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "runs" / name / "intake" / "pool.jsonl").read_text().splitlines()]


def answers(tmp_path: Path, name: str = "run") -> list[str]:
    return sorted(
        row["messages"][-1]["tool_calls"][0]["function"]["arguments"]["location"] for row in rows(tmp_path, name)
    )


def test_outcome_signals_say_whose_answer_is_the_label() -> None:
    line = {**LINE, "calls": [OTHER]}
    assert labelled(line) == (line, Trust.MODEL)
    assert labelled({**line, "tool_error": "404"})[0]["is_accepted"] is False
    row, trust = labelled({**line, "tool_error": "404", "escalation": {"model": "large", "calls": [CALL]}})
    assert (row["correction"]["calls"], trust) == ([CALL], Trust.LARGER_MODEL)
    row, trust = labelled({**line, "correction": {"calls": [CALL]}, "escalation": {"calls": [OTHER]}})
    assert (row["correction"]["calls"], trust) == ([CALL], Trust.PERSON)


def test_a_larger_models_answer_is_trained_and_a_failed_call_is_not(tmp_path: Path) -> None:
    log = log_of(
        tmp_path,
        {**ask("weather in Bergen"), "calls": [OTHER], "escalation": {"calls": [weather("Bergen")]}},
        {**ask("weather in Graz"), "calls": [weather("Graz")], "tool_error": "no such place"},
        {**ask("weather in Lyon"), "calls": [weather("Lyon")]},
    )
    done = take(tmp_path, config_of(log))
    assert answers(tmp_path) == ["Bergen", "Lyon"]
    assert done.result["dropped"] == {"not_accepted": 1}
    assert done.result["new_by_trust"] == {"larger_model": 1, "model": 1}


def test_too_little_that_is_new_ends_the_run(tmp_path: Path) -> None:
    log = log_of(tmp_path, {**ask("weather in Lyon"), "calls": [weather("Lyon")]})
    done = take(tmp_path, config_of(log, min_new=2))
    assert done.stop == Stop(RunState.SKIPPED, "1 new records, fewer than the 2 that intake.min_new asks for")


def test_an_empty_drop_folder_holds_nothing_and_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "drop").mkdir()
    assert take(tmp_path, config_of(tmp_path / "drop")).result["read"] == 0


def test_personal_data_is_replaced_alike_in_request_and_call_and_written_nowhere(tmp_path: Path) -> None:
    text = "mail jo.doe@corp-mail.com that I call from +47 912 34 567"
    log = log_of(
        tmp_path,
        {**ask(text), "calls": [email("jo.doe@corp-mail.com")], "model": "x", "time": "jo.doe@corp-mail.com"},
        {**ask("mail the team"), "calls": [email("stranger@elsewhere-mail.com")]},
    )
    done = take(tmp_path, config_of(log))
    (row,) = rows(tmp_path)
    to = row["messages"][-1]["tool_calls"][0]["function"]["arguments"]["to"][0]
    assert to in row["messages"][0]["content"]
    for path in done.outputs:
        written = path.read_text()
        assert "corp-mail" not in written
        assert "912 34 567" not in written
    assert done.result["redacted"] == 2


def test_addresses_set_aside_for_examples_stay_as_they_are(tmp_path: Path) -> None:
    log = log_of(tmp_path, {**ask("mail ana@example.com"), "calls": [email("ana@example.com")]})
    take(tmp_path, config_of(log))
    assert rows(tmp_path)[0]["messages"][0]["content"] == "mail ana@example.com"


def test_a_call_that_sends_to_an_address_nobody_mentioned_is_quarantined(tmp_path: Path) -> None:
    log = log_of(tmp_path, {**ask("mail the report to ana@example.com"), "calls": [email("thief@example.net")]})
    done = take(tmp_path, config_of(log))
    assert done.result["quarantined"] == {"ungrounded_address": 1}
    (entry,) = quarantined(done.outputs[2])
    assert "thief@example.net" in entry["detail"]


def test_of_contradicting_answers_the_most_trusted_is_believed_and_equals_are_not(tmp_path: Path) -> None:
    log = log_of(
        tmp_path,
        {**ask("weather in A town"), "calls": [weather("Oslo")]},
        {**ask("weather in A town"), "calls": [weather("Oslo")], "correction": {"calls": [weather("A")]}},
        {**ask("weather in B town"), "calls": [weather("B")]},
        {**ask("weather in B town"), "calls": [weather("Oslo")]},
    )
    done = take(tmp_path, config_of(log))
    assert answers(tmp_path) == ["A"]
    assert done.result["quarantined"] == {"contradictory": 3}


def test_a_person_corrects_what_an_earlier_run_trained_and_a_model_does_not(tmp_path: Path) -> None:
    said = [{**ask(f"weather in {place} town"), "calls": [weather("Oslo")]} for place in "ABC"]
    take(tmp_path, config_of(log_of(tmp_path, *said)), name="first")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    end(tmp_path, ledger, "first", RunState.PROMOTED)
    again = [
        {**ask("weather in A town"), "calls": [weather("Rome")]},
        {**ask("weather in B town"), "calls": [weather("Oslo")], "correction": {"calls": [weather("B")]}},
    ]
    earlier = earlier_runs(ledger, tmp_path / "runs", AfterRefusal.SET_ASIDE)
    done = take(tmp_path, config_of(log_of(tmp_path, *said, *again)), earlier, name="second")
    assert answers(tmp_path, "second") == ["B", "Oslo", "Oslo"]
    assert (done.result["new"], done.result["superseded"]) == (1, 1)
    assert done.result["dropped"] == {"already_known": 3}


def end(tmp_path: Path, ledger: Ledger, name: str, state: RunState) -> None:
    """Make the ledger say that the run of this name took its data in, and ended so."""
    folder = tmp_path / "runs" / name
    record = ledger.begin_run()
    folder.rename(tmp_path / "runs" / record.id)
    files = {f"intake/{path.name}": sha256_of(path) for path in (tmp_path / "runs" / record.id / "intake").iterdir()}
    stage = StageRecord(Stage.INTAKE, "", files, {}, 0.0, "")
    attempt = ledger.begin_attempt(record.id, Stage.INTAKE)
    ledger.complete(record.id, attempt, stage, Stop(state, ""))


@pytest.mark.parametrize(
    ("state", "after_refusal", "pool", "seen"),
    [
        (RunState.PROMOTED, AfterRefusal.SET_ASIDE, 1, 1),
        (RunState.REFUSED, AfterRefusal.SET_ASIDE, 0, 1),
        (RunState.REFUSED, AfterRefusal.KEEP, 1, 1),
        (RunState.ROLLED_BACK, AfterRefusal.KEEP, 0, 1),
        (RunState.SKIPPED, AfterRefusal.SET_ASIDE, 0, 0),
        (RunState.FAILED, AfterRefusal.SET_ASIDE, 0, 0),
    ],
)
def test_what_a_run_leaves_to_the_next_depends_on_how_it_ended(
    state: RunState, after_refusal: AfterRefusal, pool: int, seen: int, tmp_path: Path
) -> None:
    take(tmp_path, config_of(log_of(tmp_path, {**LINE, "calls": [CALL]})))
    ledger = Ledger(tmp_path / "ledger.sqlite")
    end(tmp_path, ledger, "run", state)
    earlier = earlier_runs(ledger, tmp_path / "runs", after_refusal)
    assert (len(earlier.pool), len(earlier.seen)) == (pool, seen)


def test_a_pool_that_was_changed_since_is_an_error(tmp_path: Path) -> None:
    take(tmp_path, config_of(log_of(tmp_path, {**LINE, "calls": [CALL]})))
    ledger = Ledger(tmp_path / "ledger.sqlite")
    end(tmp_path, ledger, "run", RunState.PROMOTED)
    run = ledger.runs()[0].id
    (tmp_path / "runs" / run / "intake" / "pool.jsonl").write_text("{}\n")
    with pytest.raises(RetrainError, match="changed since"):
        earlier_runs(ledger, tmp_path / "runs", AfterRefusal.SET_ASIDE)


def test_records_that_share_their_request_with_a_case_are_dropped(tmp_path: Path) -> None:
    log = log_of(tmp_path, {**LINE, "calls": [CALL]})
    done = take(tmp_path, config_of(log), cases=("Weather in Bergen please, right now!",))
    assert done.result["dropped"] == {"evaluation_overlap": 1}


def test_one_session_that_floods_the_log_is_quarantined(tmp_path: Path) -> None:
    flood = [{**ask(f"weather in Lyon {i}"), "calls": [weather("Lyon")], "session_id": "s"} for i in range(4)]
    calm = {**ask("weather in Graz"), "calls": [weather("Graz")], "session_id": "t"}
    done = take(tmp_path, config_of(log_of(tmp_path, *flood, calm), max_per_session=3))
    assert answers(tmp_path) == ["Graz"]
    assert done.result["quarantined"] == {"flood": 4}


def test_no_source_gets_more_than_its_share_and_the_rest_waits(tmp_path: Path) -> None:
    many = [{**ask(f"weather in Lyon {i}"), "calls": [weather("Lyon")]} for i in range(20)]
    few = [{**ask(f"weather in Graz {i}"), "calls": [weather("Graz")]} for i in range(5)]
    (tmp_path / "other").mkdir()
    config = config_of(log_of(tmp_path, *many), log_of(tmp_path / "other", *few), max_share_per_source=0.6)
    done = take(tmp_path, config)
    counts = sorted(done.result["new_by_source"].values())
    assert counts == [5, 7]
    assert counts[1] <= 0.6 * sum(counts)
    assert done.result["postponed"] == 13


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    log = log_of(tmp_path, *({**ask(f"weather in Lyon {i}"), "calls": [weather("Lyon")]} for i in range(9)))
    first = take(tmp_path, config_of(log), name="a")
    second = take(tmp_path, config_of(log), name="b")
    assert [path.read_bytes() for path in first.outputs] == [path.read_bytes() for path in second.outputs]


def test_one_client_that_makes_up_sessions_is_quarantined(tmp_path: Path) -> None:
    flood = [
        {
            **ask(f"is it cold in place {i * i}"),
            "calls": [weather(f"place {i * i}")],
            "session_id": f"{i}",
            "client_id": "k",
        }
        for i in range(4)
    ]
    calm = {**ask("weather in Graz"), "calls": [weather("Graz")], "client_id": "l"}
    done = take(tmp_path, config_of(log_of(tmp_path, *flood, calm), max_per_client=3))
    assert answers(tmp_path) == ["Graz"]
    assert done.result["quarantined"] == {"flood": 4}


def test_many_nearly_equal_requests_are_a_flood_whoever_sends_them(tmp_path: Path) -> None:
    text = "please tell me what the weather in Lyon will be like when we arrive there by train"
    flood = [{**ask(f"{text} {i}"), "calls": [weather("Lyon")], "session_id": f"{i}"} for i in range(4)]
    calm = {**ask("weather in Graz"), "calls": [weather("Graz")]}
    done = take(tmp_path, config_of(log_of(tmp_path, *flood, calm), max_similar=3))
    assert answers(tmp_path) == ["Graz"]
    assert done.result["quarantined"] == {"flood": 4}


def test_what_a_person_said_is_no_flood_and_metadata_of_the_log_are_written_nowhere(tmp_path: Path) -> None:
    text = "please tell me what the weather in Lyon will be like when we arrive there by train"
    right = {"calls": [OTHER], "correction": {"calls": [weather("Lyon")]}, "model": "strange", "note": "strange"}
    done = take(
        tmp_path, config_of(log_of(tmp_path, *({**ask(f"{text} {i}"), **right} for i in range(4))), max_similar=3)
    )
    assert (done.result["new"], done.result["quarantined"]) == (4, {})
    assert not any("strange" in path.read_text() for path in done.outputs)


def test_a_link_in_the_senders_own_words_is_no_ground_for_itself(tmp_path: Path) -> None:
    def search(link: str, **rest: Any) -> dict[str, Any]:
        return {
            **ask(f"look up {link} for me"),
            "calls": [{"name": "search_web", "arguments": {"query": link}}],
            **rest,
        }

    alone = search("https://thief.io/a", session_id="a")
    shared = [search("https://news.io/b", session_id="a"), {**search("https://news.io/b", session_id="b")}]
    shared[1]["messages"][0]["content"] += " now"
    person = search("https://corp.io/c", session_id="a", correction={"calls": [
        {"name": "search_web", "arguments": {"query": "https://corp.io/c"}}]})  # fmt: skip
    done = take(tmp_path, config_of(log_of(tmp_path, alone, *shared, person)))
    assert done.result["quarantined"] == {"ungrounded_address": 1}
    assert "thief" not in json.dumps(rows(tmp_path))


def test_what_intake_writes_is_its_owners_alone(tmp_path: Path) -> None:
    done = take(tmp_path, config_of(log_of(tmp_path, {**LINE, "calls": [CALL]})))
    assert {path.stat().st_mode & 0o777 for path in done.outputs} == {0o600}
    assert done.outputs[0].parent.stat().st_mode & 0o777 == 0o700


def test_a_line_that_a_person_decided_about_is_taken_in_as_decided_and_only_so(tmp_path: Path) -> None:
    lines = [{**ask(f"weather in {place}"), "calls": [weather("Oslo")]} for place in ("Bergen", "Graz", "Lyon")]
    log = log_of(tmp_path, *lines)
    stack = Stack(log.parent, tools=bundled_tools())
    shown = {}
    for place in range(3):
        line = stack.next(Order.CONFIDENCE, place)["line"]
        shown[line["messages"][0]["answer"]["reply"]] = line["id"]
    stack.decide(shown["weather in Bergen"], Decision.CORRECT, correction={"calls": [weather("Bergen")]})
    stack.decide(shown["weather in Graz"], Decision.REJECT)
    stack.close()
    done = take(tmp_path, config_of(log.parent))
    assert {row["messages"][0]["content"]: row["retraining"]["trust"] for row in rows(tmp_path)} == {
        "weather in Bergen": Trust.PERSON,
        "weather in Lyon": Trust.MODEL,
    }
    assert answers(tmp_path) == ["Bergen", "Oslo"]
    assert done.result["dropped"] == {"decided_elsewhere": 2, "not_accepted": 1}


def test_decisions_count_where_they_stand_in_a_source_of_their_own(tmp_path: Path) -> None:
    log = log_of(tmp_path, {**ask("weather in Bergen"), "calls": [weather("Oslo")], "id": "one"})
    stack = Stack(log, tmp_path / "decisions.jsonl", tools=bundled_tools())
    stack.decide("one", Decision.REJECT)
    stack.close()
    done = take(tmp_path, config_of(log, tmp_path / "decisions.jsonl"))
    assert rows(tmp_path) == []
    assert done.result["dropped"] == {"decided_elsewhere": 1, "not_accepted": 1}


def test_an_answer_that_is_rejected_after_it_was_trained_is_trained_no_more(tmp_path: Path) -> None:
    log = log_of(
        tmp_path,
        {**ask("weather in Bergen, for ada@corp-mail.com"), "calls": [weather("Oslo")], "id": "one"},
        {**ask("weather in Lyon"), "calls": [weather("Lyon")], "id": "two"},
    )
    take(tmp_path, config_of(log.parent), name="first")
    pool = (tmp_path / "runs" / "first" / "intake" / "pool.jsonl").read_text().splitlines()
    earlier = Earlier(tuple(pool_row(line, "first") for line in pool), frozenset())
    stack = Stack(log.parent, tools=bundled_tools())
    stack.decide("one", Decision.REJECT)
    stack.close()
    done = take(tmp_path, config_of(log.parent, min_new=1), earlier, name="second")
    assert answers(tmp_path, "second") == ["Lyon"]
    assert done.result["withdrawn"] == 1


def decided(tmp_path: Path, decision: Decision, correction: Any = None) -> tuple[Done, Done]:
    """Two runs on a log with a correction; between them a person decides about its line."""
    line = {**ask("weather in Graz"), "calls": [weather("Oslo")], "correction": {"calls": [weather("Wien")]}, "id": "1"}
    log = log_of(tmp_path, line)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    first = take(tmp_path, config_of(log.parent), name="one")
    end(tmp_path, ledger, "one", RunState.PROMOTED)
    stack = Stack(log.parent, tools=bundled_tools())
    stack.decide("1", decision, answer="correction", correction=correction)
    stack.close()
    earlier = earlier_runs(ledger, tmp_path / "runs", AfterRefusal.SET_ASIDE)
    return first, take(tmp_path, config_of(log.parent), earlier, name="two")


def test_a_correction_that_was_trained_is_corrected_by_the_next_who_looks_at_it(tmp_path: Path) -> None:
    _, done = decided(tmp_path, Decision.CORRECT, {"calls": [weather("Graz")], "reply": ""})
    assert answers(tmp_path, "two") == ["Graz"]
    assert (done.result["new"], done.result["withdrawn"], done.result["quarantined"]) == (1, 1, {})


def test_a_correction_that_was_trained_and_is_rejected_is_trained_no_more(tmp_path: Path) -> None:
    _, done = decided(tmp_path, Decision.REJECT)
    assert (answers(tmp_path, "two"), done.result["withdrawn"]) == ([], 1)


def test_an_answer_that_is_accepted_after_it_was_trained_stays(tmp_path: Path) -> None:
    first, done = decided(tmp_path, Decision.ACCEPT)
    assert answers(tmp_path, "two") == ["Wien"]
    assert (first.result["new"], done.result["new"], done.result["withdrawn"]) == (1, 0, 0)


def labelled_lines(days: range, *, session: str = "") -> list[dict[str, Any]]:
    return [
        {
            **ask(f"weather in Graz on day {day}"),
            "calls": [weather("Oslo")],
            "correction": {"calls": [weather(f"Graz {day}")]},
            "session_id": session or f"s{day}",
            "time": f"2026-11-{day:02d}T00:00:00Z",
        }
        for day in days
    ]


def test_the_latest_dialogues_are_cases_and_no_run_trains_on_them_until_they_retire(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    config = config_of(log_of(tmp_path, *labelled_lines(range(1, 11))), held_share=0.2, held_gates=2)
    held = {"Graz 9", "Graz 10"}
    for name, in_training in (("one", False), ("two", False), ("three", True)):
        earlier = earlier_runs(ledger, tmp_path / "runs", AfterRefusal.SET_ASIDE)
        done = take(tmp_path, config, earlier, name=name)
        assert (held <= set(answers(tmp_path, name))) is in_training
        assert held.isdisjoint(answers(tmp_path, name)) is not in_training
        assert done.result["held"] == (0 if in_training else 2)
        suite = production_suite(tmp_path / "runs" / name / "intake" / "held.jsonl", config.held_gates)
        assert (suite is None) is in_training
        if suite is not None:
            assert {case.prompt for case in suite.cases} == {f"weather in Graz on day {day}" for day in (9, 10)}
        end(tmp_path, ledger, name, RunState.PROMOTED)


def test_a_dialogue_is_held_out_whole_or_not_at_all(tmp_path: Path) -> None:
    log = log_of(tmp_path, *labelled_lines(range(1, 6)), *labelled_lines(range(6, 11), session="long"))
    done = take(tmp_path, config_of(log, held_share=0.2))
    assert done.result["held"] == 0, "the latest dialogue has five records, and two may be held"


def held_prompts(tmp_path: Path, done: Done, name: str = "run") -> set[str]:
    suite = production_suite(tmp_path / "runs" / name / "intake" / "held.jsonl", 3)
    prompts = set() if suite is None else {case.prompt for case in suite.cases}
    assert len(prompts) == done.result["held"]
    return prompts


def test_an_answer_that_nobody_but_the_model_gave_is_no_case(tmp_path: Path) -> None:
    own = [{**line, "correction": None} for line in labelled_lines(range(20, 30))]
    done = take(tmp_path, config_of(log_of(tmp_path, *labelled_lines(range(1, 11)), *own), held_share=0.2))
    assert held_prompts(tmp_path, done) == {"weather in Graz on day 9", "weather in Graz on day 10"}


def with_more(line: dict[str, Any], *texts: str, session: str) -> dict[str, Any]:
    """The same line at the end of a dialogue in which these were said before."""
    before = [
        m for text in texts for m in ({"role": "user", "content": text}, {"role": "assistant", "content": "Yes?"})
    ]
    return {**line, "messages": [*before, *line["messages"]], "session_id": session}


def test_what_shares_its_words_with_something_that_is_trained_is_no_case(tmp_path: Path) -> None:
    early, *lines = labelled_lines(range(1, 21))
    early = with_more(early, "weather in Graz on day 20", session="early")
    # Day 19 shares its words with day 20, which is trained since an early dialogue shares its own.
    lines[-2] = with_more(lines[-2], "Weather in Graz, on day 20!", session="late")
    done = take(tmp_path, config_of(log_of(tmp_path, early, *lines), held_share=0.2))
    assert held_prompts(tmp_path, done) == {"weather in Graz on day 17", "weather in Graz on day 18"}


def test_what_shares_its_words_with_what_an_earlier_run_trained_is_no_case(tmp_path: Path) -> None:
    first = with_more(labelled_lines(range(1, 2))[0], "weather in Graz on day 20", session="early")
    take(tmp_path, config_of(log_of(tmp_path, first)), name="one")
    ledger = Ledger(tmp_path / "ledger.sqlite")
    end(tmp_path, ledger, "one", RunState.PROMOTED)
    earlier = earlier_runs(ledger, tmp_path / "runs", AfterRefusal.SET_ASIDE)
    log = log_of(tmp_path, first, *labelled_lines(range(11, 21)))
    done = take(tmp_path, config_of(log, held_share=0.2), earlier, name="two")
    assert held_prompts(tmp_path, done, "two") == {"weather in Graz on day 19"}


def test_a_new_record_that_shares_its_words_with_a_case_in_use_waits(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    lines = labelled_lines(range(1, 11))
    take(tmp_path, config_of(log_of(tmp_path, *lines), held_share=0.2), name="one")
    end(tmp_path, ledger, "one", RunState.PROMOTED)
    earlier = earlier_runs(ledger, tmp_path / "runs", AfterRefusal.SET_ASIDE)
    later = with_more(labelled_lines(range(15, 16))[0], "weather in Graz on day 10", session="late")
    done = take(tmp_path, config_of(log_of(tmp_path, *lines, later), held_share=0.2), earlier, name="two")
    # The two cases themselves are among the three.
    assert (done.result["new"], done.result["dropped"]) == (0, {"already_known": 8, "evaluation_overlap": 3})


def test_cases_of_a_refused_run_are_set_aside_with_its_records(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    config = config_of(log_of(tmp_path, *labelled_lines(range(1, 11))), held_share=0.2)
    take(tmp_path, config, name="one")
    end(tmp_path, ledger, "one", RunState.REFUSED)
    assert earlier_runs(ledger, tmp_path / "runs", AfterRefusal.SET_ASIDE).held == ()
    assert len(earlier_runs(ledger, tmp_path / "runs", AfterRefusal.KEEP).held) == 2


def test_a_case_that_a_person_rejects_is_asked_no_more(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    lines = [{**line, "id": line["time"]} for line in labelled_lines(range(1, 11))]
    log = log_of(tmp_path, *lines)
    take(tmp_path, config_of(log.parent, held_share=0.2), name="one")
    end(tmp_path, ledger, "one", RunState.PROMOTED)
    stack = Stack(log.parent, tools=bundled_tools())
    stack.decide("2026-11-10T00:00:00Z", Decision.REJECT)
    stack.close()
    earlier = earlier_runs(ledger, tmp_path / "runs", AfterRefusal.SET_ASIDE)
    done = take(tmp_path, config_of(log.parent, held_share=0.2), earlier, name="two")
    assert done.result["held"] == 1


def test_what_a_failed_call_was_logged_as_before_it_failed_teaches_nothing(tmp_path: Path) -> None:
    line = {**ask("weather in Graz"), "calls": [weather("Graz")], "id": "a1"}
    log = log_of(tmp_path, line, {**line, "is_accepted": False, "tool_error": "no such place"})
    assert take(tmp_path, config_of(log)).result["dropped"] == {"not_accepted": 2}
