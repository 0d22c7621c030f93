"""`python -m scripts.cost`: what one large model costs a month, and what a stack costs, in your own numbers.

Every number is an option. How many requests reach a layer is assumed (`--shares`), counted in a trace of `tinydispatch
run` or `serve` (`--trace`), or taken from an evaluation result (`--evaluation`): what the dispatch model got right
stays with it, all else goes up. What it gets wrong and nobody notices is priced by `--error-price`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import Any

from eval.results import ResultError, load_result
from tinydispatch.layers.stack import Layer

DAYS_PER_MONTH = 30
_WIDTH, _BAR, _GAP = 640, 26, 14


class CostError(ValueError):
    """Numbers or a file that cannot be reckoned with; names the option, or the file and line."""


@dataclass(frozen=True)
class Assumptions:
    """In one currency. Prices of tokens are per million; a price per request is added to what the tokens cost.

    No default is a vendor's price: they are round numbers of this project, made to be replaced.
    """

    calls_per_day: float = 10_000
    price_per_call: float = 0.01
    input_price: float = 0.0
    output_price: float = 0.0
    prompt_tokens: float = 1_000
    reply_tokens: float = 60
    orchestration_price: float = 0.001
    orchestration_input_price: float = 0.0
    orchestration_output_price: float = 0.0
    planning_price: float = 0.01
    planning_input_price: float = 0.0
    planning_output_price: float = 0.0
    error_rate: float = 0.0
    large_error_rate: float = 0.0
    error_price: float = 0.0
    watts: float = 7.0
    price_per_kwh: float = 0.30
    hardware: float = 90.0
    lifetime_months: float = 36.0

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if value < 0 or (key in ("calls_per_day", "lifetime_months") and value == 0):
                raise CostError(f"{key}={value:g}: must be {'greater than' if value == 0 else 'at least'} 0")
            if key.endswith("_rate") and value > 1:
                raise CostError(f"{key}={value:g}: is a share, at most 1")

    def per_large_call(self) -> float:
        """One call of the large model alone."""
        return self.price_per_call + _tokens(self.prompt_tokens, self.reply_tokens, self.input_price, self.output_price)


HELP = {
    "calls_per_day": "calls of tools a day",
    "price_per_call": "of the one large model, beside its tokens; 0 with --input-price and --output-price",
    "input_price": "a million tokens that the large model reads",
    "output_price": "a million tokens that it writes",
    "prompt_tokens": "read for each of its calls",
    "reply_tokens": "written for each of its calls",
    "orchestration_price": "a request to the orchestration layer, beside its tokens",
    "orchestration_input_price": "a million tokens that it reads",
    "orchestration_output_price": "a million tokens that it writes",
    "planning_price": "a request to the planning layer, beside its tokens",
    "planning_input_price": "a million tokens that it reads",
    "planning_output_price": "a million tokens that it writes",
    "error_rate": "share of the stack's calls that are wrong, and noticed by nobody",
    "large_error_rate": "the same of the large model alone",
    "error_price": "what such a call costs",
    "watts": "of the machine that dispatches, around the clock",
    "price_per_kwh": "of electricity",
    "hardware": "price of that machine",
    "lifetime_months": "months that it is used",
}


@dataclass(frozen=True)
class Requests:
    """How many requests each layer answered for so many calls of tools, and what it read and wrote for them.

    A call that is handed up is paid for by every layer that it passed.
    """

    by_layer: Mapping[Layer, float]
    n_calls: float
    source: str
    tokens: Mapping[Layer, tuple[float, float]] | None = None
    seconds: Mapping[Layer, float] | None = None
    measured_cost: float = 0.0

    def per_call(self, layer: Layer) -> float:
        """Requests of the layer for each call that was made."""
        return self.by_layer.get(layer, 0.0) / self.n_calls

    def tokens_per_call(self, layer: Layer, given: Assumptions) -> tuple[float, float]:
        """Tokens read and written of the layer for each call; what no trace tells is as for the large model."""
        if self.tokens is None:
            n = self.per_call(layer)
            return n * given.prompt_tokens, n * given.reply_tokens
        read, written = self.tokens.get(layer, (0.0, 0.0))
        return read / self.n_calls, written / self.n_calls


@dataclass(frozen=True)
class Bill:
    """A month's cost. `break_even_months` is None where the hardware is never paid for."""

    large: float
    large_errors: float
    orchestration: float
    planning: float
    errors: float
    electricity: float
    hardware: float
    break_even_months: float | None

    @property
    def alone(self) -> float:
        """The large model alone."""
        return self.large + self.large_errors

    @property
    def stack(self) -> float:
        """All of the stack, the hardware's share of the month included."""
        return self.orchestration + self.planning + self.errors + self.electricity + self.hardware

    @property
    def saved(self) -> float:
        """What the stack saves each month; negative where it costs more."""
        return self.alone - self.stack


