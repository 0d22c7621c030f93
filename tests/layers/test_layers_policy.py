"""A stack is read from a file, and what is wrong in it is named."""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tinydispatch.layers.endpoint import Endpoint
from tinydispatch.layers.policy import EndpointConfig, ErrorAction, PolicyError, load_stack

STACK = """
dispatch: nano.gguf
reference_date: 2026-03-16
tools:
  - python: tools.py
    read_only: [look]
  - mcp: [server, --quiet]
    environment: [HOME]
orchestration:
  base_url: http://127.0.0.1:8080/v1
  model: mid
  api_key_env: MID_KEY
  timeout_s: 20
limits: {max_steps: 5}
calls: {allowed: [look], is_confirming: false}
errors:
  - {match: closed, action: alternative, alternative: search_web}
"""


def test_a_stack_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "nano.gguf").touch()
    (tmp_path / "mine.yaml").write_text(STACK)
    settings = load_stack(tmp_path / "mine.yaml")
    policy = settings.policy()
    assert (settings.name, settings.reference_date) == ("mine", dt.date(2026, 3, 16))
    assert settings.tools[1].mcp == ("server", "--quiet")
    assert policy.orchestration == EndpointConfig("http://127.0.0.1:8080/v1", "mid", "MID_KEY", 20.0)
    assert (policy.planning, policy.limits.max_steps, policy.tools.allowed) == (None, 5, {"look"})
    assert policy.errors[0].action is ErrorAction.ALTERNATIVE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dispach": "x"}, "dispach: unknown key; did you mean 'dispatch'?"),
        ({"limits": {"max_step": 1}}, "limits.max_step: unknown key; did you mean 'max_steps'?"),
        ({"dispatch": 5}, "dispatch: 5: input should be a valid string"),
        ({"dispatch": "absent.gguf"}, "absent.gguf: there is no such file"),
        ({"dispatch": "none"}, "a stack needs at least one of"),
        ({"planning": {"model": "x"}}, "planning: an endpoint needs base_url and model"),
        ({"limits": {"max_steps": 0}}, "limits: max_steps=0: must be greater than 0"),
        ({"limits": {"max_steps": True}}, "limits.max_steps: true: input should be a valid integer"),
        ({"calls": {"allowed": "all"}}, 'calls.allowed: "all": input should be a valid array'),
        ({"calls": {"max_attempts": 0}}, "max_attempts=0"),
        ({"errors": [{"match": "(", "action": "ask"}]}, "no regular expression"),
        ({"errors": [{"match": "a", "action": "cry"}]}, 'errors.0.action: "cry": input should be'),
        ({"errors": [{"match": "a", "action": "alternative"}]}, "'alternative' goes with"),
        ({"tools": []}, "a stack without tools"),
        ({"tools": None}, "tools: null: input should be a valid array"),
        ({"tools": [{"mcp": "http://x", "openapi": "y"}]}, "one of python, mcp and openapi"),
        ({"tools": [{"python": "x.py", "base_url": "http://x"}]}, "base_url: nothing that tools from python know"),
        ({"tools": [{"python": "x.py", "read_only": ["a"], "side_effects": ["a"]}]}, "both name a"),
        ({"folder": "/"}, "folder: unknown key"),
    ],
)
def test_what_is_wrong_in_a_stack_is_named_with_file_key_and_value(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text(json.dumps({"tools": [{"python": "tools.py"}], **change}))
    with pytest.raises(PolicyError) as error:
        load_stack(path)
    assert f"{path}: " in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["a: [", "- a", "", "\0"])
def test_a_file_that_is_no_stack_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError, match=r"stack\.yaml: "):
        load_stack(path)
    with pytest.raises(PolicyError, match=r"absent\.yaml: cannot be read"):
        load_stack(tmp_path / "absent.yaml")


def test_an_endpoint_that_cannot_be_used_is_refused_before_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MID_KEY", raising=False)
    with pytest.raises(PolicyError, match="variable MID_KEY is not set"):
        Endpoint(EndpointConfig("http://127.0.0.1/v1", "m", "MID_KEY"))
    with pytest.raises(PolicyError, match="expected http://host:port/v1"):
        Endpoint(EndpointConfig("localhost:80", "m"))
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(PolicyError, match=r"pip install 'tinydispatch\[layers\]'"):
        Endpoint(EndpointConfig("http://127.0.0.1/v1", "m"))
