"""A server's model follows the registry under load: no request is lost, and nothing that fails is ever served."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from retraining.ledger import Ledger, SwitchKind
from retraining.registry import install, switch
from tests.fixtures_playback import QUESTION, TODAY, WEATHER, PlaybackRuntime
from tinydispatch.dispatcher import Dispatcher
from tinydispatch.formats import render_calls
from tinydispatch.registry import RegistryError, SelfTest, read_champion
from tinydispatch.server.holder import ModelHolder, Serving
from tinydispatch.server.registry_watch import Look, RegistryWatcher, open_champion
from tinydispatch.tools import ToolCall

PLACES = ("Oslo", "Bergen")


class Registry:
    """A registry whose "models" are files that name the place they always answer."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ledger, self.made = folder, Ledger(folder / "ledger.sqlite"), 0
        self.loaded: list[str] = []

    def promote(self, content: str) -> str:
        self.made += 1
        source = self.folder / "made.gguf"
        source.write_text(content)
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        test = SelfTest(QUESTION, tools=(WEATHER,), must_call=True)
        name = f"run{self.made}"
        model = install(self.folder, source, sha256=digest, run_id=None, self_test=test, details={"name": name})
        number = switch(self.folder, self.ledger, SwitchKind.ADOPT, model)
        self.ledger.settle_switch(number, took_place=True)
        return model.id

    def load(self, path: Path) -> Dispatcher:
        content = path.read_text()
        self.loaded.append(content)
        if content == "unloadable":
            raise ValueError("no GGUF file")
        call = ToolCall("get_weather", {"location": content})
        reply = "I would rather not." if content == "mute" else render_calls([call])
        return Dispatcher(PlaybackRuntime(reply), [WEATHER], TODAY)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


@pytest.fixture
def holder(registry: Registry) -> Iterator[ModelHolder]:
    registry.promote("Oslo")
    held = ModelHolder(open_champion(registry.folder, registry.load), max_waiting=100_000)
    yield held
    held.close()


def ask(holder: ModelHolder) -> Future[tuple[str, str]]:
    """The id of the model that answers, and the place in its call."""

    def work(serving: Serving) -> tuple[str, str]:
        (call,) = serving.dispatcher.dispatch(QUESTION).calls
        return serving.id, str(call.arguments["location"])

    return holder.submit(work)


@pytest.mark.parametrize("swaps", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_swaps_under_load_lose_no_request(swaps: int, registry: Registry, holder: ModelHolder) -> None:
    place_of = {holder.serving.id: "Oslo"}
    watcher = RegistryWatcher(registry.folder, registry.load, holder)
    stop = threading.Event()
    futures: list[Future[tuple[str, str]]] = []

    def load() -> None:
        while not stop.is_set():
            future = ask(holder)
            futures.append(future)
            future.exception(timeout=30)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(swaps):
        place = f"{PLACES[number % 2]} {number}"
        place_of[registry.promote(place)] = place
        assert watcher.look() is Look.SWAPPED
        assert ask(holder).result(30)[1] == place
    stop.set()
    for thread in threads:
        thread.join()
    assert len(futures) >= swaps
    assert [future.exception() for future in futures if future.exception() is not None] == []
    assert all(place_of[model] == place for model, place in (future.result() for future in futures))


@pytest.mark.parametrize("failure", ["corrupt", "short", "gone", "unloadable", "mute", "no card"])
def test_a_challenger_that_fails_is_never_served(failure: str, registry: Registry, holder: ModelHolder) -> None:
    before = holder.serving.id
    watcher = RegistryWatcher(registry.folder, registry.load, holder)
    registry.promote(failure if failure in ("unloadable", "mute") else "Bergen")
    champion = read_champion(registry.folder)
    assert champion is not None
    match failure:
        case "corrupt":
            champion.path.write_text("BERGEN")
        case "short":
            champion.path.write_text("Ber")
        case "gone":
            champion.path.unlink()
        case "no card":
            (champion.folder / "model.json").write_text("{}")
    assert watcher.look() is Look.REJECTED
    assert watcher.look() is Look.UNCHANGED, "once is enough, until something changes"
    assert ask(holder).result(30) == (before, "Oslo")
    if failure in ("corrupt", "short", "gone"):
        assert "BERGEN" not in registry.loaded
        champion.path.write_text("Bergen")
        assert watcher.look() is Look.SWAPPED, "what was mended is taken up"


def test_a_server_that_starts_on_a_damaged_champion_takes_the_one_before(registry: Registry) -> None:
    first = registry.promote("Oslo")
    registry.promote("Bergen")
    (registry.folder / "champion" / "model.gguf").write_text("BERGEN")
    serving = open_champion(registry.folder, registry.load)
    assert serving.id == first
    serving.dispatcher.close()
    (registry.folder / "fallback" / "model.gguf").write_text("OSLO")
    with pytest.raises(RegistryError, match="SHA-256"):
        open_champion(registry.folder, registry.load)


def test_a_registry_without_a_champion_says_how_to_get_one(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="no champion yet"):
        open_champion(registry.folder, registry.load)


def test_the_watcher_looks_by_itself_until_it_is_closed(registry: Registry, holder: ModelHolder) -> None:
    with RegistryWatcher(registry.folder, registry.load, holder, interval_s=0.01):
        new = registry.promote("Bergen")
        for _ in range(1000):
            if ask(holder).result(30)[0] == new:
                break
        assert ask(holder).result(30) == (new, "Bergen")
    later = registry.promote("Graz")
    assert json.loads((registry.folder / "champion" / "model.json").read_text())["details"]["name"] == "run3"
    assert holder.serving.id == new != later
