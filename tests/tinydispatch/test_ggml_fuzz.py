"""Damaged model files: an error or a working model, never the end of the process.

`FUZZ_FILES=20000 pytest -m slow tests/tinydispatch/test_ggml_fuzz.py` looks for longer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from export.config import OptGraph
from tests.fixtures_gguf import tiny_export
from tests.fixtures_opt import post_norm_export, pre_norm_export

_N_FILES = int(os.environ.get("FUZZ_FILES", "200"))
_FILES: dict[str, Callable[[], Path]] = {
    "opt": lambda: post_norm_export().files[2].path,
    "gpt2": lambda: pre_norm_export(OptGraph.GPT2).files[2].path,
    "qwen3": lambda: tiny_export().files[1].path,
}
# Runs in a process of its own and says which file it is at, so that a crash can be told and repeated.
_WORKER = """
import random, sys
from pathlib import Path
from tinydispatch.ggml.header import GgufError, read_header
from tinydispatch.ggml.open import open_model

source, scratch, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
content = source.read_bytes()
n_header = read_header(source).data_offset
refused = 0
for seed in range(count):
    print(seed, flush=True)
    draw = random.Random(seed)
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        # Most of a header is the vocabulary; keys and the tensor table at its ends decide more.
        low, high = draw.choice(((0, 400), (0, n_header), (n_header - 4000, n_header)))
        at = draw.randrange(max(low, 0), high)
        damaged[at] = draw.choice((0, 1, 0x7F, 0xFF, draw.randrange(256), damaged[at] ^ (1 << draw.randrange(8))))
    if draw.random() < 0.2:
        at, size = draw.randrange(n_header), draw.randrange(1, 64)
        damaged[at : at + size] = draw.choice((b"", bytes(size), draw.randbytes(size)))
    scratch.write_bytes(damaged)
    try:
        with open_model(scratch, 32, 1) as model:
            model.decode(model.tokenize("What's the weather in Oslo?", parse_special=True)[:16] or [1])
            model.load_state(model.save_state())
    except (GgufError, ValueError, RuntimeError):
        refused += 1
print("refused", refused)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(_FILES))
def test_no_damaged_file_ends_the_process(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WORKER, str(_FILES[kind]()), str(tmp_path / "damaged.gguf"), str(_N_FILES)]
    environment = os.environ | {"GGML_NO_BACKTRACE": "1"}  # a debugger would be attached otherwise
    limit_s = 60 + 2 * _N_FILES
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=limit_s, env=environment)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"seed {lines[-1] if lines else 'none'}: {done.stderr[-2000:]}"
    assert int(lines[-1].split()[1]) > _N_FILES // 4, "hardly any damage was noticed: is the header damaged at all?"
