"""`python -m scripts.show_layers MODEL.gguf`: "check my calendar, then if I'm free, book a restaurant", step by step.

The dispatch model is real. The layers above it are scripted servers on loopback, so that it runs without an account.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.scripted_server import Reply, ScriptedServer, completion
from tinydispatch.dispatcher import Dispatcher
from tinydispatch.layers.policy import EndpointConfig, StackPolicy
from tinydispatch.layers.python_tools import tool_from_function
from tinydispatch.layers.stack import Stack, shown
from tinydispatch.layers.tool_calls import BoundTool, CallContext
from tinydispatch.layers.toolbox import ToolPolicy
from tinydispatch.layers.trace import Tracer
from tinydispatch.tools import ToolCall

TODAY = dt.date(2026, 3, 16)
REQUEST = "Check my calendar for Thursday, then if I'm free, book a table for two at Lumen at 19:30."
PLAN = {
    "calls": [
        {
            "id": "thursday",
            "tool": "list_calendar_events",
            "arguments": {"start_date": "2026-03-19", "end_date": "2026-03-19"},
        },
        {
            "id": "table",
            "tool": "book_restaurant",
            "arguments": {"restaurant": "Lumen", "time": "2026-03-19T19:30", "people": 2},
            "condition": "thursday.count == 0",
        },
    ]
}


def main(argv: Sequence[str] | None = None) -> int:
    """0 after printing the two evenings, 2 for a model that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m scripts.show_layers", description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--trace", type=Path, help="a JSONL file for the spans")
    arguments = parser.parse_args(argv)
    try:
        with Dispatcher(arguments.model, [tool.tool for tool in tools(0)], TODAY) as dispatcher:
            reply = dispatcher.dispatch(REQUEST)
            print(f"user: {REQUEST}\n")
            print("the dispatch model by itself: " + ("; ".join(shown(call) for call in reply.calls) or reply.reply))
            for n_events in (0, 1):
                print(f"\nwith {n_events} events on Thursday:")
                _evening(dispatcher, n_events, arguments.trace)
    except ValueError as error:
        print(f"show_layers: {error}", file=sys.stderr)
        return 2
    return 0


def tools(n_events: int) -> list[BoundTool]:
    """A calendar with so many events, and a restaurant."""

    def list_calendar_events(start_date: dt.date, end_date: dt.date) -> dict[str, Any]:
        """List the events in the user's calendar between two dates."""
        events = [{"title": "Choir", "start": f"{start_date}T19:00"}] * n_events
        return {"count": len(events), "events": events, "until": end_date}

    def book_restaurant(restaurant: str, time: dt.datetime, people: int, context: CallContext) -> dict[str, Any]:
        """Book a table at a restaurant."""
        return {"booked": restaurant, "time": time, "people": people, "reference": context.idempotency_key[:6]}

    return [tool_from_function(list_calendar_events, has_side_effects=False), tool_from_function(book_restaurant)]


def last_words(body: Mapping[str, Any]) -> Reply:
    """What a model between the calls would say: read off the results that it is shown."""
    results = [json.loads(message["content"]) for message in body["messages"] if message["role"] == "tool"]
    booked = next((result for result in results if "booked" in result), None)
    text = f"You are free. Lumen is booked, reference {booked['reference']}." if booked else "You are not free."
    return completion(text, prompt_tokens=420, tokens=14)


def _evening(dispatcher: Dispatcher, n_events: int, trace: Path | None) -> None:
    tracer = Tracer(trace, has_content=True, is_otel=False)
    with (
        ScriptedServer(last_words) as mid,
        ScriptedServer(lambda _: completion(json.dumps(PLAN), prompt_tokens=640, tokens=130)) as large,
    ):
        policy = StackPolicy(
            dispatch="given",
            orchestration=EndpointConfig(mid.url, "scripted", input_price=0.15, output_price=0.6),
            planning=EndpointConfig(large.url, "scripted", input_price=3.0, output_price=15.0),
            tools=ToolPolicy(),
        )
        stack = Stack(policy, tools(n_events), dispatcher, reference_date=TODAY, tracer=tracer, confirm=_agree)
        end = stack.run(REQUEST)
        for layer, handover in end.handovers:
            print(f"  {layer} hands up: {handover}")
        for step in end.steps:
            for outcome in step.outcomes:
                print(f"  {step.layer}: {shown(outcome.call)} -> {json.dumps(outcome.value)}")
        print(f"  {end.state}: {end.reply}   [{end.seconds:.3f} s, cost {end.cost:.6f}]")
        stack.close()


def _agree(call: ToolCall, why: str) -> bool:
    print(f"  asked: {shown(call)} ({why})? yes")
    return True


if __name__ == "__main__":
    sys.exit(main())
