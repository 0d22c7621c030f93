from typing import Any

import pytest

import train


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "a.yaml", "x=1", "--until", "prepare", "y=2"],
        ["x=1", "y=2", "--until", "prepare", "--config", "a.yaml"],
        ["x=1", "--config", "a.yaml", "y=2", "--until", "prepare"],
    ],
)
def test_options_and_settings_come_in_any_order(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(train, "run_pipeline", lambda *arguments: given.append(arguments) or 0)
    assert train.main(words) == 0
    assert given == [("a.yaml", ["x=1", "y=2"], None, train.Stage("prepare"))]
