from __future__ import annotations

import ctypes.util
import sys
from pathlib import Path

import pytest

from tinydispatch.ggml import bindings, library
from tinydispatch.ggml.library import (
    LIBRARY_VARIABLE,
    LlamaLibrary,
    LlamaLibraryError,
    find_library,
    load_library,
    native_folder,
)


def test_the_library_is_loaded_once() -> None:
    assert load_library() is load_library()
    assert load_library().version == bindings.LLAMA_VERSION


def test_another_version_is_refused_with_the_one_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "LLAMA_VERSION", "0.1.2")
    with pytest.raises(LlamaLibraryError, match=r"llama\.cpp 0\.6\.0-dev is not supported.*pip install xllamacpp=="):
        LlamaLibrary(find_library())


def test_another_struct_layout_is_refused_even_under_the_same_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bindings.CONTEXT_DEFAULTS, "yarn_ext_factor", 0.5)
    with pytest.raises(LlamaLibraryError, match=r"layout.*yarn_ext_factor is -1\.0"):
        LlamaLibrary(find_library())


def test_a_shared_library_of_something_else_is_refused() -> None:
    libc = ctypes.util.find_library("c")
    assert libc is not None
    with pytest.raises(LlamaLibraryError, match=r"not llama\.cpp's library"):
        LlamaLibrary(Path(libc))


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "libllama.so"
    path.write_text("not a library")
    with pytest.raises(LlamaLibraryError, match="cannot be loaded"):
        LlamaLibrary(path)


def test_the_variable_naming_no_file_is_an_error_that_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, "/nowhere/libllama.so")
    with pytest.raises(LlamaLibraryError, match=f"{LIBRARY_VARIABLE}=/nowhere/libllama.so: no such file"):
        load_library()


def test_a_library_built_for_the_machine_is_taken_before_the_wheels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert find_library().name.startswith("xllamacpp")
    native = tmp_path / "tinydispatch" / f"llama.cpp-{bindings.LLAMA_VERSION}" / "libllama.so"
    native.parent.mkdir(parents=True)
    native.touch()
    assert native == native_folder() / "libllama.so"
    assert find_library() == native
    monkeypatch.setenv(LIBRARY_VARIABLE, str(tmp_path / "tinydispatch"))
    with pytest.raises(LlamaLibraryError, match="no such file"):  # what is named goes before what lies there
        find_library()


def test_changing_the_variable_after_loading_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load_library()
    other = tmp_path / "libllama.so"
    other.touch()
    monkeypatch.setenv(LIBRARY_VARIABLE, str(other))
    with pytest.raises(LlamaLibraryError, match="is loaded already"):
        load_library()


def test_a_second_llama_cpp_in_the_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_loaded", None)
    monkeypatch.setitem(sys.modules, "llama_cpp", sys)
    with pytest.raises(LlamaLibraryError, match=r"'llama_cpp' has loaded its own llama\.cpp"):
        load_library()
