"""Suites of cases, read from `suite.json` and `cases.jsonl` into frozen types; every error names file, line and key."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.case import Case, case_from_row
from eval.expected import ExpectedCall
from eval.places import Place, SuiteError
from eval.simulators import BUNDLED_SIMULATORS, SIMULATORS_VERSION, Simulator, described, load_simulators
from tinydispatch.bundled import bundled_tools, load_tools
from tinydispatch.formats import ParsedReply
from tinydispatch.tools import Tool, ToolError

__all__ = [
    "SUITES_DIR",
    "Case",
    "ExpectedCall",
    "LenientRule",
    "Suite",
    "case_texts_by_suite",
    "load_case_texts",
    "load_suite",
    "shipped_suites",
]

SUITES_DIR = Path(__file__).parent / "suites"
_SUITE_KEYS = {"name", "description", "tools", "categories", "simulators"}
_DERIVED_KEYS = {"name", "description", "derived_from", "seed", "distractors"}


@dataclass(frozen=True)
class LenientRule:
    """Another rule by which replies are scored as well; its score has a column of its own, under `name`."""

    name: str
    passes: Callable[[Case, ParsedReply], bool]


@dataclass(frozen=True)
class Suite:
    """Cases with the tools they are written against; `fingerprint` changes with either, or with the simulators.

    `notes` say what of a data set is not among the cases.
    """

    name: str
    description: str
    tools: tuple[Tool, ...]
    categories: tuple[str, ...]
    cases: tuple[Case, ...]
    fingerprint: str
    simulators: Mapping[str, Simulator] = field(default_factory=dict, repr=False, compare=False)
    is_derived: bool = False
    lenient: LenientRule | None = field(default=None, repr=False, compare=False)
    notes: tuple[str, ...] = ()

    def tools_for(self, case: Case) -> tuple[Tool, ...]:
        """The tools on offer in `case`, in the suite's order unless the case brings its own."""
        return case.offer or tuple(tool for tool in self.tools if not case.tools or tool.name in case.tools)


def shipped_suites() -> list[str]:
    """Names of the suites under `eval/suites/`."""
    return sorted(path.parent.name for path in SUITES_DIR.glob("*/suite.json"))


