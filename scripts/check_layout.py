"""`python -m scripts.check_layout`: the one direction of imports, and nothing heavy in the runtime."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
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


def findings(root: Path = ROOT) -> list[str]:
    """Everything that breaks the layout's rules."""
    found = []
    for path in python_files(root):
        tree = ast.parse(path.read_text("utf-8"))
        relative = path.relative_to(root)
        found += wrong_imports(relative, tree, relative.parts[0] if len(relative.parts) > 1 else "")
    return found


def main() -> int:
    """0 when nothing is found, 1 after printing the findings."""
    found = findings()
    print("\n".join(found) if found else "layout: import directions hold")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
