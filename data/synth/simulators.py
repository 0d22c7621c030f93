"""The eight bundled tools played: deterministic results, so that multi-step conversations run for real.

The same call always gets the same answer (numbers come from a hash of the arguments), whatever ran before.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import zoneinfo
from collections.abc import Callable, Mapping
from typing import Any

from tinydispatch.tools import ToolCall

_CONDITIONS = ("sunny", "cloudy", "light rain", "heavy rain", "snow", "clear", "windy", "foggy", "thunderstorms")
_MEETINGS = (
    "Budget review",
    "Team sync",
    "Dentist",
    "Lunch with Sam",
    "Design workshop",
    "Yoga class",
    "1:1 with Priya",
)
_TITLES = ("Complete guide", "Overview and FAQ", "Official site", "Expert review", "Discussion thread", "News roundup")
# A noon in the past: the simulated clock stands still, so that a replay gives the same result.
_NOW = dt.datetime(2026, 3, 19, 12, 0, tzinfo=dt.UTC)


def simulate(call: ToolCall) -> dict[str, Any]:
    """The result of a valid call to a bundled tool.

    Raises:
        KeyError: no bundled tool has that name.
    """
    return _SIMULATORS[call.name](call.arguments)


def _number(arguments: Mapping[str, Any], salt: str, low: int, high: int) -> int:
    text = json.dumps([salt, dict(arguments)], sort_keys=True, ensure_ascii=False)
    return low + int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) % (high - low + 1)


def _weather(arguments: Mapping[str, Any]) -> dict[str, Any]:
    celsius = _number(arguments, "temperature", -10, 35)
    degrees = round(celsius * 9 / 5 + 32) if arguments.get("units") == "fahrenheit" else celsius
    conditions = _CONDITIONS[_number(arguments, "conditions", 0, len(_CONDITIONS) - 1)]
    return {
        "temperature": degrees,
        "conditions": conditions,
        "humidity_percent": _number(arguments, "humidity", 20, 95),
    }


def _currency(arguments: Mapping[str, Any]) -> dict[str, Any]:
    pair = {key: arguments[key] for key in ("from_currency", "to_currency")}
    same = arguments["from_currency"] == arguments["to_currency"]
    rate = 1.0 if same else _number(pair, "rate", 1, 2000) / 100
    return {"converted": round(arguments["amount"] * rate, 2), "rate": rate}


def _reminder(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"status": "set", "reminder_id": _number(arguments, "reminder", 100, 9999)}


def _email(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"status": "sent", "message_id": f"M-{_number(arguments, 'email', 1000, 99999)}"}


def _create_event(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"status": "created", "event_id": f"E-{_number(arguments, 'event', 1000, 99999)}"}


def _time(arguments: Mapping[str, Any]) -> dict[str, Any]:
    local = _NOW.astimezone(zoneinfo.ZoneInfo(arguments["timezone"]))
    return {"time": f"{local:%H:%M}", "timezone": arguments["timezone"]}


def _search(arguments: Mapping[str, Any]) -> dict[str, Any]:
    found = _number(arguments, "found", 1, arguments.get("max_results", 10))
    return {"results_found": found, "top_title": _TITLES[_number(arguments, "title", 0, len(_TITLES) - 1)]}


def _list_events(arguments: Mapping[str, Any]) -> dict[str, Any]:
    count = _number(arguments, "count", 0, 3)
    if count == 0:
        return {"count": 0}
    return {"count": count, "first_event": _MEETINGS[_number(arguments, "event", 0, len(_MEETINGS) - 1)]}


_SIMULATORS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "get_weather": _weather,
    "convert_currency": _currency,
    "set_reminder": _reminder,
    "send_email": _email,
    "create_calendar_event": _create_event,
    "get_current_time": _time,
    "search_web": _search,
    "list_calendar_events": _list_events,
}
