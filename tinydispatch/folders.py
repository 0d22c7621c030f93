"""Where the package keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$TINYDISPATCH_CACHE`, or `tinydispatch` in the user's cache directory.

    Raises:
        ValueError: the user has no home directory, and nothing names another place.
    """
    if named := os.environ.get("TINYDISPATCH_CACHE"):
        return Path(named)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "tinydispatch"
    try:
        return Path.home() / ".cache" / "tinydispatch"
    except RuntimeError as error:
        raise ValueError(f"no folder for the cache: {error}; set TINYDISPATCH_CACHE") from error
