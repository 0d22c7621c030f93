"""The rules that `make check` enforces hold, and would be noticed if they did not."""

import ast
from pathlib import Path

import pytest

from scripts.check_layout import circles, findings, wrong_imports


def test_import_directions_hold() -> None:
    assert findings() == []


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("tinydispatch", "import torch"),
        ("tinydispatch", "from data.store import read_conversations"),
        ("data", "from eval.cases import load_suite"),
        ("eval", "import training.config"),
        ("export", "from training.sft import train"),
        ("training", "from export.export import export_gguf"),
    ],
)
def test_an_import_against_the_direction_is_found(package: str, line: str) -> None:
    found = wrong_imports(Path("x.py"), ast.parse(line), package)
    assert len(found) == 1
    assert package in found[0]


def test_pydantic_is_the_servers_alone() -> None:
    tree = ast.parse("import pydantic")
    assert wrong_imports(Path("tinydispatch/server/x.py"), tree, "tinydispatch") == []
    assert len(wrong_imports(Path("tinydispatch/x.py"), tree, "tinydispatch")) == 1


def test_an_import_along_the_direction_is_not_found() -> None:
    assert wrong_imports(Path("x.py"), ast.parse("from tinydispatch.tools import Tool"), "data") == []


def test_a_circle_is_found_inside_functions_too() -> None:
    sources = {
        "eval/a.py": "from eval.b import x",
        "eval/b.py": "def f():\n    from eval import c",
        "eval/c.py": "import eval.a",
        "eval/d.py": "import eval.a",
    }
    trees = {Path(path): ast.parse(text) for path, text in sources.items()}
    (found,) = circles(trees)
    assert {"eval.a", "eval.b", "eval.c"} == set(found.removeprefix("imports in a circle: ").split(" → "))
    del trees[Path("eval/c.py")]
    assert circles(trees) == []
