"""A model that cannot be had is named at once, with what to do."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi

from training import hub
from training.config import ModelConfig
from training.errors import ModelNotFoundError
from training.hub import resolve_model


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_cached_snapshot", lambda _: None)


def complaint(path: str) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model(ModelConfig(path=path))
    return str(caught.value)


def test_a_local_directory_is_taken_as_it_is(qwen_dir: Path) -> None:
    assert resolve_model(ModelConfig(path=str(qwen_dir))) == qwen_dir


def test_without_network_one_line_names_the_model_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise httpx2.ConnectError("Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    message = complaint("facebook/opt-350m")
    assert "'facebook/opt-350m' cannot be fetched" in message
    assert "model.path=/path/to/model" in message
    assert "\n" not in message


def test_a_network_that_swallows_packets_is_given_up_within_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(hub, "_PROBE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: released.wait(30))
    started = time.monotonic()
    message = complaint("facebook/opt-350m")
    released.set()
    assert "no answer" in message
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "~/model", "a/b/c"])
def test_what_can_only_be_a_directory_is_not_looked_up(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: pytest.fail("asked the network"))
    assert "no such directory" in complaint(path)


def test_a_directory_without_model_or_weights_is_named(tmp_path: Path) -> None:
    assert "has no config.json" in complaint(str(tmp_path))
    (tmp_path / "config.json").write_text("{}", "utf-8")
    assert "has no weights" in complaint(str(tmp_path))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    (tmp_path / "model-1.safetensors").touch()
    assert "or not all of them" in complaint(str(tmp_path))
    assert "is a file" in complaint(str(tmp_path / "config.json"))
