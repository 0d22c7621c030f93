"""A whole evaluation on recorded replies: counts, unscored cases, files, tables."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from eval.backends import Failure, Generation, PlaybackBackend, Request
from eval.cases import UNDATED_DAY, Suite
from eval.config import EvalConfig
from eval.evaluate import evaluate, evaluate_model
from eval.matching import REMEDY, Outcome
from eval.metrics import Tally
from eval.report import print_report
from eval.results import EvalResult, ResultError, load_result
from eval.suites import load_suite
from tinydispatch.formats import reference_date_text, render_calls, with_reference_date
from tinydispatch.tools import Message, Role


def gold_replies(suite: Suite) -> dict[str, str | Generation | Failure]:
    return {
        [message.content for message in case.messages if message.role is Role.USER][-1]: render_calls(
            [wanted.examples()[0] for wanted in case.expected]
        )
        or "Which one do you mean?"
        for case in suite.cases
    }


@pytest.fixture(scope="module")
def core() -> Suite:
    return load_suite("core")


def run(suite: Suite, replies: dict[str, str | Generation | Failure], name: str = "m") -> EvalResult:
    return evaluate(PlaybackBackend(replies), suite, model_name=name, progress=False)


def last_prompt(suite: Suite, case_id: str) -> str:
    return next(case.messages[-1].content for case in suite.cases if case.id == case_id)


def report_of(*results: EvalResult, show_failures: bool = False, width: int = 200) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        print_report(results, console, show_failures=show_failures)
    return captured.get()


def test_gold_replies_pass_every_case(core: Suite) -> None:
    result = run(core, gold_replies(core))
    assert result.overall == Tally(40, 40)
    assert result.by_category == dict.fromkeys(core.categories, Tally(8, 8))


class Listener(PlaybackBackend):
    """Plays nothing useful back, and keeps what the model would have read of each request's day."""

    def __init__(self) -> None:
        super().__init__({})
        self.heard: list[tuple[Message, ...]] = []

    def generate(self, requests: Sequence[Request]) -> list[Generation | Failure]:
        self.heard += [with_reference_date(request.messages, request.reference_date) for request in requests]
        return [Generation("No.", 0.0, 1) for _ in requests]


def test_a_case_without_a_day_reads_the_line_that_service_writes_in_every_request(core: Suite) -> None:
    undated = replace(core.cases[0], reference_date=None)
    states_one = replace(
        undated, id="own", messages=(Message(Role.SYSTEM, "Today is Friday 2027-01-01."), *undated.messages)
    )
    listener = Listener()
    evaluate(listener, replace(core, cases=(undated, states_one)), model_name="m", progress=False)
    heard = {messages[0].content for messages in listener.heard}
    assert any(text == reference_date_text(UNDATED_DAY) for text in heard)
    own = next(text for text in heard if text.startswith("Today is Friday 2027-01-01."))
    assert str(UNDATED_DAY) not in own
    assert reference_date_text(dt.date(2027, 1, 1)) in own


def test_a_failed_case_is_counted_in_its_category_with_its_reason(core: Suite) -> None:
    replies = gold_replies(core) | {last_prompt(core, "ts-01"): "No idea."}
    result = run(core, replies)
    assert result.by_category["tool_selection"] == Tally(7, 8)
    case = next(case for case in result.cases if case.id == "ts-01")
    assert (case.outcome, case.got, case.explanation) == (Outcome.NO_CALL, "No idea.", "no call to get_weather")
    assert case.expected[0]["name"] == "get_weather"


def test_a_case_without_a_reply_is_unscored_and_takes_the_rate_away(core: Suite) -> None:
    replies = gold_replies(core) | {last_prompt(core, "ts-01"): Failure("out of memory")}
    result = run(core, replies)
    assert result.overall == Tally(39, 39, unscored=1)
    assert result.overall.rate is None
    assert result.by_category["multi_tool"].rate == 1.0
    assert result.to_json()["summary"]["categories"]["tool_selection"]["total"] is None
    text = report_of(result)
    assert "39 +1?" in text
    assert "1 without a reply, not scored" in text
    assert "39/" not in text
    assert "out of memory" in report_of(result, show_failures=True)


