"""Suite `bfcl`: the leaderboard's files as cases, our strict score, and the leaderboard's own beside it."""

from __future__ import annotations

import copy
import importlib
import json
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.backends import PlaybackBackend
from eval.cases import Suite, SuiteError
from eval.evaluate import evaluate
from eval.report import lenient_lines
from eval.results import load_result
from eval.suites import load_suite
from eval.suites.bfcl import BFCL, CATEGORIES, bfcl_folder, bfcl_suite, passes
from tinydispatch.formats import ParsedReply, parse_reply, render_calls
from tinydispatch.tools import ToolCall

AREA = {"name": "geo.area", "description": "Area of a triangle", "parameters": {
    "type": "dict", "required": ["base"], "properties": {
        "base": {"type": "float"}, "unit": {"type": "string"}, "sides": {"type": "array", "items": {"type": "integer"}},
        "options": {"type": "dict", "properties": {
            "round": {"type": "boolean"}, "note": {"type": "string"}}}}}}  # fmt: skip
GOLD = [{"geo.area": {"base": [10.0], "unit": ["square m", ""], "options": [{"round": [True], "note": ["A", ""]}, ""]}}]


def write(folder: Path, gold: Any = GOLD, categories: tuple[str, ...] = CATEGORIES, **question: Any) -> Path:
    """One row of each category, and one of a category that is left out."""
    (folder / "possible_answer").mkdir(parents=True, exist_ok=True)
    for category in (*categories, "simple_java"):
        row = {"id": f"{category}_0", "question": [[{"role": "user", "content": f"Area, {category}?"}]]}
        name = f"BFCL_v4_{category}.json"
        (folder / name).write_text(json.dumps(row | {"function": [AREA]} | question) + "\n")
        if "irrelevance" not in category:
            (folder / "possible_answer" / name).write_text(json.dumps({"id": "x", "ground_truth": gold}) + "\n")
    return folder


def score(suite: Suite, reply: str) -> tuple[dict[str, bool | None], dict[str, bool | None]]:
    """Verdicts of one reply to every case, strict and by the leaderboard's rule, by category."""
    replies = {case.prompt: reply for case in suite.cases}
    result = evaluate(PlaybackBackend(replies), suite, model_name="m", progress=False)
    strict = {case.category: case.is_correct for case in result.cases}
    return strict, {case.category: case.is_lenient_pass for case in result.cases}


def area(**arguments: Any) -> str:
    return render_calls([ToolCall("geo.area", arguments)])


@pytest.mark.parametrize(
    ("reply", "is_strict", "is_lenient"),
    [
        (area(base=10.0, unit="square m"), True, True),
        (area(base=10.0), True, True),
        (area(base=10), True, True),
        (area(base=10.0, unit="Square-M"), False, True),
        (area(base=10.0, options={"round": True}), True, True),
        (area(base=10.0, options={"round": True, "note": "a"}), False, True),
        (area(base=10.0, options={"note": "A"}), False, False),
        (area(base=10.0, sides=[3]), False, False),
        (area(base="10"), False, False),
        (area(unit="square m"), False, False),
        (area(base=10.0) + area(base=10.0), False, False),
        ("No idea.", False, False),
        ('<tool_call>{"name": </tool_call>', False, False),
    ],
)
def test_a_reply_is_scored_by_both_rules(tmp_path: Path, reply: str, is_strict: bool, is_lenient: bool) -> None:
    strict, lenient = score(load_suite(write(tmp_path)), reply)
    assert (strict["parallel"], lenient["parallel"]) == (is_strict, is_lenient)
    assert (strict["simple_python"], lenient["simple_python"]) == (is_strict, is_lenient)


def test_where_no_function_fits_text_is_right_and_a_call_is_not(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path))
    for reply, verdict in (("Sorry, no.", True), (area(base=10.0), False)):
        strict, lenient = score(suite, reply)
        assert strict["irrelevance"] is lenient["live_irrelevance"] is verdict


def test_rows_and_skipped_rows_are_counted(tmp_path: Path) -> None:
    notes = load_suite(write(tmp_path)).notes
    assert notes[0] == "10 rows of 10 categories, 10 of them cases here"
    assert "skipped 1 rows of simple_java: values in Java's spelling" in notes
    unknown = [{"geo.area": {"base": [10.0], "colour": ["red"]}}]
    suite = load_suite(write(tmp_path, gold=unknown))
    assert {case.category for case in suite.cases} == {"irrelevance", "live_irrelevance"}
    assert suite.notes[-1].startswith("skipped 8 rows that no reply can pass by the leaderboard's own rule: ")


