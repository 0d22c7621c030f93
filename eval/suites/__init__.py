"""Suites by name: a folder here with `suite.json` and `cases.jsonl`, or a module here with `open_suite`.

A new suite is one folder or one module; eval/suites/README.md has the format of the folders.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import lru_cache
from pathlib import Path

from data.sources.categories import Behaviour
from data.truth import Shape
from eval.cases import Case, Opener, Suite, SuiteError, read_head, written_suite
from tinydispatch.tools import Role

SUITES_DIR = Path(__file__).parent


@lru_cache(maxsize=1)
def _openers() -> list[Opener]:
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return [module.open_suite for module in modules if hasattr(module, "open_suite")]


def shipped_suites() -> list[str]:
    """Names of the suites under `eval/suites/`."""
    return sorted(path.parent.name for path in SUITES_DIR.glob("*/suite.json"))


def suite_folder(name: str) -> Path:
    """Where a shipped suite lies; any other name is a path."""
    return SUITES_DIR / name if name in shipped_suites() else Path(name)


def load_suite(name_or_path: str | Path, *, max_per_category: int | None = None) -> Suite:
    """Read a shipped suite by name, a folder that holds `suite.json` and `cases.jsonl`, or one made from a data set.

    Those are made by the modules here: a run's `heldout.jsonl`, and "bfcl" or a folder with the leaderboard's files.

    Args:
        max_per_category: of suites made from data sets, how many cases of each category to draw; None takes all.

    Raises:
        SuiteError: no such suite, or something in it is not as `eval/suites/README.md` says.
    """
    name = str(name_or_path)
    for open_suite in _openers():
        if (suite := open_suite(name, max_per_category=max_per_category)) is not None:
            return suite
    folder = suite_folder(name)
    if not (folder / "suite.json").is_file():
        near = difflib.get_close_matches(name, shipped_suites(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"shipped are {', '.join(shipped_suites())}"
        raise SuiteError(
            f"no suite '{name}': neither shipped ({hint}) nor a folder with a suite.json nor a heldout.jsonl"
        )
    return written_suite(folder, read_head(folder / "suite.json"))


def case_texts_by_suite() -> dict[str, list[str]]:
    """What users say in each shipped suite, for keeping cases out of training data.

    A derived suite adds nothing: its parent's words are there.
    """
    suites = [suite for suite in map(load_suite, shipped_suites()) if not suite.is_derived]
    return {suite.name: [text for case in suite.cases for text in case.user_texts] for suite in suites}


def shapes_by_suite() -> dict[str, Shape]:
    """How many cases each shipped suite has of each behaviour, writing system and called tool."""
    shapes = {}
    for suite in map(load_suite, shipped_suites()):
        if not suite.is_derived:
            shapes[suite.name] = Shape()
            for case in suite.cases:
                called = [call.name for call in case.expected]
                shapes[suite.name].add(str(_behaviour(case)), " ".join(case.user_texts), called)
    return shapes


def _behaviour(case: Case) -> Behaviour:
    is_after_result = any(message.role is Role.TOOL for message in case.messages)
    if case.episode is not None:
        return Behaviour.MULTI_STEP
    if len(case.expected) > 1:
        return Behaviour.PARALLEL_CALLS
    if case.expected:
        return Behaviour.NEXT_CALL if is_after_result else Behaviour.SINGLE_CALL
    return Behaviour.FINAL_ANSWER if is_after_result else Behaviour.NO_CALL


def load_case_texts() -> list[str]:
    """The same without saying which suite it is from."""
    return [text for texts in case_texts_by_suite().values() for text in texts]
