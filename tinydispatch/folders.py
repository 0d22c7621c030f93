"""Where the package keeps what it can make again, and how a line is appended whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def owner_only(folder: Path) -> Iterator[None]:
    """What this process and those that it starts make meanwhile is for its owner alone, and so is the folder.

    For what is derived from a log: it is as private as the log.
    """
    mask = os.umask(0o077)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        yield
    finally:
        os.umask(mask)


def append_whole(descriptor: int, data: bytes) -> None:
    """Append all of `data` to a file, or leave it as it was: a disk that fills up takes a part and then no more.

    Raises:
        OSError: it could not be written.
    """
    start, n_written = os.fstat(descriptor).st_size, 0
    try:
        while n_written < len(data):
            n_written += os.write(descriptor, data[n_written:])
    except OSError:
        # Unless another process has written behind it.
        if n_written and os.fstat(descriptor).st_size == start + n_written:
            os.ftruncate(descriptor, start)
        raise


def stamp(path: Path | int) -> tuple[int, ...]:
    """Tells whether a file is still the one that it was: device, inode, size and time of change; () for none."""
    try:
        found = os.stat(path)  # noqa: PTH116 (of an open file, too)
    except FileNotFoundError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
