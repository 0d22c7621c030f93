"""API keys: where they come from, how they are compared, and how they are changed while the server runs."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinydispatch.server.logs import log

KEYS_VARIABLE = "TINYDISPATCH_API_KEYS"
# What fits a header without being encoded.
_KEY = re.compile(r"[!-~]{16,}")


class SettingsError(ValueError):
    """A server that must not start as it was told to; the message says what to change."""


class ApiKeys:
    """Keys that open the server; their hashes alone are kept. Empty: anybody may ask.

    Raises:
        SettingsError: a key is too short to be one, or has a space or another character that no header carries.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._digests = _digests(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accepts(self, key: str) -> bool:
        """Whether it is one of them; takes as long for a wrong key as for a right one."""
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


class KeysFile(ApiKeys):
    """The keys of a file, which is read again when it has changed, and others that stay.

    A changed file that cannot be used is reported, and the keys that it held before go on counting.

    Raises:
        SettingsError: the file cannot be used.
    """

    def __init__(self, path: Path, others: Sequence[str] = ()) -> None:
        self._path, self._others = path, tuple(others)
        self._lock = threading.Lock()
        self._state = self._stat()
        super().__init__((*self._others, *_read(path)))

    def accepts(self, key: str) -> bool:
        """Whether the file holds it now, or it is one of the others."""
        self._refresh()
        return super().accepts(key)

    def _refresh(self) -> None:
        with self._lock:
            if (state := self._stat()) == self._state:
                return
            self._state = state
            try:
                self._digests = _digests((*self._others, *_read(self._path)))
            except SettingsError as error:
                log("keys unchanged", logging.ERROR, reason=str(error))
            else:
                log("keys changed", number=len(self._digests))

    def _stat(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        # The inode too: a file that is put in another's place may be as long and as old.
        return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode


def owner_of(key: str) -> str:
    """What tells the requests of one key from those of another, and is not the key."""
    return hashlib.sha256(b"owner of " + key.encode("utf-8", "surrogatepass")).hexdigest()[:32] if key else ""


def load_keys(path: Path | None, environment: Mapping[str, str] = os.environ) -> ApiKeys:
    """Keys from a file, one a line, `#` for comments, and from `TINYDISPATCH_API_KEYS`, separated by commas.

    Raises:
        SettingsError: the file cannot be read, holds no key, or others than its owner may read it.
    """
    keys = [key.strip() for key in environment.get(KEYS_VARIABLE, "").split(",") if key.strip()]
    return KeysFile(path, keys) if path is not None else ApiKeys(keys)


def _read(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as stream:
            # Of the file that is open: another may take its place between two looks at its name.
            if os.fstat(stream.fileno()).st_mode & 0o077:
                raise SettingsError(f"{path}: others than its owner may read the keys; run: chmod 600 {path}")
            lines = [line.strip() for line in stream]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise SettingsError(f"{path}: the keys cannot be read: {reason}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise SettingsError(f"{path}: holds no key; give one a line")
    try:
        _digests(keys)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    return keys


def _digests(keys: Sequence[str]) -> tuple[bytes, ...]:
    if not all(map(_KEY.fullmatch, keys)):
        raise SettingsError(
            "an API key has fewer than 16 characters, or others than ASCII letters, digits and signs; make one with: "
            "openssl rand -hex 24"
        )
    return tuple(map(_digest, keys))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
