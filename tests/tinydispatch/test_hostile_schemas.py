from __future__ import annotations

import subprocess
import sys

import pytest

from tests.tinydispatch.hostile_schemas import SCHEMAS, cost


@pytest.mark.parametrize("name", ["3,000 optional keys", "allOf of references, fan-out of depth 40", "1e400"])
def test_a_hostile_schema_costs_less_than_two_seconds(name: str) -> None:
    seconds, _, outcome = cost(name)
    assert seconds < 2
    assert outcome == "compiles"


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_hostile_schema_compiles_or_is_refused_within_two_seconds_and_200_megabytes(name: str) -> None:
    command = [sys.executable, "-m", "tests.tinydispatch.hostile_schemas", name]
    row = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    _, _, seconds, megabytes, outcome, _ = (cell.strip() for cell in row.split("|"))
    assert float(seconds) < 2, row
    assert int(megabytes) < 200, row
    assert "FAILS" not in outcome
