"""Suite `bfcl`: the single-turn categories of the Berkeley Function Calling Leaderboard, from its own files.

Scored by our strict rules and, in a column of its own, by the leaderboard's. The package bfcl-eval (Apache-2.0)
carries the files; nothing of it is imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from eval.cases import Case, ExpectedCall, LenientRule, Suite, SuiteError, drawn
from eval.matchers import Matcher, MatcherKind
from tinydispatch.formats import ParsedReply
from tinydispatch.tools import Message, Role, Tool, ToolCall, ToolError

_PYTHON_TYPES: Mapping[str, type] = {
    "string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict,
    "any": str,
}  # fmt: skip
_IGNORED = re.compile(r"[ ,./\-_*^]")
_ABSENT = ""  # stands among the answers of an argument that may be left out

Answers = Mapping[str, Sequence[Any]]


def passes(reply: ParsedReply, functions: Sequence[Mapping[str, Any]], gold: Sequence[Mapping[str, Answers]]) -> bool:
    """Whether a reply counts as right there.

    Args:
        functions: as the question file lists them.
        gold: the calls wanted, each `{name: {argument: accepted values}}`; () where none may be made.
    """
    calls = () if reply.unparsed else reply.calls
    if len(calls) != len(gold):
        return False
    left = list(calls)
    for wanted in gold:
        ((name, answers),) = wanted.items()
        function = next((function for function in functions if function["name"] == name), functions[0])
        # Greedy, as there: the first call that fits is taken, whichever answer it would fit better.
        found = next((call for call in left if _is_call(call, function, answers)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _is_call(call: ToolCall, function: Mapping[str, Any], answers: Answers) -> bool:
    properties = function["parameters"]["properties"]
    required = function["parameters"].get("required", [])
    if call.name != function["name"] or any(name not in call.arguments for name in required):
        return False
    for name, value in call.arguments.items():
        if name not in properties or name not in answers:
            return False
        if not _is_value(value, properties[name], answers[name]):
            return False
    return all(name in call.arguments or _ABSENT in accepted for name, accepted in answers.items())


def _is_value(value: Any, schema: Mapping[str, Any], accepted: Sequence[Any]) -> bool:
    wanted = _PYTHON_TYPES[schema["type"]]
    inner = _PYTHON_TYPES[schema["items"]["type"]] if schema["type"] in ("array", "tuple") else None
    if wanted is float and type(value) is int:
        value = float(value)
    is_typed, is_variable = _type_of(value, accepted, wanted, inner)
    if not is_typed:
        return False
    if is_variable:
        return value in accepted
    if wanted is dict:
        return _is_dict(value, accepted)
    if wanted is list and inner is dict:
        return any(
            len(value) == len(option) and all(_is_dict(one, [other]) for one, other in zip(value, option, strict=True))
            for option in accepted
        )
    if wanted is str:
        return _plain(value) in [_plain(option) for option in accepted if isinstance(option, str)]
    if wanted is list:
        return [_plain(item) for item in value] in [[_plain(item) for item in option] for option in accepted]
    return value in accepted


def _type_of(value: Any, accepted: Sequence[Any], wanted: type[Any], inner: type[Any] | None) -> tuple[bool, bool]:
    """Whether the type will do, and whether the value is compared as it is: an answer of another type is a variable."""
    answered = next((type(option) for option in accepted if option != _ABSENT), None)
    is_variable = answered is not None and answered is not wanted
    if type(value) is wanted:
        if inner is None:
            return True, is_variable
        for option in accepted:
            # An answer that is no list accepts any list; the values are compared later.
            if not isinstance(option, list) or all(_type_of(item, option, inner, None)[0] for item in value):
                return True, is_variable
    return answered is not None and type(value) is answered, True


def _is_dict(value: Any, accepted: Sequence[Any]) -> bool:
    return any(_has_entries(value, option) for option in accepted if option != _ABSENT)


def _has_entries(value: Mapping[str, Any], option: Mapping[str, Sequence[Any]]) -> bool:
    for key, entry in value.items():
        if key not in option or _plain(entry) not in [_plain(other) for other in option[key]]:
            return False
    return all(key in value or _ABSENT in entries for key, entries in option.items())


def _plain(value: Any) -> Any:
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value


BFCL = "bfcl"
CATEGORIES = (
    "simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance", "live_simple", "live_multiple",
    "live_parallel", "live_parallel_multiple", "live_irrelevance",
)  # fmt: skip
# Single-turn, and left out all the same; rows of these are counted as skipped.
_LEFT_OUT = {
    "simple_java": "values in Java's spelling",
    "simple_javascript": "values in JavaScript's spelling",
    "live_relevance": "no answers: any call at all counts as right there",
}
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None}


def bfcl_folder() -> Path:
    """The data of the installed package bfcl-eval.

    Raises:
        SuiteError: it is not installed.
    """
    found = importlib.util.find_spec("bfcl_eval")  # looked up, not imported: it would bring forty packages along
    for place in found.submodule_search_locations or () if found is not None else ():
        return Path(place) / "data"
    raise SuiteError(
        "suite 'bfcl' is read from the package bfcl-eval: pip install --no-deps bfcl-eval, or give the folder with its "
        "BFCL_v*.json files as --suite"
    )


def is_bfcl_folder(folder: Path) -> bool:
    """Whether question and answer files lie there."""
    return (folder / "possible_answer").is_dir() and any(folder.glob("BFCL_v*_*.json"))


def open_suite(name: str, *, max_per_category: int | None) -> Suite | None:
    """The suite of the installed package by its name, or of a folder with the leaderboard's files."""
    if name != BFCL and not is_bfcl_folder(Path(name)):
        return None
    return bfcl_suite(bfcl_folder() if name == BFCL else Path(name), max_per_category=max_per_category)


