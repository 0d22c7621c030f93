from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tinydispatch.server.settings import Limits

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "systemd" / "tinydispatch.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    path = tmp_path / UNIT.name
    # The program is not installed here, so another stands in for it.
    path.write_text(UNIT.read_text("utf-8").replace("/opt/tinydispatch/bin/python", sys.executable))
    found = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
    assert (found.returncode, [line for line in found.stderr.splitlines() if UNIT.name in line]) == (0, [])


def test_the_unit_waits_as_long_as_a_request_may_take() -> None:
    (line,) = [line for line in UNIT.read_text("utf-8").splitlines() if line.startswith("TimeoutStopSec=")]
    assert float(line.partition("=")[2]) > Limits().request_timeout_s
