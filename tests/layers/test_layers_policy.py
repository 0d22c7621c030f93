"""A stack's policy is read from a file, and what is wrong in it is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tinydispatch.layers.endpoint import Endpoint
from tinydispatch.layers.policy import EndpointConfig, ErrorAction, PolicyError, load_policy, policy_from_mapping

TOML = """
dispatch = "nano.gguf"

[orchestration]
base_url = "http://127.0.0.1:8080/v1"
model = "mid"
api_key_env = "MID_KEY"
timeout_s = 20

[limits]
max_steps = 5

[tools]
allowed = ["get_weather"]
is_confirming = false

[[errors]]
match = "closed"
action = "alternative"
alternative = "search_web"
"""


def test_a_policy_is_read_from_toml_and_json(tmp_path: Path) -> None:
    path = tmp_path / "stack.toml"
    path.write_text(TOML)
    policy = load_policy(path)
    assert policy.dispatch == str(tmp_path / "nano.gguf")
    assert policy.orchestration == EndpointConfig("http://127.0.0.1:8080/v1", "mid", "MID_KEY", 20.0)
    assert (policy.planning, policy.limits.max_steps, policy.tools.allowed) == (None, 5, {"get_weather"})
    assert policy.errors[0].action is ErrorAction.ALTERNATIVE
    (tmp_path / "stack.json").write_text(json.dumps({"dispatch": "/models/nano.gguf"}))
    assert load_policy(tmp_path / "stack.json").dispatch == "/models/nano.gguf"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "at least one of 'dispatch'"),
        ([], "'policy': expected keys and values"),
        ({"dispach": "x"}, "unknown key 'dispach'; did you mean 'dispatch'?"),
        ({"dispatch": "x", "limits": {"max_step": 1}}, "unknown key 'limits.max_step'; did you mean 'max_steps'?"),
        ({"dispatch": 5}, "'dispatch': 5 is no str"),
        ({"planning": {"model": "x"}}, "'planning.base_url' is missing"),
        ({"dispatch": "x", "limits": {"max_steps": 0}}, "'limits.max_steps': 0 must be greater than 0"),
        ({"dispatch": "x", "limits": {"max_steps": True}}, "'limits.max_steps': True is no int"),
        ({"dispatch": "x", "tools": {"allowed": "all"}}, "'tools.allowed': 'all' is no array of names"),
        ({"dispatch": "x", "tools": {"max_attempts": 0}}, "max_attempts=0"),
        ({"dispatch": "x", "errors": [{"match": "(", "action": "ask"}]}, "no regular expression"),
        ({"dispatch": "x", "errors": [{"match": "a", "action": "cry"}]}, "'errors.0.action': 'cry' is none of"),
        ({"dispatch": "x", "errors": [{"match": "a", "action": "alternative"}]}, "'alternative' goes with"),
    ],
)
def test_what_is_wrong_in_a_policy_is_named(value: Any, message: str) -> None:
    with pytest.raises(PolicyError) as error:
        policy_from_mapping(value)
    assert message in str(error.value)


def test_a_file_that_is_no_policy_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("dispatch = ")
    (tmp_path / "b.toml").write_text("dispatch = 5")
    for name in ("a.toml", "b.toml", "c.toml"):
        with pytest.raises(PolicyError, match=name):
            load_policy(tmp_path / name)


def test_an_endpoint_that_cannot_be_used_is_refused_before_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MID_KEY", raising=False)
    with pytest.raises(PolicyError, match="variable MID_KEY is not set"):
        Endpoint(EndpointConfig("http://127.0.0.1/v1", "m", "MID_KEY"))
    with pytest.raises(PolicyError, match="expected http://host:port/v1"):
        Endpoint(EndpointConfig("localhost:80", "m"))
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(PolicyError, match=r"pip install 'tinydispatch\[layers\]'"):
        Endpoint(EndpointConfig("http://127.0.0.1/v1", "m"))
