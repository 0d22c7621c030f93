"""How the native decoder is found, compiled, and done without."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from tinydispatch.native import library
from tinydispatch.native.library import (
    VARIANTS,
    NativeError,
    NativeLibrary,
    best_variant,
    compile_variant,
    cpu_features,
    file_name,
    find_native,
)

_AVX2 = "fpu avx2 fma f16c"
_AVX512 = f"{_AVX2} avx512f avx512bw avx512vl avx512dq avx512_vnni"
_PI_4 = "fp asimd evtstrm crc32 cpuid"
_PI_5 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
_HERE = best_variant(cpu_features())
_needs_compiler = pytest.mark.skipif(
    _HERE is None or not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no compiler, or nothing to compile for"
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "_loaded", {})
    monkeypatch.setenv("TINYDISPATCH_CACHE", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"flags\t\t: {_AVX512}", "avx512vnni"),
        (f"flags\t\t: {_AVX2}", "avx2"),
        (f"flags\t\t: {_AVX512.replace('avx512_vnni', '')}", "avx2"),
        ("flags\t\t: sse2 avx", None),
        (f"Features\t: {_PI_5}", "neon-dotprod"),
        (f"Features\t: {_PI_4}", "neon"),
        ("Features\t: half thumb fastmult vfp edsp neon vfpv3 vfpv4", None),  # 32 bits
    ],
)
def test_the_best_variant_that_a_processor_runs(tmp_path: Path, line: str, expected: str | None) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    name = line.split(":")[0]
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: One\n{line}\n\nprocessor\t: 1\n{name}:\n")
    found = best_variant(cpu_features(cpuinfo))
    assert (found.name if found else None) == expected
    assert best_variant(cpu_features(tmp_path / "missing")) is None


@_needs_compiler
def test_it_is_compiled_once_and_then_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _HERE is not None
    first = find_native()
    assert first is not None
    assert first.path == tmp_path / "native" / file_name(_HERE)
    assert [path.name for path in first.path.parent.iterdir()] == [file_name(_HERE)]
    monkeypatch.setattr(library, "_loaded", {})
    monkeypatch.setattr(library, "compile_variant", lambda *_: pytest.fail("compiled again"))
    again = find_native()
    assert again is not None
    assert again.path == first.path


def test_another_source_is_another_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = {file_name(variant) for variant in VARIANTS}
    assert len(names) == len(VARIANTS)
    folder = shutil.copytree(Path(library.__file__).parent, tmp_path / "native")
    with (folder / "simd.h").open("a") as stream:
        stream.write("\n")
    monkeypatch.setattr(library, "_FOLDER", folder)
    assert names.isdisjoint(file_name(variant) for variant in VARIANTS)


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [(None, "no C compiler"), ("false", "false failed with 1"), ("/nowhere/cc", "cannot compile")],
)
@pytest.mark.skipif(_HERE is None, reason="nothing to compile for")
def test_without_a_working_compiler_llama_cpp_computes_and_the_log_says_why_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compiler: str | None, reason: str
) -> None:
    if compiler is None:
        monkeypatch.setattr(shutil, "which", lambda _: None)
    else:
        monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.WARNING, "tinydispatch.native"):
        assert (find_native(), find_native()) == (None, None)
    assert len(caplog.records) == 1
    assert reason in caplog.text


@_needs_compiler
def test_what_does_not_compile_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _HERE is not None
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "decoder.c").write_text("int main(\n")
    monkeypatch.setattr(library, "_FOLDER", folder)
    target = tmp_path / "out" / "decoder.so"
    with pytest.raises(NativeError, match=r"(?s)failed with 1: .*error"):
        compile_variant(_HERE, target)
    assert not list(target.parent.iterdir())


@_needs_compiler
def test_a_packaged_library_that_does_not_load_here_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _HERE is not None
    folder = shutil.copytree(Path(library.__file__).parent, tmp_path / "package", ignore=shutil.ignore_patterns("*.so"))
    (folder / file_name(_HERE)).write_bytes(b"of a newer system")
    monkeypatch.setattr(library, "_FOLDER", folder)
    found = find_native()
    assert found is not None
    assert found.path.parent == tmp_path / "native"


@_needs_compiler
@pytest.mark.parametrize("place", ["file", "folder"])
def test_code_that_others_may_have_written_is_not_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    assert _HERE is not None
    found = find_native()
    assert found is not None
    (found.path if place == "file" else found.path.parent).chmod(0o777)
    monkeypatch.setattr(library, "_loaded", {})
    assert find_native() is None
    assert "belongs to another user, or all may write to it" in caplog.text


@_needs_compiler
def test_a_library_of_another_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _HERE is not None
    good = find_native()
    assert good is not None
    with pytest.raises(NativeError, match="cannot be loaded"):
        NativeLibrary(Path(__file__), _HERE)
    monkeypatch.setattr(library.bindings, "Layer", library.bindings.Matrix)
    with pytest.raises(NativeError, match="of other sizes"):
        NativeLibrary(good.path, _HERE)


def test_a_variant_can_be_asked_for_by_name() -> None:
    features = frozenset(_AVX512.split())
    found = [best_variant(features, name) for name in ("", "avx512vnni", "avx2", "neon", "abacus")]
    assert [variant.name if variant else None for variant in found] == ["avx512vnni", "avx512vnni", "avx2", None, None]


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "off")
    monkeypatch.setattr(library, "compile_variant", lambda *_: pytest.fail("compiled all the same"))
    assert find_native() is None
