"""Simulated tools of the example stack: a calendar with a free Thursday, and a restaurant."""

from __future__ import annotations

import datetime as dt
from typing import Any

from tinydispatch.layers.python_tools import read_only
from tinydispatch.layers.tool_calls import CallContext

_EVENTS = {dt.date(2026, 3, 17): [{"title": "Choir", "start": "2026-03-17T19:00"}]}


@read_only
def list_calendar_events(start_date: dt.date, end_date: dt.date) -> dict[str, Any]:
    """List the events in the user's calendar between two dates."""
    days = (end_date - start_date).days + 1
    events = [event for n in range(days) for event in _EVENTS.get(start_date + dt.timedelta(n), [])]
    return {"count": len(events), "events": events}


def book_restaurant(restaurant: str, time: dt.datetime, people: int, context: CallContext) -> dict[str, Any]:
    """Book a table at a restaurant."""
    return {"booked": restaurant, "time": time, "people": people, "reference": context.idempotency_key[:6]}


@read_only
def get_weather(location: str, date: dt.date | None = None) -> dict[str, Any]:
    """Tell the weather at a place.

    Args:
        location: a town
        date: the day; today when left out
    """
    return {"location": location, "date": date, "sky": "clear", "celsius": 11}