def _tokens(read: float, written: float, input_price: float, output_price: float) -> float:
    return (read * input_price + written * output_price) / 1e6


def monthly_cost(calls_per_day: float, price_per_call: float) -> float:
    """10,000 calls a day at 0.01 each are 3,000 a month of 30 days."""
    return calls_per_day * price_per_call * DAYS_PER_MONTH


def bill(given: Assumptions, requests: Requests) -> Bill:
    """A month with the large model alone, and with the stack."""
    layers = {}
    for layer in (Layer.ORCHESTRATION, Layer.PLANNING):
        prices = [getattr(given, f"{layer}_{name}") for name in ("price", "input_price", "output_price")]
        per_call = requests.per_call(layer) * prices[0]
        per_call += _tokens(*requests.tokens_per_call(layer, given), *prices[1:])
        layers[layer] = monthly_cost(given.calls_per_day, per_call)
    electricity = given.watts / 1000 * 24 * DAYS_PER_MONTH * given.price_per_kwh
    large = monthly_cost(given.calls_per_day, given.per_large_call())
    large_errors = monthly_cost(given.calls_per_day, given.large_error_rate * given.error_price)
    errors = monthly_cost(given.calls_per_day, given.error_rate * given.error_price)
    left = large + large_errors - sum(layers.values()) - errors - electricity
    return Bill(
        large=large,
        large_errors=large_errors,
        orchestration=layers[Layer.ORCHESTRATION],
        planning=layers[Layer.PLANNING],
        errors=errors,
        electricity=electricity,
        hardware=given.hardware / given.lifetime_months,
        break_even_months=given.hardware / left if left > 0 else None,
    )


def requests_from_shares(shares: Mapping[Layer, float], source: str = "assumed") -> Requests:
    """Shares of calls that end in each layer; those of the upper layers have passed the dispatch model.

    Raises:
        CostError: they do not add up to 1.
    """
    total = sum(shares.values())
    if abs(total - 1) > 1e-6 or any(share < 0 for share in shares.values()):
        raise CostError(f"shares add up to {total:g}, not to 1")
    return Requests({**shares, Layer.DISPATCH: 1.0}, 1.0, source)


def requests_from_evaluation(path: Path) -> Requests:
    """What the dispatch model gets right stays with it; all else is taken to be noticed, and goes up.

    Raises:
        CostError: the file is no evaluation result, or nothing of it was scored.
    """
    try:
        result = load_result(path)
    except ResultError as error:
        raise CostError(str(error)) from error
    tally = result.overall
    if tally.rate is None:
        raise CostError(f"{path}: no case was scored")
    shares = {Layer.DISPATCH: tally.rate, Layer.ORCHESTRATION: 1 - tally.rate}
    return requests_from_shares(
        shares, f"{path.name}: {result.model_name} on suite {result.suite}, {tally.hits} of {tally.total} cases right"
    )


