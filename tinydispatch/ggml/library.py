"""Finds llama.cpp's shared library, checks that it is the version we know, and loads it once per process."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinydispatch.ggml import bindings

LIBRARY_VARIABLE = "TINYDISPATCH_LLAMA_LIB"
_WHEEL, _NATIVE_NAME = "xllamacpp", "libllama.so"
PIN = "xllamacpp==2026.10.11549"

logger = logging.getLogger("tinydispatch.llama")
# A library stays silent unless the application configures logging.
logging.getLogger("tinydispatch").addHandler(logging.NullHandler())

# ggml_log_level: 1 debug, 2 info, 3 warn, 4 error; 5 continues the previous line. Loading prints some 60 info lines.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.WARNING}
_ERROR_LEVEL, _CONTINUE_LEVEL = 4, 5


class LlamaLibraryError(ValueError):
    """llama.cpp's library is missing, of another version, or a second one; the message says what to do."""


class LlamaLibrary:
    """The loaded library; its functions are attributes of `c` with their signatures set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.c: Any = ctypes.CDLL(str(path))
        except OSError as error:
            raise LlamaLibraryError(f"{path}: cannot be loaded as llama.cpp's library: {error}") from error
        self.version = self._checked_version()
        self._declare()
        self._check_layout(self.c.llama_model_default_params(), bindings.MODEL_DEFAULTS)
        self._check_layout(self.c.llama_context_default_params(), bindings.CONTEXT_DEFAULTS)
        self._errors: deque[str] = deque(maxlen=4)
        self._line, self._line_level = "", 0
        # ctypes frees a callback that nothing refers to, and the library would then call into nowhere.
        self._log_callback = bindings.LogCallback(self._log)
        self.c.llama_log_set(self._log_callback, None)
        self.c.llama_backend_init()
        self._load_backends()

    def take_errors(self) -> str:
        """What the library logged as errors since the last call, in one line; "" for nothing."""
        lines = list(self._errors)
        self._errors.clear()
        return "; ".join(lines)

    def _checked_version(self) -> str:
        try:
            get_version = self.c.llama_version
        except AttributeError:
            raise LlamaLibraryError(f"{self.path}: not llama.cpp's library, or one too old to be used") from None
        get_version.restype = ctypes.c_char_p
        version = str(get_version().decode())
        if version != bindings.LLAMA_VERSION:
            raise LlamaLibraryError(
                f"{self.path}: llama.cpp {version} is not supported, because its structs may be laid out differently; "
                f"supported is {bindings.LLAMA_VERSION} (build 11549), which `pip install {PIN}` brings"
            )
        return version

    def _declare(self) -> None:
        for name, (result, arguments) in bindings.SIGNATURES.items():
            try:
                function = getattr(self.c, name)
            except AttributeError:
                raise LlamaLibraryError(f"{self.path}: lacks the function {name}; install {PIN}") from None
            function.restype, function.argtypes = result, arguments

    def _check_layout(self, parameters: ctypes.Structure, expected: Mapping[str, object]) -> None:
        for field, value in expected.items():
            if getattr(parameters, field) != value:
                raise LlamaLibraryError(
                    f"{self.path}: another struct layout than build 11549's ({type(parameters).__name__}.{field} is "
                    f"{getattr(parameters, field)!r} by default, expected {value!r}); install {PIN}"
                )

    def _load_backends(self) -> None:
        # Builds with GGML_BACKEND_DL keep their CPU code in libggml-cpu-*.so files beside the library.
        folder = self.path.parent
        if any(folder.glob("libggml-cpu-*.so")) and hasattr(self.c, "ggml_backend_load_all_from_path"):
            self.c.ggml_backend_load_all_from_path.argtypes = (ctypes.c_char_p,)
            self.c.ggml_backend_load_all_from_path(os.fsencode(folder))

    def _log(self, level: int, text: bytes, _user_data: object) -> None:
        """Native code calls this, possibly with pieces of a line."""
        if level != _CONTINUE_LEVEL:
            self._line, self._line_level = "", level
        self._line += text.decode("utf-8", "replace")
        if not self._line.endswith("\n"):
            return
        line, self._line = self._line.strip(), ""
        if not line:
            return
        if self._line_level == _ERROR_LEVEL:
            self._errors.append(line)
        logger.log(_LEVELS.get(self._line_level, logging.DEBUG), "%s", line)


_lock = threading.Lock()
_loaded: LlamaLibrary | None = None


def load_library() -> LlamaLibrary:
    """The one llama.cpp library of this process, loaded by the first call.

    `TINYDISPATCH_LLAMA_LIB` names a natively built `libllama.so`; without it the one in `native_folder()` is used, and
    where there is none the xllamacpp wheel's.

    Raises:
        LlamaLibraryError: nothing to load, another version, or another llama.cpp is already in this process.
    """
    global _loaded
    with _lock:
        path = find_library()
        if _loaded is not None and _loaded.path != path:
            raise LlamaLibraryError(
                f"{LIBRARY_VARIABLE} now names {path}, but {_loaded.path} is loaded already; "
                "two llama.cpp libraries in one process crash, so set it before the first use"
            )
        if _loaded is None:
            _refuse_second_library(path)
            _loaded = LlamaLibrary(path)
        return _loaded


def native_folder() -> Path:
    """Where a `libllama.so` built for this machine is looked for; its name holds the version, so an old one is left."""
    data = os.environ.get("XDG_DATA_HOME")
    base = Path(data) if data else Path.home() / ".local" / "share"
    return base / "tinydispatch" / f"llama.cpp-{bindings.LLAMA_VERSION}"


def find_library() -> Path:
    """Where the library lies; loads nothing.

    Raises:
        LlamaLibraryError: the variable names no file, or the wheel is not installed.
    """
    if named := os.environ.get(LIBRARY_VARIABLE):
        path = Path(named).resolve()
        if not path.is_file():
            raise LlamaLibraryError(f"{LIBRARY_VARIABLE}={named}: no such file")
        return path
    if (native := native_folder() / _NATIVE_NAME).is_file():
        return native.resolve()
    spec = importlib.util.find_spec(_WHEEL)  # finds without importing: the import would start its own server code
    if spec is None or spec.origin is None:
        raise LlamaLibraryError(
            f"no llama.cpp library: run `pip install {PIN}`, or set {LIBRARY_VARIABLE} to a libllama.so of build 11549"
        )
    folder = Path(spec.origin).parent
    candidates = sorted(folder.glob(f"{_WHEEL}*.so"))
    if not candidates:
        raise LlamaLibraryError(f"{folder}: holds no {_WHEEL}*.so; reinstall {PIN}")
    return candidates[0].resolve()


def _refuse_second_library(path: Path) -> None:
    foreign = [name for name in ("llama_cpp", _WHEEL) if name in sys.modules]
    if _WHEEL in foreign and path.name.startswith(_WHEEL):
        foreign.remove(_WHEEL)  # the same file: the system's loader hands back what is loaded
    if foreign:
        raise LlamaLibraryError(
            f"the module {foreign[0]!r} has loaded its own llama.cpp into this process; "
            f"a second one ({path}) would crash, so run it in a process of its own"
        )
