"""Keeps a running server on the registry's champion: looks, verifies, asks, and only then swaps.

Nothing of a new model is in service before its file has the hash that its card states and it has answered its
self-test. What fails is logged once and left alone until it changes; the model in service goes on.

    serving = open_champion(registry, load)                    # at the start
    holder = ModelHolder(serving)
    with RegistryWatcher(registry, load, holder):
        run_server(holder, …)

While a swap is under way both models are in memory.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from tinydispatch.bundled import bundled_tools
from tinydispatch.dispatcher import Dispatcher
from tinydispatch.folders import stamp
from tinydispatch.registry import (
    RegisteredModel,
    RegistryError,
    SelfTest,
    check_answers,
    read_champion,
    read_fallback,
    verify_file,
)
from tinydispatch.server.holder import ModelHolder, Serving, StoppingError
from tinydispatch.server.logs import log

Load = Callable[[Path], Dispatcher]


class Look(StrEnum):
    """What one look at the registry led to."""

    UNCHANGED = "unchanged"
    SWAPPED = "swapped"
    REJECTED = "rejected"


def open_champion(registry: Path, load: Load) -> Serving:
    """The champion, verified and asked; the model that was champion before it where it fails.

    Raises:
        RegistryError: there is no champion, or neither of the two can serve.
    """
    champion = read_champion(registry)
    if champion is None:
        raise RegistryError(f"{registry}: no champion yet; run scripts.retrain, or bring one in with 'adopt'")
    try:
        return Serving(open_verified(champion, load), champion.id)
    except RegistryError as error:
        fallback = read_fallback(registry)
        if fallback is None or fallback.id == champion.id:
            raise
        log("champion rejected", logging.ERROR, id=champion.id, reason=str(error), instead=fallback.id)
        return Serving(open_verified(fallback, load), fallback.id)


def open_verified(model: RegisteredModel, load: Load) -> Dispatcher:
    """A loaded model that is what its card says.

    Raises:
        RegistryError: its file does not verify, cannot be loaded, or does not answer its self-test.
    """
    before = stamp(model.path)
    verify_file(model)
    try:
        dispatcher = load(model.path)
    except Exception as error:
        raise RegistryError(f"{model.path}: cannot be loaded: {_reason(error)}") from error
    try:
        check_answers(model, lambda test: _answer(dispatcher, test))
        if stamp(model.path) != before:
            raise RegistryError(f"{model.path}: was changed while it was loaded; replace a file, never write into it")
    except RegistryError:
        dispatcher.close()
        raise
    except Exception as error:
        dispatcher.close()
        raise RegistryError(f"{model.path}: does not answer its self-test: {_reason(error)}") from error
    except BaseException:
        dispatcher.close()
        raise
    return dispatcher


def _reason(error: Exception) -> str:
    is_told = isinstance(error, (ValueError, RuntimeError, OSError)) and str(error)
    return str(error) if is_told else f"{type(error).__name__}: {error}"


class RegistryWatcher:
    """Looks every `interval_s` seconds in a thread of its own; a context manager.

    Args:
        load: opens a file with the server's own settings.
        holder: what serves; its `Serving.id` is the registry's id of the model.
    """

    def __init__(self, registry: Path, load: Load, holder: ModelHolder, *, interval_s: float = 2.0) -> None:
        self._registry, self._load, self._holder, self._interval_s = registry, load, holder, interval_s
        self._rejected: tuple[object, ...] = ()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="registry", daemon=True)

    def look(self) -> Look:
        """Take up a new champion, if there is one that can serve."""
        try:
            champion = read_champion(self._registry)
        except RegistryError as error:
            return self._reject((str(error),), "", error)
        if champion is None or champion.id == self._holder.serving.id:
            return Look.UNCHANGED
        mark = (champion.id, champion.sha256, stamp(champion.path))
        if mark == self._rejected:
            return Look.UNCHANGED
        try:
            dispatcher = open_verified(champion, self._load)
        except RegistryError as error:
            return self._reject(mark, champion.id, error)
        before = self._holder.serving.id
        try:
            self._holder.swap(Serving(dispatcher, champion.id))
        except StoppingError:
            dispatcher.close()
            return Look.UNCHANGED
        log("champion taken up", id=champion.id, before=before)
        return Look.SWAPPED

    def close(self) -> None:
        """Look no more; a swap that is under way is finished first."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _reject(self, mark: tuple[object, ...], model_id: str, error: RegistryError) -> Look:
        if mark == self._rejected:
            return Look.UNCHANGED
        self._rejected = mark
        in_service = self._holder.serving.id
        log("champion rejected", logging.ERROR, id=model_id, reason=str(error), in_service=in_service)
        return Look.REJECTED

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 (a watcher that died would leave the server on this model for good)
                log("looking for a champion failed", logging.ERROR, exception=error)


def _answer(dispatcher: Dispatcher, test: SelfTest) -> tuple[bool, int]:
    found = dispatcher.dispatch(test.text, tools=bundled_tools() if test.tools is None else test.tools)
    return found.is_usable, len(found.calls)
