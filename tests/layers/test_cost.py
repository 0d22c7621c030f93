"""The arithmetic of costs: by hand, from assumptions, and from a recorded trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.cost import main
from tinydispatch.layers.cost import (
    Assumptions,
    CostError,
    bill,
    monthly_cost,
    requests_from_shares,
    requests_from_trace,
)
from tinydispatch.layers.stack import Layer


def test_ten_thousand_calls_a_day_at_a_cent_are_three_thousand_a_month() -> None:
    assert monthly_cost(10_000, 0.01) == pytest.approx(3000.0)


def test_a_bill_by_hand() -> None:
    given = Assumptions(
        calls_per_day=1000, price_per_call=0.01, orchestration_price=0.001, planning_price=0.01,
        watts=10, price_per_kwh=0.5, hardware=72, lifetime_months=36,
    )  # fmt: skip
    shares = {Layer.DISPATCH: 0.9, Layer.ORCHESTRATION: 0.08, Layer.PLANNING: 0.02}
    found = bill(given, requests_from_shares(shares))
    assert found.large == pytest.approx(300.0)
    assert found.orchestration == pytest.approx(2.4)
    assert found.planning == pytest.approx(6.0)
    assert found.electricity == pytest.approx(3.6)
    assert found.hardware == pytest.approx(2.0)
    assert found.saved == pytest.approx(286.0)
    assert found.break_even_months == pytest.approx(72 / 288)
    dear = bill(Assumptions(price_per_call=0.0), requests_from_shares(shares))
    assert dear.break_even_months is None


def write_trace(path: Path) -> None:
    spans = [("dispatch", {}), ("tool", {"status": "done"}), ("dispatch", {}), ("hand_up", {}),
             ("orchestration", {"cost": 0.002}), ("tool", {"status": "failed"}), ("tool", {"status": "unconfirmed"}),
             ("run", {})]  # fmt: skip
    lines = [json.dumps({"name": name, "attributes": more, "duration_ms": 10}) for name, more in spans]
    path.write_text("\n".join(lines) + "\n")


def test_a_trace_says_how_many_requests_a_call_took(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.jsonl")
    found = requests_from_trace(tmp_path / "trace.jsonl")
    assert (found.n_calls, found.per_call(Layer.DISPATCH), found.per_call(Layer.ORCHESTRATION)) == (2, 1.0, 0.5)
    assert found.measured_cost == pytest.approx(0.002)


def test_the_script_prints_the_three_thousand_and_what_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 0
    assert "10,000 calls a day at 0.01 = 3,000.00 a month" in capsys.readouterr().out
    write_trace(tmp_path / "trace.jsonl")
    assert main(["--trace", str(tmp_path / "trace.jsonl"), "--orchestration-price", "0.001"]) == 0
    out = capsys.readouterr().out
    assert "dispatch 1.000, orchestration 0.500, planning 0.000" in out
    assert "orchestration 150.00 + planning 0.00" in out
    assert "saved: 2,84" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shares", "0.5", "0.5", "0.5"], "add up to 1.5"),
        (["--watts", "-1"], "watts=-1"),
        (["--trace", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
    ],
)
def test_what_cannot_be_reckoned_with_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_trace_without_calls_or_with_nonsense_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("")
    with pytest.raises(CostError, match="no call of a tool"):
        requests_from_trace(path)
    path.write_text("{}\n")
    with pytest.raises(CostError, match=r"trace\.jsonl:1: not a span"):
        requests_from_trace(path)