def bfcl_suite(folder: Path, *, max_per_category: int | None = None) -> Suite:
    """The suite; its notes say how many rows were read and which were skipped why.

    Raises:
        SuiteError: a file is missing or not as the leaderboard writes it.
    """
    cases: list[Case] = []
    rows: dict[str, _Row] = {}
    unanswerable: list[str] = []
    for category in CATEGORIES:
        for row in _read_category(folder, category):
            rows[row[0]["id"]] = row
            if _is_answerable(row):
                cases.append(_case(category, row))
            else:
                unanswerable.append(row[0]["id"])
    chosen = drawn(cases, max_per_category)
    digest = hashlib.sha256("\n".join(json.dumps(rows[case.id]) for case in chosen).encode()).hexdigest()

    def rule(case: Case, reply: Any) -> bool:
        question, gold = rows[case.id]
        return passes(reply, question["function"], gold)

    notes = [f"{len(rows):,} rows of {len(CATEGORIES)} categories, {len(chosen):,} of them cases here"]
    skipped = {name: len(_lines(path)) for name in _LEFT_OUT for path in _question_files(folder, name)}
    notes += [f"skipped {count} rows of {name}: {_LEFT_OUT[name]}" for name, count in skipped.items()]
    if unanswerable:
        listed = ", ".join(unanswerable)
        notes.append(f"skipped {len(unanswerable)} rows that no reply can pass by the leaderboard's own rule: {listed}")
    description = "single-turn categories of the Berkeley Function Calling Leaderboard"
    suite = Suite(BFCL, description, (), CATEGORIES, tuple(chosen), digest[:16])
    return replace(suite, notes=tuple(notes), lenient=LenientRule("the leaderboard's rule", rule))


_Row = tuple[dict[str, Any], Sequence[Mapping[str, Any]]]


def _question_files(folder: Path, category: str) -> list[Path]:
    named = re.compile(rf"BFCL_v\d+_{category}\.json")  # no glob: it would find live_multiple for multiple
    return sorted(path for path in folder.iterdir() if named.fullmatch(path.name))[-1:]


