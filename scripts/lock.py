"""`python -m scripts.lock [NAME==VERSION …]`: writes `requirements.lock` anew, with the hash of each file of each pin.

The pins are those of the lock; named ones replace theirs or are added, `NAME==` takes one out. The hashes are those of
all the files that the index has of a version, so that the lock holds on every platform. `uv` asks the index, which is
the one that uv is set up for (`pip install uv`; `UV_DEFAULT_INDEX` where it is another).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
_HEAD = """\
# Exact versions of everything that `make demo` and `make test` use besides torch, with the hashes of their files, by
# python -m scripts.lock. `make` installs it with --require-hashes, and torch (requirements-torch.lock) after it.
"""
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\\\s;]*)", re.MULTILINE)


def pins(text: str) -> dict[str, str]:
    """Version by name of every pin in a lock, names in lower case with hyphens."""
    return {normal(name): version for name, version in _PIN.findall(text)}


def normal(name: str) -> str:
    """A package's name as indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def changed(old: Mapping[str, str], wanted: Sequence[str]) -> dict[str, str]:
    """The pins after those on the command line.

    Raises:
        ValueError: one of them is no pin, or takes out what is not there.
    """
    new = dict(old)
    for word in wanted:
        found = _PIN.fullmatch(word)
        if found is None:
            raise ValueError(f"{word!r} is no pin: write NAME==VERSION, or NAME== to take it out")
        name, version = normal(found[1]), found[2]
        if name == "torch":
            raise ValueError("torch has its own lock, requirements-torch.lock, without hashes: edit it there")
        if version:
            new[name] = version
        elif new.pop(name, None) is None:
            raise ValueError(f"{name}: the lock has no such pin")
    return dict(sorted(new.items()))


def hashed(wanted: Mapping[str, str], uv: str) -> str:
    """The lock's lines for these pins.

    Raises:
        ValueError: the index does not have one of them, or cannot be asked.
    """
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "pins.in", Path(folder) / "pins.lock"
        source.write_text("".join(f"{name}=={version}\n" for name, version in wanted.items()), "utf-8")
        command = [uv, "pip", "compile", str(source), "--output-file", str(target), "--no-deps", "--generate-hashes"]
        command += ["--universal", "--python-version", "3.11", "--no-header", "--no-annotate", "--no-emit-index-url"]
        done = subprocess.run([*command, "--quiet"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"uv: {done.stderr.strip()}")
        text = target.read_text("utf-8")
    if pins(text) != dict(wanted):
        raise ValueError(f"uv left out {', '.join(sorted(set(wanted) - set(pins(text))))}")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """0: written, 2: bad input, and the lock is as it was."""
    parser = argparse.ArgumentParser(prog="python -m scripts.lock", description=__doc__)
    parser.add_argument("pins", nargs="*", metavar="NAME==VERSION")
    parser.add_argument("--lock", type=Path, default=LOCK, help="the file to write (default: the repository's)")
    arguments = parser.parse_args(argv)
    uv = shutil.which("uv")
    try:
        wanted = changed(pins(arguments.lock.read_text("utf-8")), arguments.pins)
        if uv is None:
            raise ValueError("uv is needed to ask for hashes: pip install uv")
        text = hashed(wanted, uv)
    except (OSError, ValueError) as error:
        print(f"lock: {error}", file=sys.stderr)
        return 2
    arguments.lock.write_text(_HEAD + text, "utf-8")
    print(f"{arguments.lock}: {len(wanted)} pins, {text.count('--hash=')} hashes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
