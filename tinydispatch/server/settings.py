"""What a server is told when it starts: where it listens, who may ask, and how much."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tinydispatch.dispatcher import DEFAULT_MAX_NEW_TOKENS
from tinydispatch.tools import Tool

KEYS_VARIABLE = "TINYDISPATCH_API_KEYS"
_MIN_KEY_CHARS = 16


class SettingsError(ValueError):
    """A server that must not start as it was told to; the message says what to change."""


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    `max_tools` is the OpenAI API's own limit. `max_new_tokens` caps what a request asks for: a longer reply is cut and
    says so. `request_timeout_s` runs from the last byte of the request, waiting included; `body_timeout_s` is how long
    those bytes may take. `max_waiting` requests wait while one is computed; the next is answered 429.
    """

    max_body_bytes: int = 1 << 20
    max_tools: int = 128
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    max_waiting: int = 64
    request_timeout_s: float = 60.0
    body_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise SettingsError(f"{name}={value}: must be more than 0")


class ApiKeys:
    """Keys that open the server; their hashes alone are kept. Empty: anybody may ask.

    Raises:
        SettingsError: a key is too short to be one.
    """

    def __init__(self, keys: tuple[str, ...] = ()) -> None:
        if any(len(key) < _MIN_KEY_CHARS for key in keys):
            raise SettingsError(
                f"an API key has fewer than {_MIN_KEY_CHARS} characters; make one with: openssl rand -hex 24"
            )
        self._digests = tuple(_digest(key) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accepts(self, key: str) -> bool:
        """Whether it is one of them; takes as long for a wrong key as for a right one."""
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def load_keys(path: Path | None, environment: Mapping[str, str] = os.environ) -> ApiKeys:
    """Keys from a file, one a line, `#` for comments, and from `TINYDISPATCH_API_KEYS`, separated by commas.

    Raises:
        SettingsError: the file cannot be read, holds no key, or others than its owner may read it.
    """
    keys = [key.strip() for key in environment.get(KEYS_VARIABLE, "").split(",")]
    if path is not None:
        try:
            lines = path.read_text("utf-8").splitlines()
            if path.stat().st_mode & 0o077:
                raise SettingsError(f"{path}: others than its owner may read the keys; run: chmod 600 {path}")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: the keys cannot be read: {error}") from error
        found = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        if not found:
            raise SettingsError(f"{path}: holds no key; give one a line")
        keys += found
    return ApiKeys(tuple(key for key in keys if key))


@dataclass(frozen=True)
class ServerSettings:
    """Everything but the model itself.

    `model_name` is what clients ask for. `tools` are offered to requests that bring none, None for none.
    `allows_anybody` lets a server without keys listen beyond this machine.

    Raises:
        SettingsError: the server would be open to the network without a key.
    """

    model_name: str
    host: str = "127.0.0.1"
    port: int = 8080
    keys: ApiKeys = field(default_factory=ApiKeys)
    limits: Limits = field(default_factory=Limits)
    tools: tuple[Tool, ...] | None = None
    allows_anybody: bool = False

    def __post_init__(self) -> None:
        if not self.keys and not is_loopback(self.host) and not self.allows_anybody:
            raise SettingsError(
                f"host {self.host} can be reached from other machines, and there is no API key: give --keys-file or "
                f"${KEYS_VARIABLE}, or listen on 127.0.0.1, or say --allow-anybody"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it; names other than localhost do not count, since they may lead anywhere."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
