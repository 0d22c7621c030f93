"""What the build hook puts into a wheel: every variant under the name that the runtime looks for, or nothing."""

from __future__ import annotations

import importlib
import platform
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scripts.native_wheel import FOLDER, PlatformWheel, PureWheel, compile_for_wheel, machine_here, variants_for
from tinydispatch.native import library
from tinydispatch.native.library import VARIABLE, VARIANTS, best_variant, cpu_features, file_name, find_native

_ROOT = Path(__file__).resolve().parents[2]
_INTERFACE = "hatchling.builders.hooks.plugin.interface"
# Writes its own arguments where a compiler would write the library; fails where that file's name holds FAIL.
_COMPILER = """
import os, pathlib, sys
target = pathlib.Path(sys.argv[sys.argv.index("-o") + 1])
if os.environ.get("FAIL", "nothing") in target.name:
    sys.exit("cannot\\nuse this flag")
target.write_text("\\n".join(sys.argv))
"""


class _App:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def display_info(self, message: str) -> None:
        self.lines.append(message)


class _Interface:
    """What the hook uses of hatchling's BuildHookInterface, which the tests' environment lacks."""

    def __init__(self, target_name: str) -> None:
        self.root, self.target_name, self.app = str(_ROOT), target_name, _App()


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An x86-64 machine whose compiler is a script; the folder is where temporary files go."""
    (tmp_path / "compiler.py").write_text(_COMPILER)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("CC", f"{sys.executable} {tmp_path / 'compiler.py'}")
    monkeypatch.delenv("FAIL", raising=False)
    monkeypatch.delenv(VARIABLE, raising=False)
    return folder


@pytest.fixture
def hook_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """hatch_build.py upon the stand-in, forgotten afterwards."""
    stand_in = ModuleType(_INTERFACE)
    stand_in.__dict__["BuildHookInterface"] = _Interface
    monkeypatch.setitem(sys.modules, _INTERFACE, stand_in)
    monkeypatch.delitem(sys.modules, "hatch_build", raising=False)
    module = importlib.import_module("hatch_build")
    monkeypatch.setitem(sys.modules, "hatch_build", module)
    return module


def _build_data() -> dict[str, Any]:
    return {"infer_tag": False, "pure_python": True, "force_include": {}}


def _compiled_files() -> set[Path]:
    return {path for pattern in ("*.so", "*.o") for path in (_ROOT / "tinydispatch").rglob(pattern)}


def test_every_variant_is_for_one_kind_of_machine() -> None:
    assert {variant.name for variant in variants_for("x86_64")} == {"avx512vnni", "avx2"}
    assert {variant.name for variant in variants_for("aarch64")} == {"neon-dotprod", "neon"}
    assert variants_for("riscv64") == ()
    found = [variant for machine in ("x86_64", "aarch64") for variant in variants_for(machine)]
    assert sorted(variant.name for variant in found) == sorted(variant.name for variant in VARIANTS)


def test_the_wheel_gets_the_libraries_under_the_names_that_the_runtime_looks_for(
    hook_module: ModuleType, temporary: Path
) -> None:
    before = _compiled_files()
    hook, build_data = hook_module.NativeBuildHook("wheel"), _build_data()
    hook.initialize("standard", build_data)
    assert (build_data["tag"], build_data["pure_python"]) == ("py3-none-linux_x86_64", False)
    libraries = {Path(source): target for source, target in build_data["force_include"].items()}
    assert sorted(libraries.values()) == sorted(f"{FOLDER}/{file_name(variant)}" for variant in variants_for("x86_64"))
    for variant in variants_for("x86_64"):
        source = next(path for path in libraries if path.name == file_name(variant))
        assert set(variant.flags) <= set(source.read_text().splitlines())
    hook.finalize("standard", build_data, "tinydispatch.whl")
    assert not list(temporary.iterdir())
    assert _compiled_files() == before
    assert hook.app.lines == []


@pytest.mark.parametrize(("target", "version", "n_lines"), [("sdist", "standard", 0), ("wheel", "editable", 1)])
def test_an_sdist_and_an_editable_installation_get_no_library(
    hook_module: ModuleType, monkeypatch: pytest.MonkeyPatch, temporary: Path, target: str, version: str, n_lines: int
) -> None:
    monkeypatch.setenv("CC", "false")  # its complaint would be another line
    hook, build_data = hook_module.NativeBuildHook(target), _build_data()
    hook.initialize(version, build_data)
    hook.finalize(version, build_data, "file")
    assert build_data == _build_data()
    assert len(hook.app.lines) == n_lines
    assert all("editable" in line for line in hook.app.lines)
    assert not list(temporary.iterdir())


def test_a_pure_wheel_says_why_in_one_line(hook_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "decoder")
    hook, build_data = hook_module.NativeBuildHook("wheel"), _build_data()
    hook.initialize("standard", build_data)
    hook.finalize("standard", build_data, "tinydispatch.whl")
    assert build_data == _build_data()
    assert len(hook.app.lines) == 1
    assert hook.app.lines[0].startswith("tinydispatch: a pure wheel")
    assert hook.app.lines[0].endswith("failed with 1: cannot use this flag")


def test_the_hook_takes_the_sources_that_are_built_and_leaves_the_import_path_alone(hook_module: ModuleType) -> None:
    before = sys.path[:], sys.dont_write_bytecode
    assert Path(hook_module._import_native_wheel(str(_ROOT)).__file__ or "").is_relative_to(_ROOT)
    assert (sys.path, sys.dont_write_bytecode) == before


@pytest.mark.parametrize("name", ["avx512vnni", "avx2"])
def test_all_variants_or_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("FAIL", name)
    assert isinstance(compile_for_wheel(tmp_path), PureWheel)


def test_without_a_compiler_the_wheel_is_pure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    wheel = compile_for_wheel(tmp_path)
    assert isinstance(wheel, PureWheel)
    assert wheel.reason.startswith("no C compiler")


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    assert compile_for_wheel(tmp_path) == PureWheel("TINYDISPATCH_NATIVE=off")


@pytest.mark.parametrize(
    ("system", "machine", "largest", "reason"),
    [
        ("darwin", "x86_64", 2**63 - 1, "no variant for darwin x86_64 without Linux"),
        ("linux", "riscv64", 2**63 - 1, "no variant for linux riscv64"),
        ("linux", "x86_64", 2**31 - 1, "no variant for linux x86_64 with a 32-bit Python"),
    ],
)
def test_on_another_platform_the_wheel_is_pure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, machine: str, largest: int, reason: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(sys, "maxsize", largest)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert compile_for_wheel(tmp_path) == PureWheel(reason)
    assert not list(tmp_path.glob("*.so"))


@pytest.mark.skipif(
    best_variant(cpu_features()) is None or not any(map(shutil.which, ("cc", "gcc", "clang"))),
    reason="no compiler, or nothing to compile for",
)
def test_what_is_compiled_for_a_wheel_is_found_in_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()  # the real machine, its real compiler
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv(VARIABLE, raising=False)
    folder = shutil.copytree(Path(library.__file__).parent, tmp_path / FOLDER)
    wheel = compile_for_wheel(tmp_path / "scratch")
    assert isinstance(wheel, PlatformWheel), wheel
    assert wheel.tag == f"py3-none-linux_{machine_here()}"
    for source, target in wheel.libraries.items():
        shutil.copy(source, tmp_path / target)
    monkeypatch.setattr(library, "_loaded", {})
    monkeypatch.setattr(library, "_FOLDER", folder)
    monkeypatch.setattr(library, "compile_variant", lambda *_: pytest.fail("compiled again"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = find_native()
    assert found is not None
    assert found.path.parent == folder


def test_hatchling_builds_a_wheel_with_sources_and_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend = pytest.importorskip("hatchling.build", reason="the build backend is not among the tests' requirements")
    monkeypatch.chdir(_ROOT)
    before = _compiled_files()
    wheel = tmp_path / backend.build_wheel(str(tmp_path))
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{FOLDER}/{name}" for name in library._SOURCES} <= names
    assert {f"{FOLDER}/{file_name(variant)}" for variant in variants_for("x86_64")} <= names
    assert _compiled_files() == before
