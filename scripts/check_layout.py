"""`python -m scripts.check_layout`: imports run one way and in no circle; nothing heavy in the runtime."""

from __future__ import annotations

import ast
import sys
from collections.abc import Container, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What each package may import from the others. `training.config` is the whole run's tree, so it may see the sections
# that the other packages own.
ALLOWED = {
    "tinydispatch": set[str](),
    "data": {"tinydispatch"},
    "eval": {"tinydispatch", "data"},
    "training": {"tinydispatch", "data", "eval", "export.config"},
    "export": {"tinydispatch", "data", "eval"},
    "retraining": {"tinydispatch", "data", "eval", "training", "export"},
    "scripts": {"tinydispatch", "data", "eval", "training", "export", "retraining"},
}
# The runtime goes onto machines without any of these; the server's own dependencies bring pydantic.
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "pydantic", "yaml", "rich", "gguf"}
# These come with the extras of the server and of the layers.
READS_FILES, MAY_READ_FILES = {"pydantic", "yaml"}, {("tinydispatch", "server"), ("tinydispatch", "layers")}


def python_files(root: Path = ROOT) -> Iterator[Path]:
    """The project's own source files."""
    for package in [*ALLOWED, "tests"]:
        yield from sorted((root / package).rglob("*.py"))
    yield from sorted(root.glob("*.py"))


def wrong_imports(path: Path, tree: ast.Module, package: str) -> list[str]:
    """Imports that go against the direction, and heavy libraries in the runtime."""
    found = []
    for name, line in _imported(tree):
        top = name.split(".")[0]
        is_heavy = package == "tinydispatch" and top in HEAVY
        is_heavy = is_heavy and not (top in READS_FILES and path.parts[:2] in MAY_READ_FILES)
        is_foreign = top in ALLOWED and top != package and package in ALLOWED
        if is_heavy or (is_foreign and not any(_covers(allowed, name) for allowed in ALLOWED[package])):
            found.append(f"{path}:{line} {package} may not import {name}")
    return found


def _covers(allowed: str, name: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


def _imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield node.module, node.lineno


def circles(trees: dict[Path, ast.Module]) -> list[str]:
    """Files that import each other, inside functions too; one line a circle."""
    modules = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in trees}
    imports = {
        name: {other for other in _modules_named(trees[path], modules) if other != name}
        for name, path in modules.items()
    }
    waiting = TopologicalSorter(imports)
    found = []
    while True:
        try:
            waiting.prepare()
            return found
        except CycleError as error:
            circle = error.args[1]
            found.append(f"imports in a circle: {' → '.join(reversed(circle))}")
            imports[circle[1]].discard(circle[0])
            waiting = TopologicalSorter(imports)


def _modules_named(tree: ast.Module, modules: Container[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in inner if name in modules)
            if node.module in modules and any(name not in modules for name in inner):
                yield node.module


def findings(root: Path = ROOT) -> list[str]:
    """Everything that breaks the layout's rules."""
    trees = {path.relative_to(root): ast.parse(path.read_text("utf-8")) for path in python_files(root)}
    found = [
        line
        for path, tree in trees.items()
        for line in wrong_imports(path, tree, path.parts[0] if len(path.parts) > 1 else "")
    ]
    return found + circles(trees)


def main() -> int:
    """0 when nothing is found, 1 after printing the findings."""
    found = findings()
    print("\n".join(found) if found else "layout: imports run one way, without a circle")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