def test_the_other_score_stands_in_a_line_of_its_own_and_is_saved(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path))
    replies = {case.prompt: area(base=10.0, unit="SQUARE M") for case in suite.cases}
    result = evaluate(PlaybackBackend(replies), suite, model_name="m", progress=False)
    assert result.overall.hits == 0
    assert lenient_lines([result])[0].startswith("m by the leaderboard's rule (lenient): 8/10: simple_python 1/1, ")
    assert load_result(result.save(tmp_path / "out")) == result


def test_a_folder_that_is_not_as_the_leaderboard_writes_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="no file BFCL_v"):
        bfcl_suite(write(tmp_path / "a", categories=CATEGORIES[1:]))
    path = write(tmp_path / "b") / "possible_answer" / "BFCL_v4_multiple.json"
    path.write_text("")
    with pytest.raises(SuiteError, match="1 questions, but 0 answers"):
        load_suite(path.parent.parent)
    with pytest.raises(SuiteError, match="simple_python: row 'simple_python_0'"):
        load_suite(write(tmp_path / "c", question=[[], []]))


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SuiteError, match="pip install --no-deps bfcl-eval"):
        load_suite(BFCL)


@pytest.fixture(scope="module")
def real_suite() -> Suite:
    try:
        return bfcl_suite(bfcl_folder())
    except SuiteError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_every_gold_answer_passes_by_the_leaderboards_rule(real_suite: Suite) -> None:
    replies = {case.id: render_calls([wanted.examples()[0] for wanted in case.expected]) for case in real_suite.cases}
    assert len(replies) > 3000
    rule = real_suite.lenient
    assert rule is not None
    failed = [case.id for case in real_suite.cases if not rule.passes(case, parse_reply(replies[case.id] or "Sorry."))]
    assert failed == []


Checker = Callable[..., dict[str, Any]]


@pytest.fixture
def checker(monkeypatch: pytest.MonkeyPatch) -> Checker:
    """The package's own checker, without the model handlers that it would import."""
    handlers = types.ModuleType("bfcl_eval.constants.model_config")
    handlers.MODEL_CONFIG_MAPPING = {"m": types.SimpleNamespace(underscore_to_dot=False)}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, handlers.__name__, handlers)
    found: Checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker").ast_checker
    return found


@pytest.mark.slow
def test_the_rule_agrees_with_the_packages_checker_on_answers_and_on_changed_ones(
    real_suite: Suite, checker: Checker
) -> None:
    python = importlib.import_module("bfcl_eval.constants.enums").Language.PYTHON
    rng = random.Random(0)
    folder = bfcl_folder()
    seen = {True: 0, False: 0}
    for category in (name for name in CATEGORIES if "irrelevance" not in name):
        name = f"BFCL_v4_{category}.json"
        questions, answers = rows(folder / name), rows(folder / "possible_answer" / name)
        cases = {case.id: case for case in real_suite.cases if case.category == category}
        for question, answer in zip(questions, answers, strict=True):
            if question["id"] not in cases:
                continue
            right = [wanted.examples()[0] for wanted in cases[question["id"]].expected]
            for calls in (right, changed(right, rng), changed(right, rng)):
                given = [{call.name: copy.deepcopy(dict(call.arguments))} for call in calls]
                gold = answer["ground_truth"]
                theirs = checker(question["function"], given, copy.deepcopy(gold), python, category, "m")["valid"]
                reply = ParsedReply("", tuple(calls), ())
                assert passes(reply, question["function"], gold) is theirs, (question["id"], given)
                seen[theirs] += 1
    assert min(seen.values()) > 500


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def changed(calls: list[ToolCall], rng: random.Random) -> list[ToolCall]:
    """The calls with one of them, or one of its arguments, changed, dropped, or made twice."""
    calls = [ToolCall(call.name, copy.deepcopy(dict(call.arguments))) for call in calls]
    call = rng.choice(calls)
    arguments: dict[str, Any] = dict(call.arguments)
    key = rng.choice(list(arguments) or [""])
    value = arguments.get(key)
    match rng.randrange(6):
        case 0:
            calls.remove(call)
        case 1:
            calls.append(call)
        case 2:
            arguments.pop(key, None)
        case 3:
            arguments[key or "more"] = value.upper() + "." if isinstance(value, str) else str(value)
        case 4 if isinstance(value, list):
            arguments[key] = rng.choice([value[::-1], [], value + value[:1], [str(item) for item in value]])
        case _:
            arguments[key or "more"] = rng.choice([None, "", 1, 1.0, True, [], {}])
    return [ToolCall(one.name, arguments) if one is call else one for one in calls]
