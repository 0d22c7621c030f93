"""Small conversations, ToolBench rows and the real files, shared by the data tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Conversation, Message, Role, ToolCall

_CHECKOUT = Path(__file__).resolve().parents[2]

WEATHER_API = {
    "name": "forecast_for_weather",
    "description": 'This is the subfunction for tool "weather", you can use this tool.'
    'The description of this function is: "Forecast for a city"',
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "STRING", "description": "where"}, "days": {"type": "integer"}},
        "required": ["city"],
        "optional": ["days"],
    },
}
FINISH_API = {"name": "Finish", "description": "end", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="session")
def toolbench_dir() -> Path:
    """The folder that holds `toolbench/` and `toolbench_history/`; they are not part of the repository."""
    given = os.environ.get("TINYDISPATCH_TOOLBENCH_DIR")
    folder = Path(given) if given else _CHECKOUT.parent / "shared" / "data"
    if not (folder / "toolbench").is_dir():
        pytest.skip("no ToolBench files: set TINYDISPATCH_TOOLBENCH_DIR to try them")
    return folder


@pytest.fixture
def weather() -> Callable[..., Conversation]:
    """Builds a one-call conversation about the weather; keywords replace fields."""

    def build(
        request: str = "weather in Oslo tomorrow please", arguments: Mapping[str, Any] | None = None, **fields: Any
    ) -> Conversation:
        call = ToolCall("get_weather", {"location": "Oslo"} if arguments is None else arguments)
        given = {
            "messages": (Message(Role.USER, request), Message(Role.ASSISTANT, "", (call,))),
            "tools": bundled_tools(),
            "source": "test",
            "category": "single_call",
            "dialogue_id": f"test-{request}",
        }
        return Conversation(**{**given, **fields})

    return build


@pytest.fixture
def train_row() -> Callable[..., dict[str, Any]]:
    """Builds a ToolBench train row around the text of its last assistant turn."""

    def build(
        assistant: str = '\nThought: \nAction: forecast_for_weather\nAction Input: {\n  "city": "Oslo"\n}',
        before: tuple[tuple[str, str], ...] = (),
        apis: list[dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        listed = [WEATHER_API, FINISH_API] if apis is None else apis
        system = f"You are AutoGPT…\nSpecifically, you have access to the following APIs: {listed!r}"
        turns = (("system", system), ("user", "\nWeather in Oslo?\nBegin!\n"), *before, ("assistant", assistant))
        return {
            "id": "Step 2: Weather in Oslo?",
            "conversations": [{"from": role, "value": value} for role, value in turns],
        }

    return build
