"""Finds the compiled decoder for this processor: in the package, in the user's cache, or compiled now."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import stat
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinydispatch.folders import cache_folder
from tinydispatch.native import bindings

VARIABLE = "TINYDISPATCH_NATIVE"
_OFF = "off"
_FOLDER = Path(__file__).parent
_SOURCES = (
    *("decoder.c", "decoder.h", "simd.h", "simd_x86.h", "simd_neon.h"),
    *("pack.h", "product.h", "attention.h", "layers.h", "threads.h"),
)
_FLAGS = ("-std=gnu11", "-O3", "-shared", "-fPIC", "-pthread")
_COMPILERS = ("cc", "gcc", "clang")
_COMPILE_SECONDS = 120

logger = logging.getLogger("tinydispatch.native")


@dataclass(frozen=True)
class Variant:
    """One kind of processor: what it must have, as Linux names it, and how a compiler is told."""

    name: str
    features: frozenset[str]
    flags: tuple[str, ...]


_AVX2 = Variant("avx2", frozenset({"avx2", "fma", "f16c"}), ("-mavx2", "-mfma", "-mf16c"))
_AVX512 = Variant(
    "avx512vnni",
    _AVX2.features | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
    (*_AVX2.flags, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
)
_NEON = Variant("neon", frozenset({"asimd"}), ("-march=armv8-a", "-mtune=cortex-a72"))
_NEON_DOT = Variant("neon-dotprod", _NEON.features | {"asimddp"}, ("-march=armv8.2-a+dotprod", "-mtune=cortex-a76"))
# The best first. No processor has features of both kinds.
VARIANTS = (_AVX512, _AVX2, _NEON_DOT, _NEON)


class NativeError(RuntimeError):
    """The decoder cannot be compiled, or is another one than this package's."""


class NativeLibrary:
    """The loaded decoder; its functions are attributes of `c` with their signatures set.

    Raises:
        NativeError: it cannot be loaded, or lays out its structs otherwise.
    """

    def __init__(self, path: Path, variant: Variant) -> None:
        self.path, self.variant = path, variant
        try:
            self.c: Any = ctypes.CDLL(str(path))
            for name, (result, arguments) in bindings.SIGNATURES.items():
                function = getattr(self.c, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise NativeError(f"{path}: cannot be loaded: {error}") from error
        formats = [number for format_ in bindings.FORMATS.values() for number in format_]
        expected = [ctypes.sizeof(bindings.Decoder), ctypes.sizeof(bindings.Layer), *formats]
        sizes = (ctypes.c_int64 * len(expected))()
        self.c.tinydispatch_sizes(sizes)
        if sizes[:] != expected:
            raise NativeError(f"{path}: structs and formats of other sizes: {sizes[:]} instead of {expected}")


_lock = threading.Lock()
_loaded: dict[str, NativeLibrary | None] = {}


def find_native() -> NativeLibrary | None:
    """The decoder for this processor; None where there is none, or `TINYDISPATCH_NATIVE=off` says so.

    The variable may also name a variant, for comparing it with the best one; None where this processor cannot run it.
    The first call on a machine without a packaged one compiles it, which takes some seconds; why there is none is
    logged once.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == _OFF:
        return None
    variant = best_variant(cpu_features(), wanted)
    if variant is None:
        return None
    with _lock:
        if variant.name not in _loaded:
            try:
                _loaded[variant.name] = _open(variant)
            except NativeError as error:
                logger.warning("llama.cpp computes instead of the native decoder: %s", error)
                _loaded[variant.name] = None
        return _loaded[variant.name]


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What Linux says of the first processor; nothing where it says nothing."""
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:  # on a large machine the file takes long to read to its end
                name, _, value = line.partition(":")
                if name.strip() in ("flags", "Features"):  # x86 and ARM
                    return frozenset(value.split())
    except OSError:
        pass
    return frozenset()


def best_variant(features: frozenset[str], wanted: str = "") -> Variant | None:
    """The fastest variant that a processor with these features runs, or, if it does, the one of that name."""
    runs = (variant for variant in VARIANTS if variant.features <= features)
    return next((variant for variant in runs if wanted in ("", variant.name)), None)


def compile_variant(variant: Variant, target: Path) -> None:
    """Compile the decoder into `target`, which appears whole or not at all.

    Raises:
        NativeError: there is no C compiler, or it failed; the message holds what it said.
    """
    compiler = os.environ.get("CC") or next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise NativeError(f"no C compiler ({', '.join(_COMPILERS)}); install one, for example gcc")
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            built = Path(scratch, target.name)
            command = [*compiler.split(), *_FLAGS, *variant.flags, str(_FOLDER / _SOURCES[0]), "-o", str(built), "-lm"]
            logger.info("compiling the native decoder: %s", " ".join(command))
            done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False)
            if done.returncode:
                raise NativeError(f"{compiler} failed with {done.returncode}: {done.stderr.strip()[-1000:]}")
            built.replace(target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeError(f"cannot compile into {target.parent}: {error}") from error


def file_name(variant: Variant) -> str:
    """What a variant's library is called; a change of its sources or flags changes the name."""
    digest = hashlib.blake2b(" ".join((*_FLAGS, *variant.flags)).encode(), digest_size=6)
    for name in _SOURCES:
        digest.update((_FOLDER / name).read_bytes())
    return f"decoder-{variant.name}-{digest.hexdigest()}.so"


def _open(variant: Variant) -> NativeLibrary:
    name = file_name(variant)
    if (packaged := _FOLDER / name).is_file():
        try:
            return NativeLibrary(packaged, variant)
        except NativeError as error:  # built for a newer system, say
            logger.info("compiling the native decoder anew: %s", error)
    try:
        cached = cache_folder() / "native" / name
    except ValueError as error:
        raise NativeError(str(error)) from error
    if not cached.is_file():
        compile_variant(variant, cached)
    for path in (cached.parent, cached):
        _require_own(path)
    return NativeLibrary(cached, variant)


def _require_own(path: Path) -> None:
    """Code is run only where nobody else can have put it."""
    status = path.stat()
    if status.st_uid not in (0, os.getuid()) or status.st_mode & stat.S_IWOTH:
        raise NativeError(
            f"{path}: belongs to another user, or all may write to it; remove it or set TINYDISPATCH_CACHE"
        )
