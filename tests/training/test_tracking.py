"""Weights & Biases is used when it can be, and never asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from training import tracking as module
from training.config import TrackingConfig, WandbMode
from training.tracking import tracking, wandb_mode


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
