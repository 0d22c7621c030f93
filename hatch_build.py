"""The build backend's hook: compiles the native decoder into the wheel where a C compiler is at hand."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface):
    """Adds the libraries to a wheel and tags it for this platform, or says in one line why the wheel is pure."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        if version == "editable":
            self._say_pure("it is editable")
            return
        native_wheel = _import_native_wheel(self.root)
        # Outside the source tree, and there until finalize: the archive is written in between.
        self.scratch = tempfile.TemporaryDirectory(prefix="tinydispatch-wheel-")
        wheel = native_wheel.compile_for_wheel(Path(self.scratch.name))
        if isinstance(wheel, native_wheel.PureWheel):
            self._say_pure(wheel.reason)
            return
        build_data["force_include"].update(wheel.libraries)
        build_data["pure_python"] = False
        build_data["tag"] = wheel.tag

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        if hasattr(self, "scratch"):
            self.scratch.cleanup()

    def _say_pure(self, reason: str) -> None:
        self.app.display_info(f"tinydispatch: a pure wheel, without a compiled native decoder: {reason}")


def _import_native_wheel(root: str) -> ModuleType:
    """From the sources that are built, whatever is installed; without leaving bytecode beside them."""
    path, writes_none = sys.path[:], sys.dont_write_bytecode
    sys.path.insert(0, root)
    sys.dont_write_bytecode = True
    try:
        return importlib.import_module("scripts.native_wheel")
    finally:
        sys.path[:], sys.dont_write_bytecode = path, writes_none
