"""How the commands hand memory back: what a Raspberry Pi lacks is memory, not system calls."""

from __future__ import annotations

import ctypes
import os
import sys

_M_MMAP_THRESHOLD = -3
_BYTES = 256 << 10
_VARIABLE = "MALLOC_MMAP_THRESHOLD_"


def give_back_freed_memory() -> bool:
    """Have glibc give pieces from 256 kB on back to the system when they are freed; True where that was possible.

    Left alone it raises that size to 32 MB as such pieces are freed, and keeps what a computation's intermediate
    results have taken: 15 MB after the prompts of OPT-350M's whole context. What the environment says goes first.
    """
    if not sys.platform.startswith("linux") or _VARIABLE in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _BYTES))