def _read_category(folder: Path, category: str) -> list[_Row]:
    files = _question_files(folder, category)
    if not files:
        raise SuiteError(f"{folder}: no file BFCL_v*_{category}.json")
    questions = _lines(files[0])
    if "irrelevance" in category:
        return [(question, ()) for question in questions]
    # Some answers carry another id; both files are in one order.
    answers = _lines(folder / "possible_answer" / files[0].name)
    if len(answers) != len(questions):
        raise SuiteError(f"{files[0]}: {len(questions)} questions, but {len(answers)} answers in possible_answer/")
    try:
        return [(question, answer["ground_truth"]) for question, answer in zip(questions, answers, strict=True)]
    except (KeyError, TypeError) as error:
        raise SuiteError(f"{folder / 'possible_answer' / files[0].name}: a line without {error}") from error


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise SuiteError(f"{path}: cannot be read: {error}") from error


def _is_answerable(row: _Row) -> bool:
    """False where the answers demand an argument that the function has not, or accept no value of a required one."""
    question, gold = row
    functions = {function["name"]: function["parameters"] for function in question["function"]}
    for name, answers in ((name, answers) for call in gold for name, answers in call.items()):
        known, required = functions[name]["properties"], functions[name].get("required", [])
        if any(argument not in known and "" not in options for argument, options in answers.items()):
            return False
        if any(not answers.get(argument) for argument in required):
            return False
    return True


def _case(category: str, row: _Row) -> Case:
    question, gold = row
    try:
        (turn,) = question["question"]
        messages = tuple(Message(Role(message["role"]), message["content"]) for message in turn)
        tools = [_tool(json.dumps(function)) for function in question["function"]]
        schemas = {tool.name: tool.parameters for tool in tools}
        calls = [
            ExpectedCall(name, _arguments(answers, schemas[name])) for call in gold for name, answers in call.items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError, ToolError) as error:
        raise SuiteError(f"{category}: row '{question.get('id')}': {error!r}") from error
    return Case(question["id"], category, messages, tuple(calls), offer=tuple(tools))


# Rows share their functions, and checking a schema takes about a millisecond.
@lru_cache(maxsize=4096)
def _tool(text: str) -> Tool:
    function = json.loads(text)
    return Tool(function["name"], function.get("description", ""), _schema(function["parameters"]))


def _schema(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The leaderboard's schema, which names types as Python does, as JSON schema."""
    schema = dict(spec)
    kind = schema.pop("type", None)
    if (named := _TYPES.get(kind, kind) if isinstance(kind, str) else None) is not None:
        schema["type"] = named
    if isinstance(spec.get("properties"), Mapping):
        schema["properties"] = {name: _schema(inner) for name, inner in spec["properties"].items()}
    if isinstance(spec.get("items"), Mapping):
        schema["items"] = _schema(spec["items"])
    schema.pop("optional", None)
    return schema


def _arguments(answers: Mapping[str, Sequence[Any]], schema: Mapping[str, Any]) -> dict[str, Any]:
    """`{"unit": ["m", ""]}` → `unit` is "m" or absent. What may only be absent is not expected at all."""
    known, required = schema.get("properties", {}), schema.get("required", ())
    found = {}
    for name, options in answers.items():
        if name not in known:
            continue
        if _given(options):
            found[name] = _accepted([_value(option) for option in options])
        elif name in required:
            found[name] = ""  # the one value that is accepted and not absent
    return found


def _accepted(options: Sequence[Any]) -> Any:
    values = tuple(_given(options))
    one = values[0] if len(values) == 1 else Matcher(MatcherKind.ONE_OF, values)
    return Matcher(MatcherKind.OPTIONAL, (one,)) if len(values) < len(options) else one


def _value(option: Any) -> Any:
    """An object's entries are lists of accepted values as well, but what is nested deeper is a value as it stands."""
    if isinstance(option, Mapping):
        return {name: _accepted(options) for name, options in option.items() if _given(options)}
    if isinstance(option, list) and option and all(isinstance(item, Mapping) for item in option):
        return [_value(item) for item in option]
    return option


def _given(options: Sequence[Any]) -> list[Any]:
    """The options but for "", which stands for an argument that is left out."""
    return [option for option in options if option != ""]
