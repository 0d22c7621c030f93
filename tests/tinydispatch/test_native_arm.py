"""The native decoder's ARM variants, cross-compiled and run under emulation: the same numbers as on this machine.

Skipped without an aarch64 compiler (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross) and qemu-user.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.fixtures_native import NATIVE_FILES
from tests.tinydispatch.reference_decoder import least_difference
from tinydispatch.ggml.header import GgufHeader, TensorInfo
from tinydispatch.native import cache, library, weights
from tinydispatch.native import model as native_model
from tinydispatch.native.bindings import Decoder, Layer
from tinydispatch.native.model import NativeModel

_COMPILER, _EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
# Early processors of each kind: they stop at an instruction that came later.
_PROCESSORS = {"neon-dotprod": "cortex-a76", "neon": "cortex-a53"}
_MEMORY_BYTES = 64 << 20
_IDS = [int(token) for token in np.random.default_rng(0).integers(20, 320, 150)]

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, (_COMPILER, _EMULATOR))), reason=f"needs {_COMPILER} and {_EMULATOR}"
)


class Emulated:
    """Stands in for `NativeLibrary`: each call is a process under emulation, and everything lies in a file's pages."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.c = self
        descriptor, file = tempfile.mkstemp(dir=folder)
        os.truncate(descriptor, _MEMORY_BYTES)
        self._memory = mmap.mmap(descriptor, _MEMORY_BYTES)
        os.close(descriptor)
        self._base, self._used = np.frombuffer(self._memory, dtype=np.uint8).ctypes.data, 0
        self._command = [*command, file, str(self._base)]

    def take(self, _: int, n_bytes: int, **__: int) -> memoryview:
        """In place of `mmap.mmap`."""
        start = self._used
        self._used += -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        return memoryview(self._memory)[start : self._used]

    def put(self, contents: bytes) -> int:
        """Keep a copy; returns its address."""
        address = self._base + self._used
        self.take(-1, len(contents))[: len(contents)] = contents
        return address

    def open(self, header: GgufHeader, **_: bool) -> SimpleNamespace:
        """In place of `MappedFile`."""
        start = self.put(header.path.read_bytes()) + header.data_offset

        def address_of(tensor: TensorInfo) -> int:
            return start + tensor.offset

        def nothing() -> None:
            pass

        return SimpleNamespace(address_of=address_of, give_back=lambda _: None, give_back_all=nothing, close=nothing)

    def tinydispatch_pack(self, *arguments: int) -> None:
        self._run("pack", *arguments)

    def tinydispatch_compute(self, reference: Any, n_ids: int, first: int, n_outputs: int, out: int) -> None:
        used, decoder = self._used, Decoder.from_buffer_copy(reference._obj)
        layers = self.put(ctypes.string_at(decoder.layers, decoder.n_layers * ctypes.sizeof(Layer)))
        decoder.layers = ctypes.cast(layers, ctypes.POINTER(Layer))
        if decoder.rotation:
            n_angles = decoder.n_cells * decoder.head_width
            decoder.rotation = self.put(ctypes.string_at(decoder.rotation, 4 * n_angles))
        logits = bytes(4 * n_outputs * decoder.head.n_out)
        address = self.put(logits)
        self._run("compute", self.put(bytes(decoder)), n_ids, first, n_outputs, address)
        ctypes.memmove(out, address, len(logits))
        self._used = used

    def tinydispatch_start_threads(self, *_: int) -> int:
        return 1  # each process starts its own

    def tinydispatch_stop_threads(self, _: int) -> None:
        pass

    def _run(self, *arguments: object) -> None:
        subprocess.run([*self._command, *map(str, arguments)], check=True, timeout=60)


@pytest.fixture(scope="module", params=list(_PROCESSORS))
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """How one of the variants is run."""
    variant = next(each for each in library.VARIANTS if each.name == request.param)
    flags = [flag for flag in (*library._FLAGS, *variant.flags) if flag not in ("-shared", "-fPIC")]
    program = tmp_path_factory.mktemp(variant.name) / "probe"
    source, folder = Path(__file__).with_name("native_probe.c"), Path(library.__file__).parent
    subprocess.run([_COMPILER, "-static", *flags, f"-I{folder}", source, "-o", program, "-lm"], check=True)
    return [_EMULATOR, "-cpu", _PROCESSORS[variant.name], str(program)]


@pytest.fixture(scope="module", params=list(NATIVE_FILES))
def path(request: pytest.FixtureRequest) -> Path:
    """The module's, and so made before `find_native` is replaced: an export computes too, to verify its files."""
    return NATIVE_FILES[request.param]()


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]) -> None:
    def find_native() -> Emulated:
        emulated = Emulated(command, tmp_path)
        monkeypatch.setattr(cache, "mmap", SimpleNamespace(mmap=emulated.take, MAP_PRIVATE=0, MAP_ANONYMOUS=0))
        monkeypatch.setattr(weights, "MappedFile", emulated.open)
        return emulated

    monkeypatch.setattr(native_model, "find_native", find_native)


def test_a_few_ids_have_the_logits_of_the_file_s_numbers(path: Path) -> None:
    with NativeModel(path, 64, 1) as model:
        assert least_difference(model, _IDS[:60]) < 2e-6  # as in test_native_model.py


def test_an_id_has_the_same_logits_in_whatever_batch_and_with_two_threads(path: Path) -> None:
    with NativeModel(path, 160, 1) as model:
        at_once = model.decode_all(_IDS)
        model.truncate(0)
        for start, stop in pairwise((0, 1, 3, 6, 10, 15, 22, 23, 86, 150)):
            np.testing.assert_array_equal(model.decode_all(_IDS[start:stop]), at_once[start:stop])
    with NativeModel(path, 160, 2) as shared:
        np.testing.assert_array_equal(shared.decode_all(_IDS), at_once)
