"""What dispatching costs with one large model and with a stack, and when the difference has paid for the hardware."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinydispatch.layers.stack import Layer

DAYS_PER_MONTH = 30


class CostError(ValueError):
    """Assumptions or a trace that cannot be reckoned with; names the key, or the file and line."""


@dataclass(frozen=True)
class Assumptions:
    """In one currency. The large model answers every call at `price_per_call`; the stack's layers each their share.

    `orchestration_price` and `planning_price` are per call that reaches the layer. `watts` is what the dispatch machine
    takes around the clock, `hardware` its price, spread over `lifetime_months`.
    """

    calls_per_day: float = 10_000
    price_per_call: float = 0.01
    orchestration_price: float = 0.001
    planning_price: float = 0.01
    watts: float = 7.0
    price_per_kwh: float = 0.30
    hardware: float = 90.0
    lifetime_months: float = 36.0

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if value < 0 or (key in ("calls_per_day", "lifetime_months") and value == 0):
                raise CostError(f"{key}={value:g}: must be greater than 0")


@dataclass(frozen=True)
class Requests:
    """How many requests each layer answered for so many calls of tools: what a trace shows.

    A call that is handed up is paid for by every layer that it passed.
    """

    by_layer: Mapping[Layer, float]
    n_calls: float
    measured_cost: float = 0.0
    seconds: Mapping[Layer, float] | None = None

    def per_call(self, layer: Layer) -> float:
        """Requests of the layer for each call that was made."""
        return self.by_layer.get(layer, 0.0) / self.n_calls


@dataclass(frozen=True)
class Bill:
    """A month's cost. `break_even_months` is None where the hardware is never paid for."""

    large: float
    orchestration: float
    planning: float
    electricity: float
    hardware: float
    break_even_months: float | None

    @property
    def stack(self) -> float:
        """All of the stack, the hardware's share of the month included."""
        return self.orchestration + self.planning + self.electricity + self.hardware

    @property
    def saved(self) -> float:
        """What the stack saves each month; negative where it costs more."""
        return self.large - self.stack


def monthly_cost(calls_per_day: float, price_per_call: float) -> float:
    """10,000 calls a day at 0.01 each are 3,000 a month of 30 days."""
    return calls_per_day * price_per_call * DAYS_PER_MONTH


def bill(assumptions: Assumptions, requests: Requests) -> Bill:
    """A month with the large model alone, and with the stack."""
    given = assumptions
    large = monthly_cost(given.calls_per_day, given.price_per_call)
    layers = {
        layer: monthly_cost(given.calls_per_day * requests.per_call(layer), price)
        for layer, price in (
            (Layer.ORCHESTRATION, given.orchestration_price),
            (Layer.PLANNING, given.planning_price),
        )
    }
    electricity = given.watts / 1000 * 24 * DAYS_PER_MONTH * given.price_per_kwh
    running = sum(layers.values()) + electricity
    return Bill(
        large=large,
        orchestration=layers[Layer.ORCHESTRATION],
        planning=layers[Layer.PLANNING],
        electricity=electricity,
        hardware=given.hardware / given.lifetime_months,
        break_even_months=given.hardware / (large - running) if large > running else None,
    )


def requests_from_shares(shares: Mapping[Layer, float]) -> Requests:
    """Assumed shares of calls per layer; those of the upper layers have passed the dispatch model.

    Raises:
        CostError: they do not add up to 1.
    """
    total = sum(shares.values())
    if abs(total - 1) > 1e-6 or any(share < 0 for share in shares.values()):
        raise CostError(f"shares add up to {total:g}, not to 1")
    return Requests({**shares, Layer.DISPATCH: 1.0}, 1.0)


def requests_from_trace(path: Path) -> Requests:
    """Count a recorded trace's requests and calls.

    Raises:
        CostError: names file and line, or says that the trace holds no calls.
    """
    counts: dict[Layer, float] = {}
    seconds: dict[Layer, float] = {}
    n_calls, cost = 0, 0.0
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise CostError(f"{path}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        try:
            span: Any = json.loads(line)
            name, attributes = span["name"], span["attributes"]
            if name in list(Layer):
                counts[Layer(name)] = counts.get(Layer(name), 0) + 1
                seconds[Layer(name)] = seconds.get(Layer(name), 0.0) + span["duration_ms"] / 1000
                cost += float(attributes.get("cost", 0.0))
            elif name == "tool" and attributes["status"] not in ("unconfirmed", "declined"):
                n_calls += 1
        except (ValueError, KeyError, TypeError) as error:
            raise CostError(f"{path}:{number}: not a span of a trace: {error}") from error
    if not n_calls:
        raise CostError(f"{path}: {len(lines)} spans and no call of a tool among them: no share can be told")
    return Requests(counts, n_calls, cost, seconds)