def requests_from_trace(path: Path) -> Requests:
    """Count a recorded trace's requests, tokens and calls.

    Raises:
        CostError: names file and line, or says that the trace holds no calls.
    """
    counts: dict[Layer, float] = {}
    seconds: dict[Layer, float] = {}
    tokens: dict[Layer, tuple[float, float]] = {}
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
                layer = Layer(name)
                counts[layer] = counts.get(layer, 0) + 1
                seconds[layer] = seconds.get(layer, 0.0) + span["duration_ms"] / 1000
                read, written = tokens.get(layer, (0.0, 0.0))
                tokens[layer] = (
                    read + float(attributes.get("prompt_tokens", 0)),
                    written + float(attributes.get("completion_tokens", 0)),
                )
                cost += float(attributes.get("cost", 0.0))
            elif name == "tool" and attributes["status"] not in ("unconfirmed", "declined"):
                n_calls += 1
        except (ValueError, KeyError, TypeError) as error:
            raise CostError(f"{path}:{number}: not a span of a trace: {error}") from error
    if not n_calls:
        raise CostError(f"{path}: {len(lines)} spans and no call of a tool among them: no share can be told")
    return Requests(counts, n_calls, f"measured in {path}: {n_calls} calls of tools", tokens, seconds, cost)


def lines(given: Assumptions, requests: Requests, found: Bill, currency: str, own: Sequence[str]) -> list[str]:
    """The comparison as a person reads it: a table, what it comes to, and where its numbers are from."""
    even = "never" if found.break_even_months is None else f"after {30 * found.break_even_months:.1f} days"
    percent = 100 * found.saved / found.alone if found.alone else 0.0
    rows = [
        ("one large model", found.large, f"{given.calls_per_day:,.0f} calls a day at {given.per_large_call():.6g}"),
        ("its errors", found.large_errors, f"{given.large_error_rate:.1%} of the calls at {given.error_price:g}"),
        ("alone", found.alone, ""),
        ("orchestration", found.orchestration, _told(Layer.ORCHESTRATION, given, requests)),
        ("planning", found.planning, _told(Layer.PLANNING, given, requests)),
        ("errors of the stack", found.errors, f"{given.error_rate:.1%} of the calls at {given.error_price:g}"),
        ("electricity", found.electricity, f"{given.watts:g} W around the clock at {given.price_per_kwh:g} a kWh"),
        ("hardware", found.hardware, f"{given.hardware:g} over {given.lifetime_months:g} months"),
        ("the stack", found.stack, ""),
    ]
    out = [f"| {currency} a month | | of |", "| --- | ---: | --- |"]
    out += [f"| {name} | {value:,.2f} | {of} |" for name, value, of in rows if value or "errors" not in name]
    shares = ", ".join(f"{layer} {requests.per_call(layer):.3f}" for layer in Layer)
    out += ["", f"saved: {found.saved:,.2f} {currency} a month ({percent:.1f} %); the hardware is paid for {even}"]
    out.append(f"requests per call: {shares} ({requests.source})")
    if requests.seconds:
        mean = {layer: requests.seconds[layer] / requests.by_layer[layer] for layer in requests.seconds}
        out.append("seconds per request: " + ", ".join(f"{layer} {value:.3f}" for layer, value in mean.items()))
    assumed = [item.name for item in fields(Assumptions) if item.name not in own]
    out.append(f"yours: {', '.join(own) or 'nothing'}")
    out.append(f"round numbers of this project, no vendor's prices: {', '.join(assumed)}")
    return out


def _told(layer: Layer, given: Assumptions, requests: Requests) -> str:
    read, written = requests.tokens_per_call(layer, given)
    prices = [getattr(given, f"{layer}_{name}") for name in ("price", "input_price", "output_price")]
    told = f"{requests.per_call(layer):.3f} requests per call at {prices[0]:g}"
    if not any(prices[1:]):
        return told
    return f"{told} and {read:,.0f} + {written:,.0f} tokens at {prices[1]:g} and {prices[2]:g} a million"


