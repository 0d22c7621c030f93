"""Any OpenAI-compatible server (llama-server, vLLM, Ollama, a cloud model): concurrent, patient, and resumable."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from eval.backends.base import BackendError, ClosesOnExit, Failure, Generation, Request
from eval.backends.chat_api import ChatApi, GarbageError
from eval.backends.completions_api import CompletionsApi
from eval.config import EvalConfig

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_HOPELESS = {401: "the key is refused", 403: "access is refused", 404: "there is no such model or address"}
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
# So many requests in a row without a connection, and the server counts as dead: the rest fails at once.
_DEAD_AFTER = 3


class EndpointBackend(ClosesOnExit):
    """Sends each request to a server; one that stays without an answer is a failure, the others go on.

    Args:
        sleep: waits between attempts; a test passes its own.
    """

    def __init__(
        self, url: str, model: str, config: EvalConfig, *, key: str = "", sleep: Callable[[float], None] = time.sleep
    ) -> None:
        # Several rounds of requests at a time, so that a slow one does not keep the other connections idle.
        self.batch_size = 4 * config.endpoint_concurrency
        self._config, self._sleep = config, sleep
        self._cache = Path(config.endpoint_cache) if config.endpoint_cache is not None else None
        is_local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
        self._client = httpx.Client(
            timeout=httpx.Timeout(config.endpoint_timeout_s, connect=min(10.0, config.endpoint_timeout_s)),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=config.endpoint_concurrency),
            trust_env=not is_local,  # a proxy of the environment does not lead to this machine
        )
        # A rendered prompt needs the server's template, which is asked for once.
        is_chat = config.endpoint_api == "chat"
        self._api = ChatApi(model, config) if is_chat else CompletionsApi.ask(url, model, config, self._client)
        self._url = f"{url.rstrip('/')}{self._api.path}"
        self._pool = ThreadPoolExecutor(config.endpoint_concurrency)
        self._lock = threading.Lock()
        self._unreachable = 0
        self._given_up = ""

    @classmethod
    def load(cls, address: str, config: EvalConfig) -> Self:
        """`address` is "http://host:port/v1#model"; the key comes from OPENAI_API_KEY.

        Raises:
            BackendError: the address is not of this form, or the server does not tell its chat template.
        """
        url, _, model = address.partition("#")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BackendError(f"'{address}': expected http://host:port/v1#model")
        if parts.username or parts.password:
            raise BackendError(f"'{parts.hostname}': no key in an address; put it into OPENAI_API_KEY")
        return cls(url, model or "default", config, key=os.environ.get("OPENAI_API_KEY", ""))

    def generate(self, requests: Sequence[Request]) -> list[Generation | Failure]:
        """One reply or failure per request; at most `eval.endpoint_concurrency` at the same time."""
        return list(self._pool.map(self._reply, requests))

    def _reply(self, request: Request) -> Generation | Failure:
        try:
            body = self._api.body(request)
        except ValueError as error:
            return Failure(str(error))
        path = self._cache_path(body)
        if path is not None and (cached := self._read_cached(path)):
            return cached
        failure = Failure("not asked")
        for attempt in range(self._config.endpoint_retries + 1):
            if self._given_up:
                return Failure(self._given_up)
            started = time.perf_counter()
            found, wait_s = self._attempt(body)
            if isinstance(found, dict):
                latency_s = time.perf_counter() - started
                if path is not None:
                    _write_cached(path, body, found, latency_s)
                return self._api.generation(found, latency_s)
            failure = found
            if wait_s is None:
                break
            if attempt < self._config.endpoint_retries:
                self._sleep(min(max(wait_s, _FIRST_WAIT_S * 2**attempt), _LONGEST_WAIT_S))
        return failure

    def _attempt(self, body: dict[str, Any]) -> tuple[dict[str, Any] | Failure, float | None]:
        """The server's answer; or why there is none, with the seconds it asked to be left alone, None for good."""
        try:
            response = self._client.post(self._url, json=body)
        except httpx.TimeoutException:
            return Failure(f"no answer within {self._config.endpoint_timeout_s:g} s"), 0.0
        except httpx.ConnectError as error:
            return self._no_connection(error), 0.0
        except httpx.HTTPError as error:
            return Failure(f"the connection broke: {type(error).__name__}: {error}"), 0.0
        with self._lock:
            self._unreachable = 0
        status = response.status_code
        if status in _HOPELESS:
            self._given_up = f"HTTP {status}, {_HOPELESS[status]}: {response.text[:200]!r}"
            return Failure(self._given_up), None
        if status != 200:
            failure = Failure(f"HTTP {status}: {response.text[:200]!r}")
            return failure, _retry_after_s(response) if status in _RETRIED else None
        try:
            value = response.json()
            self._api.generation(value, 0.0)
        except (ValueError, GarbageError) as error:
            return Failure(f"not a completion: {error}: {response.text[:100]!r}"), 0.0
        assert isinstance(value, dict), "a completion is an object"
        return value, 0.0

    def _no_connection(self, error: httpx.ConnectError) -> Failure:
        with self._lock:
            self._unreachable += 1
            if self._unreachable >= _DEAD_AFTER:
                self._given_up = f"no connection to {self._url} ({error}), {_DEAD_AFTER} times in a row"
        return Failure(f"no connection to {self._url}: {error}")

    def _cache_path(self, body: dict[str, Any]) -> Path | None:
        if self._cache is None:
            return None
        text = json.dumps([self._url, body], sort_keys=True, ensure_ascii=True)
        return self._cache / f"{hashlib.sha256(text.encode()).hexdigest()}.json"

    def _read_cached(self, path: Path) -> Generation | None:
        """None for what is not there or not readable: it is asked for again."""
        try:
            value = json.loads(path.read_text("utf-8"))
            return self._api.generation(value["response"], float(value["latency_s"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def close(self) -> None:
        """Drop the connections."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0  # a date: the usual back-off will do


def _write_cached(path: Path, body: dict[str, Any], response: dict[str, Any], latency_s: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{threading.get_ident()}.part")
    part.write_text(json.dumps({"request": body, "response": response, "latency_s": round(latency_s, 4)}), "utf-8")
    part.replace(path)
