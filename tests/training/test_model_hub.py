"""A model that cannot be had is named at once, with what to do."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, ModelInfo, constants, snapshot_download

from training import hub
from training.config import ModelConfig
from training.errors import ModelNotFoundError
from training.hub import resolve_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


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


def snapshot(cache: Path, commit: str) -> Path:
    """What the client leaves of a download by commit: the files, and no note of any branch."""
    folder = cache / "models--own--model" / "snapshots" / commit
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}", "utf-8")
    return folder


@pytest.fixture
def online(cache: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A hub whose `main` is commit a…a."""

    def fetch(repo: str, *, revision: str | None, local_files_only: bool = False, **keywords: object) -> str:
        if local_files_only:
            keywords.pop("allow_patterns", None)
            return snapshot_download(repo, revision=revision, local_files_only=True, cache_dir=str(cache))
        assert revision is not None
        return str(snapshot(cache, revision))

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: ModelInfo(id="own/model", sha="a" * 40, siblings=[]))
    return monkeypatch


def test_what_was_fetched_by_its_commit_is_found_again_without_network(online: pytest.MonkeyPatch, cache: Path) -> None:
    model = ModelConfig(path="own/model")
    first = resolve_model(model)
    assert first.name == "a" * 40
    online.setattr(HfApi, "model_info", lambda *_, **__: pytest.fail("asked the network"))
    assert resolve_model(model) == first
    # Another program fetches a branch that has moved on: this base stays what it was.
    (cache / "models--own--model" / "refs" / "main").write_text("b" * 40, "ascii")
    snapshot(cache, "b" * 40)
    assert resolve_model(model) == first
    assert resolve_model(ModelConfig(path="own/model", revision="b" * 40)).name == "b" * 40


def test_a_branch_that_another_program_fetched_stays_at_the_commit_of_its_first_use(
    online: pytest.MonkeyPatch, cache: Path
) -> None:
    online.setattr(HfApi, "model_info", lambda *_, **__: pytest.fail("asked the network"))
    snapshot(cache, "b" * 40)
    note = cache / "models--own--model" / "refs" / "main"
    note.parent.mkdir()
    note.write_text("b" * 40, "ascii")
    first = resolve_model(ModelConfig(path="own/model"))
    snapshot(cache, "c" * 40)
    note.write_text("c" * 40, "ascii")
    assert resolve_model(ModelConfig(path="own/model")) == first


def test_an_index_of_another_format_beside_good_weights_is_no_reason_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    (tmp_path / "model.safetensors").touch()
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index), "utf-8")
    assert resolve_model(ModelConfig(path=str(tmp_path))) == tmp_path


def test_weights_in_one_pickled_file_are_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    (tmp_path / "pytorch_model.bin").touch()
    assert resolve_model(ModelConfig(path=str(tmp_path))) == tmp_path
