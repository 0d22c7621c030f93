"""Stacks over scripted models and counted tools, for the tests of this folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from scripts.scripted_server import ScriptedServer, completion
from tinydispatch.bundled import bundled_tools
from tinydispatch.layers.policy import EndpointConfig, StackPolicy
from tinydispatch.layers.stack import Stack
from tinydispatch.layers.tool_calls import BoundTool, CallContext, ToolFailure
from tinydispatch.layers.toolbox import ToolPolicy
from tinydispatch.layers.trace import Tracer
from tinydispatch.tools import Message, Tool, ToolCall, check_calls

FREE = ToolPolicy(is_confirming=False)
EFFECTS = {"send_email", "create_calendar_event", "set_reminder"}
LIST = ToolCall("list_calendar_events", {"start_date": "2026-03-19", "end_date": "2026-03-19"})
BOOK = ToolCall("create_calendar_event", {"title": "Dinner at Lumen", "start": "2026-03-19T19:30"})
MAIL = ToolCall("send_email", {"to": ["jo@kew.example"], "subject": "Hi", "body": "Hello"})
OSLO = ToolCall("get_weather", {"location": "Oslo"})
ROME = ToolCall("get_weather", {"location": "Rome"})

THURSDAY = "Check my calendar for Thursday, then if I'm free, book dinner at Lumen at 19:30."

Said = str | Sequence[ToolCall]


class ScriptedDispatcher:
    """Answers with one scripted reply after the other, then with "Done."; `seen` holds what it was asked."""

    def __init__(self, *script: Said | Exception, confidence: float = 0.99) -> None:
        self.script = list(script)
        self.confidence = confidence
        self.seen: list[list[Message]] = []

    def dispatch(self, messages: Sequence[Message], *, tools: Sequence[Tool], listener: Any) -> Any:
        assert listener(b"x") in (True, False)
        self.seen.append(list(messages))
        said = self.script.pop(0) if self.script else "Done."
        if isinstance(said, Exception):
            raise said
        calls = () if isinstance(said, str) else tuple(said)
        return SimpleNamespace(
            calls=calls,
            reply=said if isinstance(said, str) else "",
            violations=tuple(check_calls(calls, tools)),
            unparsed=(),
            is_complete=True,
            confidence=self.confidence,
            is_confident=self.confidence >= 0.5,
            tokens=SimpleNamespace(prompt=100, generated=10),
        )


class Kitchen:
    """Tools that answer by `results` (a value, an exception, a list of these in turn) and count what they did."""

    def __init__(self, **results: Any) -> None:
        self.results = results
        self.acted: list[ToolCall] = []
        self.release = threading.Event()

    def bound(self, timeout_s: float = 20.0) -> list[BoundTool]:
        return [
            BoundTool(tool, self._run(tool.name), tool.name in EFFECTS, timeout_s=timeout_s) for tool in bundled_tools()
        ]

    def _run(self, name: str) -> Any:
        def run(arguments: Mapping[str, Any], context: CallContext) -> Any:  # noqa: ARG001
            result = self.results.get(name, {"ok": True})
            if isinstance(result, list):
                result = result.pop(0) if result else {"ok": True}
            if isinstance(result, str) and result == "hang after acting":
                self.acted.append(ToolCall(name, arguments))
                self.release.wait(20)
                return {"ok": True}
            if isinstance(result, Exception):
                raise result
            self.acted.append(ToolCall(name, arguments))
            return result

        return run


def fails(text: str) -> ToolFailure:
    return ToolFailure(text, did_act=False)


def endpoint(url: str, **settings: Any) -> EndpointConfig:
    return EndpointConfig(**{"base_url": url, "model": "scripted", "timeout_s": 20.0, **settings})


def stack(
    kitchen: Kitchen,
    dispatcher: ScriptedDispatcher | None = None,
    *,
    timeout_s: float = 20.0,
    tracer: Tracer | None = None,
    confirm: Any = None,
    sleep: Any = lambda _: None,
    **policy: Any,
) -> Stack:
    settings = {"dispatch": "scripted.gguf" if dispatcher else None, "tools": FREE, **policy}
    return Stack(
        StackPolicy(**settings),
        kitchen.bound(timeout_s),
        dispatcher,
        tracer=tracer or Tracer(is_otel=False),
        confirm=confirm,
        sleep=sleep,
    )


class Server(ScriptedServer):
    """Answers with one scripted reply after the other; the last one again and again."""

    def __init__(self) -> None:
        self.replies: list[Any] = ["Done."]
        super().__init__(self._next)

    def _next(self, _: dict[str, Any]) -> tuple[int, bytes]:
        said = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(said, tuple):
            return said
        text = said if isinstance(said, str) else json.dumps(said) if isinstance(said, dict) else ""
        return completion(text, said if isinstance(said, list) else (), 200, 20)
