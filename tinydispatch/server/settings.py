"""What a server is told when it starts: where it listens, who may ask, and how much."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from tinydispatch.dispatcher import DEFAULT_MAX_NEW_TOKENS
from tinydispatch.server.keys import KEYS_VARIABLE, ApiKeys, SettingsError
from tinydispatch.tools import Tool


@dataclass(frozen=True)
class Limits:
    """What one request may cost.

    `max_tools` is the OpenAI API's own limit. `max_new_tokens` caps what a request asks for: a longer reply is cut and
    says so. `request_timeout_s` runs from the last byte of the request, waiting included; `body_timeout_s` is how long
    those bytes may take, `header_timeout_s` how long a connection may take to say what it wants. `max_waiting` requests
    wait while one is computed; the next is answered 429. Of more than `max_connections` connections, the one that has
    been idle longest is closed.
    """

    max_body_bytes: int = 1 << 20
    max_tools: int = 128
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    max_waiting: int = 64
    request_timeout_s: float = 60.0
    body_timeout_s: float = 10.0
    header_timeout_s: float = 10.0
    max_connections: int = 512
    max_header_bytes: int = 16 << 10

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise SettingsError(f"{name}={value}: must be more than 0")


@dataclass(frozen=True)
class ServerSettings:
    """Everything but the model itself.

    `model_name` is what clients ask for. `tools` are offered to requests that bring none, None for none.
    `allows_anybody` lets a server without keys listen beyond this machine. `is_strict` refuses parameters that the
    server does not know, which it otherwise ignores with a warning. `cors_origins` are the web pages' origins whose
    scripts may read answers, `*` for any. `has_ui` serves the page of `/ui`.

    Raises:
        SettingsError: the server, or the page's way into the log, would be open to the network without a key.
    """

    model_name: str
    host: str = "127.0.0.1"
    port: int = 8080
    keys: ApiKeys = field(default_factory=ApiKeys)
    limits: Limits = field(default_factory=Limits)
    tools: tuple[Tool, ...] | None = None
    allows_anybody: bool = False
    is_strict: bool = False
    cors_origins: tuple[str, ...] = ()
    has_ui: bool = False

    def __post_init__(self) -> None:
        if self.has_ui and not self.keys and not is_loopback(self.host):
            raise SettingsError(
                f"--ui lets whoever reaches host {self.host} write into the dispatch log: give --keys-file or "
                f"${KEYS_VARIABLE}, or listen on 127.0.0.1"
            )
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