def picture(found: Bill, currency: str) -> str:
    """Both months as bars (SVG)."""
    parts = [
        ("one large model", [("large model", found.large, "#888"), ("errors", found.large_errors, "#c33")]),
        (
            "the stack",
            [
                ("orchestration", found.orchestration, "#3a7"),
                ("planning", found.planning, "#37a"),
                ("errors", found.errors, "#c33"),
                ("electricity and hardware", found.electricity + found.hardware, "#da3"),
            ],
        ),
    ]
    most = max(found.alone, found.stack) or 1.0
    drawn, y = [], 10
    for title, bars in parts:
        total = sum(value for _, value, _ in bars)
        drawn.append(f'<text x="10" y="{y + 12}">{escape(title)}: {total:,.2f} {escape(currency)} a month</text>')
        y += 20
        x = 10.0
        for name, value, colour in bars:
            width = (_WIDTH - 20) * value / most
            label = escape(f"{name}: {value:,.2f} {currency}")
            place = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"'
            drawn.append(f"<rect {place}><title>{label}</title></rect>")
            x += width
        y += _BAR + _GAP
        legend = "; ".join(f"{name} {value:,.2f}" for name, value, _ in bars if value)
        drawn.append(f'<text x="10" y="{y}" font-size="11">{escape(legend)}</text>')
        y += 22
    style = "text{font:13px sans-serif;fill:#222}@media(prefers-color-scheme:dark){text{fill:#ddd}}"
    size = f'viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" role="img"'
    title = f"<title>{escape(f'{found.alone:,.2f} and {found.stack:,.2f} {currency} a month')}</title>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{title}<style>{style}</style>{"".join(drawn)}</svg>\n'


def main(argv: Sequence[str] | None = None) -> int:
    """0 after printing the comparison, 2 for input that cannot be reckoned with."""
    arguments = _parser().parse_args(argv)
    own = [item.name for item in fields(Assumptions) if getattr(arguments, item.name) is not None]
    values = {name: getattr(arguments, name) for name in own}
    if not {"price_per_call"} & set(own) and {"input_price", "output_price"} & set(own):
        values["price_per_call"] = 0.0
    for layer in (Layer.ORCHESTRATION, Layer.PLANNING):
        if f"{layer}_price" not in own and {f"{layer}_input_price", f"{layer}_output_price"} & set(own):
            values[f"{layer}_price"] = 0.0
    try:
        given = Assumptions(**values)
        if arguments.trace:
            requests = requests_from_trace(arguments.trace)
        elif arguments.evaluation:
            requests = requests_from_evaluation(arguments.evaluation)
        else:
            source = "yours" if arguments.shares else "assumed; --trace or --evaluation has measured ones"
            shares = dict(zip(Layer, arguments.shares or (0.9, 0.08, 0.02), strict=True))
            requests = requests_from_shares(shares, source)
        found = bill(given, requests)
        if arguments.picture:
            partial = arguments.picture.with_name(f".{arguments.picture.name}.partial")
            partial.write_text(picture(found, arguments.currency), "utf-8")
            partial.replace(arguments.picture)
    except (CostError, OSError) as error:
        print(f"cost: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(given, requests, found, arguments.currency, [*values])))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--currency", default="USD", help="what the numbers are in; nothing is converted (%(default)s)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--trace", type=Path, help="a recorded trace (JSONL): its requests and tokens are counted")
    source.add_argument("--evaluation", type=Path, help="a result of scripts.evaluate (JSON): its pass rate is taken")
    source.add_argument(
        "--shares",
        type=float,
        nargs=3,
        metavar=("DISPATCH", "ORCHESTRATION", "PLANNING"),
        help="shares of calls that end in each layer (0.9 0.08 0.02)",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw both months")
    for item in fields(Assumptions):
        option = f"--{item.name.replace('_', '-')}"
        parser.add_argument(option, type=float, help=f"{HELP[item.name]} ({item.default:g})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