def test_a_reply_that_was_cut_off_fails_even_where_no_call_was_due(core: Suite) -> None:
    babble = Generation("la la la", latency_s=1.0, tokens=384, is_complete=False)
    result = run(core, gold_replies(core) | {last_prompt(core, "ec-01"): babble})
    case = next(case for case in result.cases if case.id == "ec-01")
    assert case.outcome is Outcome.UNPARSEABLE
    assert "384 tokens" in case.explanation


def test_results_survive_the_file_and_nothing_partial_is_left(core: Suite, tmp_path: Path) -> None:
    replies = gold_replies(core) | {
        last_prompt(core, "ts-01"): Failure("x"),
        last_prompt(core, "ts-02"): "\ud7ff\u2028é",
    }
    result = run(core, replies, name="facebook/opt-350m")
    path = result.save(tmp_path / "eval")
    assert path.name == "core-facebook_opt-350m.json"
    assert load_result(path) == result
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    summary = json.loads(path.read_text())["summary"]
    assert summary["categories"]["multi_tool"] == {"hits": 8, "total": 8, "wilson_95": [0.6756, 1.0]}
    assert summary["failures"]["no_call"] == {"count": 1, "remedy": REMEDY[Outcome.NO_CALL]}


def test_half_a_surrogate_pair_in_an_argument_is_saved_and_printed(core: Suite, tmp_path: Path) -> None:
    reply = '<tool_call>{"name": "get_weather", "arguments": {"location": "\\ud83d", "\\ud83d": 1}}</tool_call>'
    result = run(core, gold_replies(core) | {last_prompt(core, "ts-01"): reply})
    assert load_result(result.save(tmp_path)) == result
    assert "ud83d" in report_of(result, show_failures=True)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"cases": []}'])
def test_a_file_that_is_no_result_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ResultError, match=r"x\.json: no evaluation result"):
        load_result(path)
    with pytest.raises(ResultError, match=r"absent\.json: cannot be read"):
        load_result(tmp_path / "absent.json")


def test_the_report_has_a_row_per_model_and_compares_with_the_first(core: Suite) -> None:
    gold = gold_replies(core)
    base = run(core, dict.fromkeys(gold, "I cannot help."), name="base")
    text = report_of(base, run(core, gold, name="checkpoint"))
    assert "4/8" in text.split("base", 1)[1].split("\n")[0], "no-call cases pass without a call"
    assert "40/40" in text
    assert "91–100 %" in text
    assert "checkpoint against base: passes 36 that it fails, fails 0 that it passes" in text


def test_the_report_fits_eighty_columns(core: Suite) -> None:
    text = report_of(run(core, gold_replies(core), name="gguf-q8_0"), width=80)
    assert "…" not in text
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    row = next(line for line in text.splitlines() if line.startswith("gguf-q8_0"))
    assert row.split() == ["gguf-q8_0", *["8/8"] * 5, "40/40", "91–100", "%", "0", "ms"]


def test_the_report_lists_failures_with_remedies(core: Suite) -> None:
    text = report_of(run(core, gold_replies(core) | {last_prompt(core, "ts-01"): "[b]No[/b] idea"}), show_failures=True)
    assert "ts-01 no_call" in text
    assert "[b]No[/b] idea" in text
    assert REMEDY[Outcome.NO_CALL] in text


def test_a_model_is_loaded_once_for_several_suites(
    core: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def open_playback(model: str, _: object) -> PlaybackBackend:
        opened.append(model)
        return PlaybackBackend(gold_replies(core))

    monkeypatch.setattr("eval.evaluate.open_backend", open_playback)
    dev = load_suite("dev")
    results = evaluate_model("x", [core, dev], EvalConfig(), model_name="x", folder=tmp_path, progress=False)
    assert opened == ["x"]
    assert [result.suite for result in results] == ["core", "dev"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["core-x.json", "dev-x.json"]
