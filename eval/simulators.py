"""Tools played: each call changes the state of a world and returns what the real tool might.

A simulator of the evaluation's own: the training data's may change with the data, the measure must not.
"""

from __future__ import annotations

import datetime as dt
import json
import zlib
import zoneinfo
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from eval.places import Place, SuiteError

# Part of the fingerprint of suites that are played: raise it when a simulator below answers otherwise.
SIMULATORS_VERSION = b"1"

State = dict[str, list[dict[str, Any]]]
Arguments = Mapping[str, Any]


class SimulatorError(ValueError):
    """A call that fails; the message is what the tool reports."""


@dataclass(frozen=True)
class Simulator:
    """`run(arguments, state, today)` returns the result and may change `state`."""

    run: Callable[[Arguments, State, dt.date | None], Any]


class Action(StrEnum):
    """What a described tool does with its collection; `eval/suites/README.md` shows each with an example."""

    RETURN = "return"
    ADD = "add"
    FIND = "find"
    UPDATE = "update"
    REMOVE = "remove"


def described(spec: Mapping[str, Any]) -> Simulator:
    """The simulator for one entry of a suite's `simulators.json`, whose keys have been checked."""
    action = Action(spec["action"])
    name = spec.get("collection", "")
    where: Mapping[str, str] = spec.get("where", {})
    returns = spec.get("returns", {"status": "ok"})

    def run(arguments: Arguments, state: State, today: dt.date | None) -> Any:  # noqa: ARG001
        if action is Action.RETURN:
            return returns
        records = state.setdefault(name, [])
        if action is Action.ADD:
            records.append(dict(arguments))
            return returns
        found = [item for item in records if _matches(item, arguments, where)]
        if action is Action.FIND:
            return {"count": len(found), name: found}
        if not found:
            wanted = ", ".join(f"{field} {arguments.get(argument)!r}" for field, argument in where.items())
            raise SimulatorError(f"nothing in {name} with {wanted}")
        if action is Action.REMOVE:
            records[:] = [item for item in records if item not in found]
        else:
            changes = {key: value for key, value in arguments.items() if key not in where.values()}
            for item in found:
                item.update(changes)
        return returns

    return Simulator(run)


def _matches(record: Arguments, arguments: Arguments, where: Mapping[str, str]) -> bool:
    """An argument that was not given does not narrow the search."""
    return all(
        argument not in arguments or record.get(field) == arguments[argument] for field, argument in where.items()
    )


def load_simulators(path: Path, tools: Mapping[str, Mapping[str, Any]]) -> dict[str, Simulator]:
    """Read a suite's `simulators.json`; `tools` are the parameters' schemas by tool name.

    Raises:
        SuiteError: names the file, the tool and the key.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SuiteError(f"{path}: not JSON: {error}") from error
    place = Place(str(path))
    place.check_keys(value, set(tools), "")
    found = {}
    for name, spec in value.items():
        place.check_keys(spec, {"action", "collection", "where", "returns"}, name)
        if spec.get("action") not in list(Action):
            place.fail(f"{name}.action", f"{spec.get('action')!r} is none of {', '.join(Action)}")
        if spec["action"] != Action.RETURN and not isinstance(spec.get("collection"), str):
            place.fail(f"{name}.collection", "expected the name of a collection of the world's state")
        where = spec.get("where", {})
        known = tools[name].get("properties", {})
        if not isinstance(where, dict) or not all(argument in known for argument in where.values()):
            place.fail(f"{name}.where", f"expected an object, field → parameter; parameters are {list(known)}")
        found[name] = described(spec)
    return found


def _number(low: int, high: int, *parts: object) -> int:
    """A number between `low` and `high` that depends on `parts` alone."""
    return low + zlib.crc32("|".join(map(str, parts)).encode()) % (high - low + 1)


def _get_weather(arguments: Arguments, state: State, today: dt.date | None) -> Any:  # noqa: ARG001
    day = arguments.get("date") or (today.isoformat() if today else "today")
    celsius = _number(-5, 30, "temperature", arguments["location"], day)
    is_celsius = arguments.get("units", "celsius") == "celsius"
    return {
        "location": arguments["location"],
        "date": day,
        "temperature": celsius if is_celsius else round(celsius * 9 / 5 + 32),
        "units": "celsius" if is_celsius else "fahrenheit",
        "conditions": ("sunny", "cloudy", "rain", "windy")[_number(0, 3, "sky", arguments["location"], day)],
    }


def _convert_currency(arguments: Arguments, state: State, today: dt.date | None) -> Any:  # noqa: ARG001
    pair = arguments["from_currency"], arguments["to_currency"]
    rate = 1.0 if pair[0] == pair[1] else _number(50, 200, "rate", *pair) / 100
    return {"amount": round(arguments["amount"] * rate, 2), "currency": pair[1], "rate": rate}


def _get_current_time(arguments: Arguments, state: State, today: dt.date | None) -> Any:  # noqa: ARG001
    noon = dt.datetime.combine(today or dt.date(2026, 1, 1), dt.time(12), tzinfo=dt.UTC)
    zone = arguments["timezone"]
    return {"timezone": zone, "time": noon.astimezone(zoneinfo.ZoneInfo(zone)).strftime("%Y-%m-%dT%H:%M")}


def _search_web(arguments: Arguments, state: State, today: dt.date | None) -> Any:  # noqa: ARG001
    count = min(arguments.get("max_results", 3), 3)
    return {"results": [{"title": f"{arguments['query']}: result {number + 1}"} for number in range(count)]}


def _list_calendar_events(arguments: Arguments, state: State, today: dt.date | None) -> Any:  # noqa: ARG001
    first, last = arguments["start_date"], arguments["end_date"]
    if last < first:
        raise SimulatorError("end_date lies before start_date")
    found = [event for event in state.get("events", []) if first <= event["start"][:10] <= last]
    return {"count": len(found), "events": sorted(found, key=lambda event: str(event["start"]))}


BUNDLED_SIMULATORS: dict[str, Simulator] = {
    "get_weather": Simulator(_get_weather),
    "convert_currency": Simulator(_convert_currency),
    "get_current_time": Simulator(_get_current_time),
    "search_web": Simulator(_search_web),
    "list_calendar_events": Simulator(_list_calendar_events),
    "set_reminder": described({"action": "add", "collection": "reminders", "returns": {"status": "set"}}),
    "send_email": described({"action": "add", "collection": "outbox", "returns": {"status": "sent"}}),
    "create_calendar_event": described({"action": "add", "collection": "events", "returns": {"status": "created"}}),
}
