"""Compiles the native decoder for a wheel. `hatch_build.py` calls it, with no dependency installed."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from tinydispatch.native.library import VARIABLE, VARIANTS, NativeError, Variant, compile_variant, file_name

FOLDER = "tinydispatch/native"
# machine → the feature that every variant for it asks for
_FEATURES = {"x86_64": "avx2", "aarch64": "asimd"}


@dataclass(frozen=True)
class PlatformWheel:
    """The wheel's tag, and its libraries: where each was compiled → its path in the wheel."""

    tag: str
    libraries: dict[str, str]


@dataclass(frozen=True)
class PureWheel:
    """A wheel for every machine, without libraries."""

    reason: str


def compile_for_wheel(scratch: Path) -> PlatformWheel | PureWheel:
    """Compile every variant of this machine into `scratch`: all of them, or the wheel stays pure."""
    if os.environ.get(VARIABLE) == "off":
        return PureWheel(f"{VARIABLE}=off")
    machine = machine_here()
    variants = variants_for(machine)
    if not variants:
        return PureWheel(f"no variant for {sys.platform} {machine}")
    libraries = {}
    try:
        for variant in variants:
            target = scratch / file_name(variant)
            compile_variant(variant, target)
            libraries[str(target)] = f"{FOLDER}/{target.name}"
    except NativeError as error:
        return PureWheel(" ".join(str(error).split()))
    return PlatformWheel(f"py3-none-linux_{machine}", libraries)


def machine_here() -> str:
    """`platform.machine()`'s name; another one where Linux or a 64-bit Python is missing, so that no variant fits."""
    machine = platform.machine()
    if sys.platform != "linux":
        return f"{machine} without Linux"
    return machine if sys.maxsize > 2**32 else f"{machine} with a 32-bit Python"


def variants_for(machine: str) -> tuple[Variant, ...]:
    """The variants that this kind of machine may run; none where it is not known."""
    return tuple(variant for variant in VARIANTS if _FEATURES.get(machine) in variant.features)
