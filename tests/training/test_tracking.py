"""Weights & Biases is used when it can be, and never asked for."""

from __future__ import annotations

import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from tests.training.samples import MakeRun
from training import tracking as module
from training.config import TrackingConfig, WandbMode
from training.sft import train
from training.tracking import tracking, upload_files, wandb_mode


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(module, "_is_reachable", lambda: True)


def mode(wandb: WandbMode) -> str | None:
    return wandb_mode(TrackingConfig(wandb=wandb))


def test_not_logged_in_means_off_without_a_question() -> None:
    assert mode(WandbMode.AUTO) is None


def test_a_key_in_the_environment_or_netrc_is_a_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n", "utf-8")
    assert mode(WandbMode.AUTO) == "online"
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert mode(WandbMode.AUTO) == "online"


def test_logged_in_but_unreachable_means_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setattr(module, "_is_reachable", lambda: False)
    assert mode(WandbMode.AUTO) == "offline"


def test_the_users_own_environment_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert mode(WandbMode.AUTO) == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mode(WandbMode.AUTO) is None
    assert mode(WandbMode.OFFLINE) is None


def test_off_is_off_even_when_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert mode(WandbMode.OFF) is None


def test_the_environment_is_as_before_afterwards(tmp_path: Path) -> None:
    with tracking(TrackingConfig(wandb=WandbMode.OFFLINE, project="p"), tmp_path) as report_to:
        assert report_to == ["wandb"]
        assert (os.environ["WANDB_MODE"], os.environ["WANDB_PROJECT"]) == ("offline", "p")
    assert "WANDB_MODE" not in os.environ
    with tracking(TrackingConfig(wandb=WandbMode.OFF), tmp_path) as report_to:
        assert report_to == []


OFFLINE = TrackingConfig(wandb=WandbMode.OFFLINE, project="p")


@pytest.fixture
def export(tmp_path: Path) -> Path:
    path = tmp_path / "m-q8_0.gguf"
    path.write_bytes(b"GGUF" * 100)
    return path


class FakeWandb(types.ModuleType):
    """Records what a run is given; `failure` is raised by `init`."""

    Error = type("Error", (Exception,), {})
    Settings = dict

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__("wandb")
        self.failure, self.run = failure, None
        self.calls: list[Any] = []

    def init(self, **options: Any) -> FakeWandb:
        if self.failure is not None:
            raise self.failure
        self.calls.append(options)
        return self

    def __enter__(self) -> FakeWandb:
        return self

    def __exit__(self, *_: object) -> None: ...

    def Artifact(self, name: str, **options: Any) -> FakeWandb:  # noqa: N802
        self.calls.append((name, options))
        return self

    def add_file(self, path: str, **options: Any) -> None:
        self.calls.append((path, options))

    def log_artifact(self, artifact: FakeWandb) -> None:
        assert artifact is self


def test_exported_files_become_an_artifact_of_the_run_that_was_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, export: Path
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with tracking(OFFLINE, tmp_path):
        trained_as = os.environ["WANDB_RUN_ID"]
    assert upload_files(OFFLINE, tmp_path, "m", [export], {"pass_rates": 1})
    started, artifact, file = fake.calls
    assert (started["id"], started["resume"], started["mode"]) == (trained_as, "allow", "offline")
    assert artifact == ("m-gguf", {"type": "model", "metadata": {"pass_rates": 1}})
    assert file == (str(export), {"name": "m-q8_0.gguf", "policy": "immutable"})


def test_a_continued_training_is_recorded_into_the_run_that_it_began(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ids = []
    for is_continued in (False, True, False):
        with tracking(OFFLINE, tmp_path, is_continued=is_continued):
            ids.append(os.environ["WANDB_RUN_ID"])
            monkeypatch.setenv("RANK", "1")
            with tracking(OFFLINE, tmp_path):  # another process of the same training
                assert (tmp_path / "wandb" / "run_id").read_text("utf-8") == ids[-1]
            monkeypatch.setenv("RANK", "0")
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.slow
def test_a_training_is_recorded_offline_with_recipe_loss_rates_and_failed_cases(
    make_run: MakeRun, train_path: Path
) -> None:
    run = make_run(
        tracking__wandb="offline",
        training__max_steps=2,
        training__save_steps=1,
        training__pass_rate__every_steps=1,
        training__pass_rate__max_cases=2,
        training__pass_rate__max_new_tokens=4,
    )
    train(run, train_path, run.run_dir)
    run_id = (run.run_dir / "wandb" / "run_id").read_text("utf-8")
    (record,) = (run.run_dir / "wandb").glob(f"offline-run-*/run-{run_id}.wandb")
    wanted = {b"recipe", b"muon_learning_rate", b"train/loss", b"pass_rate/overall", b"failed_cases"}
    deadline_s = time.monotonic() + 60
    while missing := {text for text in wanted if text not in record.read_bytes()}:
        assert time.monotonic() < deadline_s, missing  # wandb's own process writes the file, a little later
        time.sleep(0.2)


def test_nothing_is_uploaded_where_nothing_is_tracked(tmp_path: Path, export: Path) -> None:
    assert not upload_files(TrackingConfig(wandb=WandbMode.OFF), tmp_path, "m", [export], {})
    assert not (tmp_path / "wandb").exists()


def test_an_upload_that_fails_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, export: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(FakeWandb.Error("no space")))
    assert not upload_files(OFFLINE, tmp_path, "m", [export], {})
    assert "did not take m-q8_0.gguf: no space" in caplog.text


@pytest.mark.slow
def test_wandb_itself_keeps_the_artifact_offline(tmp_path: Path, export: Path) -> None:
    with tracking(OFFLINE, tmp_path):
        run_id = os.environ["WANDB_RUN_ID"]
    assert upload_files(OFFLINE, tmp_path, "m", [export], {})
    (record,) = (tmp_path / "wandb").glob(f"offline-run-*/run-{run_id}.wandb")
    content = record.read_bytes()
    assert b"m-gguf" in content
    assert b"m-q8_0.gguf" in content