def load_suite(name_or_path: str | Path, *, max_per_category: int | None = None) -> Suite:
    """Read a shipped suite by name, a folder that holds `suite.json` and `cases.jsonl`, or one made from a data set.

    These are a run's `heldout.jsonl`, and "bfcl" or a folder with the leaderboard's files.

    Args:
        max_per_category: of suites made from data sets, how many cases of each category to draw; None takes all.

    Raises:
        SuiteError: no such suite, or something in it is not as `eval/suites/README.md` says.
    """
    if str(name_or_path).endswith(".jsonl"):
        from eval.heldout import heldout_suite

        return heldout_suite(Path(name_or_path), max_per_category=max_per_category)
    from eval.bfcl import BFCL, bfcl_folder, bfcl_suite, is_bfcl_folder

    if name_or_path == BFCL or is_bfcl_folder(Path(name_or_path)):
        folder = bfcl_folder() if name_or_path == BFCL else Path(name_or_path)
        return bfcl_suite(folder, max_per_category=max_per_category)
    folder = SUITES_DIR / name_or_path if str(name_or_path) in shipped_suites() else Path(name_or_path)
    if not (folder / "suite.json").is_file():
        near = difflib.get_close_matches(str(name_or_path), shipped_suites(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"shipped are {', '.join(shipped_suites())}"
        raise SuiteError(
            f"no suite '{name_or_path}': neither shipped ({hint}) nor a folder with a suite.json nor a heldout.jsonl"
        )
    head = _read_head(folder / "suite.json")
    return _derived_suite(folder, head) if "derived_from" in head else _written_suite(folder, head)


def case_texts_by_suite() -> dict[str, list[str]]:
    """What users say in each shipped suite, for keeping cases out of training data.

    A derived suite adds nothing: its parent's words are there.
    """
    suites = [suite for suite in map(load_suite, shipped_suites()) if not suite.is_derived]
    return {suite.name: [text for case in suite.cases for text in case.user_texts] for suite in suites}


def load_case_texts() -> list[str]:
    """The same without saying which suite it is from."""
    return [text for texts in case_texts_by_suite().values() for text in texts]


def _written_suite(folder: Path, head: Mapping[str, Any]) -> Suite:
    tools = _read_tools(folder, head.get("tools", "bundled"))
    cases_path = folder / "cases.jsonl"
    cases = _read_cases(cases_path, tools)
    categories = tuple(head.get("categories") or dict.fromkeys(case.category for case in cases))
    for case in cases:
        if case.category not in categories:
            where = f"{cases_path}: case '{case.id}': key 'category'"
            raise SuiteError(f"{where}: {case.category!r} is none of the suite's {list(categories)}")
    simulators = {tool.name: BUNDLED_SIMULATORS.get(tool.name, described({"action": "return"})) for tool in tools}
    definition = json.dumps([tool.to_openai() for tool in tools], sort_keys=True).encode() + cases_path.read_bytes()
    if "simulators" in head:
        path = folder / head["simulators"]
        simulators |= load_simulators(path, {tool.name: tool.parameters for tool in tools})
        definition += path.read_bytes()
    if any(case.episode for case in cases):
        definition += SIMULATORS_VERSION
    fingerprint = hashlib.sha256(definition).hexdigest()[:16]
    return Suite(head["name"], head.get("description", ""), tools, categories, cases, fingerprint, simulators)


def _derived_suite(folder: Path, head: Mapping[str, Any]) -> Suite:
    from eval.perturb import perturbed_cases

    parent = load_suite(head["derived_from"])
    pool = load_suite(head["distractors"]).tools if "distractors" in head else ()
    cases = tuple(perturbed_cases(parent, pool, seed=head.get("seed", 0)))
    if not cases:
        raise SuiteError(f"{folder / 'suite.json'}: key 'derived_from': no case of '{parent.name}' can be perturbed")
    categories = tuple(dict.fromkeys(case.category for case in cases))
    definition = "\n".join([parent.fingerprint, *map(repr, cases)]).encode()
    fingerprint = hashlib.sha256(definition).hexdigest()[:16]
    description = head.get("description", "")
    return Suite(
        head["name"], description, parent.tools, categories, cases, fingerprint, parent.simulators, is_derived=True
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: cannot be read: {error}") from error


def _read_head(path: Path) -> dict[str, Any]:
    try:
        head = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise SuiteError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    place = Place(str(path))
    is_derived = isinstance(head, dict) and "derived_from" in head
    place.check_keys(head, _DERIVED_KEYS if is_derived else _SUITE_KEYS, "")
    for key in ("name", "description", "tools", "simulators", "derived_from", "distractors"):
        if not isinstance(head.get(key, "" if key != "name" else None), str):
            place.fail(key, "expected a string")
    if type(head.get("seed", 0)) is not int:
        place.fail("seed", "expected a whole number")
    categories = head.get("categories", [])
    if not isinstance(categories, list) or not all(isinstance(item, str) for item in categories):
        place.fail("categories", "expected an array of strings")
    assert isinstance(head, dict)
    return head


def _read_tools(folder: Path, source: str) -> tuple[Tool, ...]:
    if source == "bundled":
        return bundled_tools()
    try:
        return load_tools(folder / source)
    except ToolError as error:
        raise SuiteError(f"{folder / 'suite.json'}: key 'tools': {error}") from error


def _read_cases(path: Path, tools: Sequence[Tool]) -> tuple[Case, ...]:
    cases: dict[str, Case] = {}
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = Place(f"{path}:{number}")
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise SuiteError(f"{path}:{number}: not JSON at column {error.colno}: {error.msg}") from error
        case = case_from_row(row, tools, place)
        if case.id in cases:
            place.fail("id", "occurs twice in this file")
        cases[case.id] = case
    if not cases:
        raise SuiteError(f"{path}: holds no cases")
    return tuple(cases.values())
