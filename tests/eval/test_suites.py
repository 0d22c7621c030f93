"""Suites are read strictly; the shipped ones are what they claim to be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import data.synth.domains
from data.catalogue.reader import load_catalogue
from data.config import OpenAIJsonlSource
from data.overlap import find_overlap
from data.sources import read_source
from data.synth.domains import load_file
from eval.cases import SuiteError
from eval.suites import SUITES_DIR, load_case_texts, load_suite, shipped_suites
from eval.suites.perturbed import Perturbation
from tinydispatch.bundled import bundled_tools, load_tools
from tinydispatch.tools import Conversation, Role, check_calls

DOMAINS_DIR = Path(data.synth.domains.__file__).parent / "domains"
OWN_TOOLS = Path(__file__).parents[2] / "examples/own_tools"
CASE: dict[str, Any] = {
    "id": "a",
    "category": "x",
    "reference_date": "2026-03-19",
    "messages": [{"role": "user", "content": "Weather in Oslo?"}],
    "expected": {"calls": [{"name": "get_weather", "arguments": {"location": "Oslo"}}]},
}


def write_suite(folder: Path, *cases: Any, head: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    head = {"name": "own"} if head is None else head
    folder.joinpath("suite.json").write_text(head if isinstance(head, str) else json.dumps(head))
    lines = [case if isinstance(case, str) else json.dumps(case) for case in cases]
    folder.joinpath("cases.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(("name", "per_category"), [("core", 8), ("dev", 24)])
def test_shipped_suites_hold_five_categories_of_equal_size(name: str, per_category: int) -> None:
    suite = load_suite(name)
    counts = {category: sum(case.category == category for case in suite.cases) for category in suite.categories}
    wanted = ["tool_selection", "argument_accuracy", "multi_tool", "edge_cases", "format_compliance"]
    assert counts == dict.fromkeys(wanted, per_category)


@pytest.mark.parametrize("name", shipped_suites())
def test_every_gold_call_of_a_shipped_suite_fits_its_tool(name: str) -> None:
    suite = load_suite(name)
    for case in suite.cases:
        for wanted in case.expected:
            assert check_calls(wanted.examples()[:1], suite.tools_for(case)) == [], case.id


def test_core_uses_every_bundled_tool_and_every_parameter() -> None:
    suite = load_suite("core")
    used = {(call.name, name) for case in suite.cases for call in case.expected for name in call.arguments}
    offered = {(tool.name, name) for tool in suite.tools for name in tool.parameters["properties"]}
    assert used == offered


def test_core_and_dev_share_no_wording() -> None:
    texts = [
        {message.content.casefold() for case in load_suite(name).cases for message in case.messages if message.content}
        for name in ("core", "dev")
    ]
    assert not texts[0] & texts[1]


@pytest.mark.parametrize("name", shipped_suites())
def test_no_two_cases_of_a_suite_are_the_same_conversation(name: str) -> None:
    cases = load_suite(name).cases
    conversations = [repr((case.messages, case.reference_date, case.episode, case.offer)) for case in cases]
    assert len(set(conversations)) == len(conversations)


def test_case_texts_are_all_that_users_say() -> None:
    texts = load_case_texts()
    cases = [case for name in shipped_suites() for case in load_suite(name).cases if not case.parent]
    users = [message.content for case in cases for message in case.messages if message.role is Role.USER]
    assert set(users) < set(texts)
    assert "In Utrecht." in texts, "what the user answers in a played case counts too"
    assert len(texts) >= 160


def test_a_folder_with_its_own_tools_is_a_suite(tmp_path: Path) -> None:
    tools = [
        {"name": "ring", "description": "", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}}}
    ]
    case = {**CASE, "expected": {"calls": [{"name": "ring", "arguments": {"n": 3}}], "ordered": True}}
    folder = write_suite(tmp_path / "s", case, head={"name": "own", "tools": "tools.json"})
    (folder / "tools.json").write_text(json.dumps(tools))
    suite = load_suite(folder)
    assert [tool.name for tool in suite.tools] == ["ring"]
    assert suite.categories == ("x",)
    assert suite.cases[0].is_ordered


def test_a_case_may_offer_some_of_the_tools(tmp_path: Path) -> None:
    suite = load_suite(write_suite(tmp_path / "s", {**CASE, "tools": ["search_web", "get_weather"]}))
    assert [tool.name for tool in suite.tools_for(suite.cases[0])] == ["get_weather", "search_web"]


def test_the_fingerprint_follows_the_cases(tmp_path: Path) -> None:
    first = load_suite(write_suite(tmp_path / "s", CASE)).fingerprint
    assert first == load_suite(write_suite(tmp_path / "t", CASE)).fingerprint
    assert first != load_suite(write_suite(tmp_path / "t", {**CASE, "id": "b"})).fingerprint


def expecting(**arguments: Any) -> dict[str, Any]:
    return {**CASE, "expected": {"calls": [{"name": "get_weather", "arguments": arguments}]}}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("{", r"cases.jsonl:2: not JSON at column 2"),
        ("[]", r"cases.jsonl:2: .*expected an object, not list"),
        ({**CASE, "id": "a"}, r"cases.jsonl:2: case 'a': key 'id': occurs twice"),
        ({**CASE, "id": ""}, r"key 'id': expected a non-empty string"),
        ({**CASE, "id": "b", "expcted": {}}, r"key 'expcted': unknown key; did you mean 'expected'\?"),
        ({**CASE, "id": "b", "reference_date": "19.3.2026"}, r"case 'b': key 'reference_date': '19.3.2026' is no date"),
        ({**CASE, "id": "b", "messages": []}, r"key 'messages': expected a non-empty array"),
        ({**CASE, "id": "b", "messages": [{"role": "human", "content": "x"}]}, r"key 'messages.0.role': 'human'"),
        ({**CASE, "id": "b", "messages": [{"role": "assistant", "content": "x"}]}, r"last message must be the user's"),
        ({**CASE, "id": "b", "messages": [{"role": "user", "content": 5}]}, r"key 'messages.0.content': expected a"),
        ({**CASE, "id": "b", "expected": {}}, r"key 'expected.calls': expected an array"),
        ({**CASE, "id": "b", "expected": None}, r"key 'expected': expected an object, not NoneType"),
        ({**CASE, "id": "b", "premature": ["fly"]}, r"key 'premature': 'fly' is none of the suite's tools"),
        ({**CASE, "id": "b", "after_error": "yes"}, r"key 'after_error': expected true or false"),
        ({**CASE, "id": "b", "expected": {"calls": [{"name": "fly", "arguments": {}}]}}, r"'fly' is none"),
        ({**expecting(), "id": "b"}, r"key 'expected.calls.0.arguments': breaks the schema: 'location' is a required"),
        ({**expecting(location="O", date="soon"), "id": "b"}, r"arguments.date': breaks the schema"),
        ({**expecting(location={"$match": "optional", "value": "O"}), "id": "b"}, r"breaks the schema: 'location'"),
        ({**expecting(location={"$match": "one_of", "values": ["O", 5]}), "id": "b"}, r"arguments.location': breaks"),
        ({**expecting(location={"$match": "oneof"}), "id": "b"}, r"arguments.location': unknown matcher 'oneof'"),
    ],
)  # fmt: skip
def test_a_malformed_case_is_named_by_file_line_and_key(tmp_path: Path, case: Any, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        load_suite(write_suite(tmp_path / "s", CASE, case))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("{", r"suite.json:1: not JSON"),
        ({}, r"key 'name': expected a string"),
        ({"name": "own", "tool": "bundled"}, r"did you mean 'tools'\?"),
        ({"name": "own", "tools": "absent.json"}, r"key 'tools': .*absent.json: cannot be read"),
        ({"name": "own", "categories": ["y"]}, r"case 'a': key 'category': 'x' is none of the suite's \['y'\]"),
        ({"name": "own", "categories": "y"}, r"key 'categories': expected an array"),
    ],
)
def test_a_malformed_suite_file_is_named_by_key(tmp_path: Path, head: Any, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        load_suite(write_suite(tmp_path / "s", CASE, head=head))


def test_an_unknown_suite_names_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"no suite 'cor'.*did you mean 'core'\?"):
        load_suite("cor")
    with pytest.raises(SuiteError, match="holds no cases"):
        load_suite(write_suite(tmp_path / "s"))


def test_open_matchers_need_not_fit_the_schema_by_example(tmp_path: Path) -> None:
    case = expecting(location="O", date={"$match": "any"})
    assert load_suite(write_suite(tmp_path / "s", case)).cases[0].id == "a"


def test_each_shipped_suite_says_what_it_is() -> None:
    assert {"core", "dev"} <= set(shipped_suites())
    assert all(load_suite(name).description for name in shipped_suites())
    assert all((SUITES_DIR / name).name == load_suite(name).name for name in shipped_suites())


def test_unseen_tools_are_in_no_training_example_and_all_in_use() -> None:
    suite = load_suite("unseen_tools")
    trained = {name for path in DOMAINS_DIR.glob("*.yaml") for spec in load_file(path) for name in spec.names}
    names = {tool.name for tool in suite.tools}
    assert len(suite.cases) >= 32
    assert len(trained) > 100, "the generator's tools are found"
    assert not names & (trained | {tool.name for tool in bundled_tools()})
    assert names == {call.name for case in suite.cases for call in case.expected}


def test_own_tools_asks_for_the_examples_tools_in_other_words() -> None:
    suite, tools = load_suite("own_tools"), load_tools(OWN_TOOLS / "tools.json")
    source = OpenAIJsonlSource(kind="openai_jsonl", path=OWN_TOOLS / "examples.jsonl")
    examples = [row for row in read_source(source, seed=0, default_tools=tools) if isinstance(row, Conversation)]
    calls = [call for row in examples for message in row.messages for call in message.tool_calls]
    assert (len(examples), len(suite.cases)) == (25, 50)
    assert suite.tools == tuple(tools)
    assert check_calls(calls, tools) == []
    assert {tool.name for tool in tools} == {call.name for call in calls}
    assert {tool.name for tool in tools} == {call.name for case in suite.cases for call in case.expected}
    assert find_overlap(examples, load_case_texts()) == []
    of_examples = set(re.findall(r"LS?-[0-9]+", repr(calls)))
    of_cases = set(re.findall(r"LS?-[0-9]+", repr([case.expected for case in suite.cases])))
    assert min(len(of_examples), len(of_cases)) > 10, "the numbers are found"
    assert not of_examples & of_cases, "no number can be remembered"


def test_own_tools_are_in_no_training_data() -> None:
    generated = {name for path in DOMAINS_DIR.glob("*.yaml") for spec in load_file(path) for name in spec.names}
    catalogue = {tool.name for domain in load_catalogue() for tool in domain.tools}
    assert len(catalogue) > 300, "the catalogue's tools are found"
    assert not {tool.name for tool in load_suite("own_tools").tools} & (generated | catalogue)


def test_robust_follows_core_and_leaves_no_case_of_it_out() -> None:
    core, robust = load_suite("core"), load_suite("robust")
    assert {case.parent for case in robust.cases} == {case.id for case in core.cases}
    assert set(robust.categories) == set(Perturbation)
