"""`python -m scripts.cost [--trace run.jsonl]`: what one large model costs a month, and what the stack costs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from tinydispatch.layers.cost import (
    Assumptions,
    Bill,
    CostError,
    Requests,
    bill,
    monthly_cost,
    requests_from_shares,
    requests_from_trace,
)
from tinydispatch.layers.stack import Layer

_HELP = {
    "calls_per_day": "calls of tools a day",
    "price_per_call": "of the one large model",
    "orchestration_price": "of a request to the orchestration layer",
    "planning_price": "of a request to the planning layer",
    "watts": "of the machine that dispatches, around the clock",
    "price_per_kwh": "of electricity",
    "hardware": "price of that machine",
    "lifetime_months": "months that it is used",
}


def main(argv: Sequence[str] | None = None) -> int:
    """0 after printing the comparison, 2 for input that cannot be reckoned with."""
    arguments = _parser().parse_args(argv)
    try:
        assumptions = Assumptions(**{item.name: getattr(arguments, item.name) for item in fields(Assumptions)})
        if arguments.trace is not None:
            requests = requests_from_trace(arguments.trace)
            source = f"measured in {arguments.trace}: {requests.n_calls:g} calls of tools"
        else:
            shares = dict(zip(Layer, arguments.shares, strict=True))
            requests, source = requests_from_shares(shares), "assumed; give --trace for measured shares"
    except CostError as error:
        print(f"cost: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(assumptions, requests, bill(assumptions, requests), source)))
    return 0


def lines(assumptions: Assumptions, requests: Requests, found: Bill, source: str) -> list[str]:
    """The comparison as a person reads it."""
    given = assumptions
    shown = ", ".join(f"{layer} {requests.per_call(layer):.3f}" for layer in Layer)
    yearly = 12 * found.saved
    even = "never" if found.break_even_months is None else f"after {30 * found.break_even_months:.1f} days"
    out = [
        f"one large model: {given.calls_per_day:,.0f} calls a day at {given.price_per_call:g} = "
        f"{monthly_cost(given.calls_per_day, given.price_per_call):,.2f} a month",
        f"requests per call ({source}): {shown}",
        f"the stack: orchestration {found.orchestration:,.2f} + planning {found.planning:,.2f} + electricity "
        f"{found.electricity:,.2f} + hardware {found.hardware:,.2f} = {found.stack:,.2f} a month",
        f"saved: {found.saved:,.2f} a month ({100 * found.saved / found.large if found.large else 0:.1f} %), "
        f"{yearly:,.2f} a year; the hardware is paid for {even}",
    ]
    if requests.seconds:
        mean = {layer: requests.seconds[layer] / requests.by_layer[layer] for layer in requests.seconds}
        out.append("seconds per request: " + ", ".join(f"{layer} {value:.3f}" for layer, value in mean.items()))
    return out


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.cost", description=__doc__)
    parser.add_argument("--trace", type=Path, help="a recorded trace (JSONL) that the shares are counted in")
    parser.add_argument(
        "--shares",
        type=float,
        nargs=3,
        default=[0.9, 0.08, 0.02],
        metavar=("DISPATCH", "ORCHESTRATION", "PLANNING"),
        help="assumed shares of calls that end in each layer (default: 0.9 0.08 0.02)",
    )
    for item in fields(Assumptions):
        option = f"--{item.name.replace('_', '-')}"
        parser.add_argument(option, type=float, default=item.default, help=f"{_HELP[item.name]} (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
