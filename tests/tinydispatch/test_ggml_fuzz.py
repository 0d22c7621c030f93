"""Damaged model files: an error or a working model, never the end of the process.

`python -m scripts.fuzz_gguf MODEL.gguf … --minutes 10` looks for longer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from export.config import OptGraph
from scripts import fuzz_gguf
from scripts.fuzz_gguf import Fate
from scripts.gguf_damage import Kind, damage
from scripts.gguf_parts import Parts, take_apart
from tests.fixtures_gguf import tiny_export, tiny_llama_export
from tests.fixtures_opt import post_norm_export, pre_norm_export

_N_FILES = int(os.environ.get("FUZZ_FILES", "200"))
_FILES: dict[str, Callable[[], Path]] = {
    "opt": lambda: post_norm_export().files[2].path,
    "gpt2": lambda: pre_norm_export(OptGraph.GPT2).files[2].path,
    "qwen3": lambda: tiny_export().files[1].path,
    "llama": lambda: tiny_llama_export().files[4].path,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(_FILES))
def test_no_damaged_file_ends_the_process(kind: str) -> None:
    path = _FILES[kind]()
    found = fuzz_gguf.fuzz(path, 0, _N_FILES, seconds=3600, hang_s=120)
    assert found.failures == []
    assert found.n_files == _N_FILES
    assert found.count(Fate.HEADER) > _N_FILES // 4, "hardly any damage was noticed: is the header damaged at all?"
    assert found.count(Fate.LATER) > _N_FILES // 20, "hardly any damaged file reaches what is behind the header"


def test_a_worker_that_dies_is_a_finding_with_its_seed_and_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    worker = tmp_path / "worker"
    worker.write_text(
        "#!/bin/sh\n"
        'while [ "$1" != --first ]; do shift; done\n'
        'echo "at $2"\n'
        'if [ "$2" = 0 ]; then echo "header 0 cut"; echo "at 1"; kill -SEGV $$; fi\n'
        'echo "ran $2 text"\n',
        "utf-8",
    )
    worker.chmod(0o755)
    monkeypatch.setattr(fuzz_gguf.sys, "executable", str(worker))
    found = fuzz_gguf.fuzz(tiny_export().files[1].path, 0, 3, seconds=60, hang_s=30)
    assert [(seed, "status -11" in what) for seed, what in found.failures] == [(1, True)]
    assert found.fates == {(Kind.CUT, Fate.HEADER): 1, (Kind.TEXT, Fate.RAN): 1}
    assert [path.name for path in tmp_path.glob("fuzz-*")] == [f"fuzz-{tiny_export().files[1].path.stem}-1.gguf"]


def test_a_worker_that_says_nothing_is_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    worker = tmp_path / "worker"
    worker.write_text("#!/bin/sh\necho 'at 7'\nexec sleep 30\n", "utf-8")
    worker.chmod(0o755)
    monkeypatch.setattr(fuzz_gguf.sys, "executable", str(worker))
    found = fuzz_gguf.fuzz(tiny_export().files[1].path, 7, 1, seconds=60, hang_s=0.5)
    assert found.failures == [(7, "no end after 0.5 s")]


@pytest.fixture(scope="module")
def parts() -> Parts:
    return take_apart(tiny_export().files[1].path)


def test_a_file_in_pieces_is_the_file(parts: Parts) -> None:
    assert parts.to_bytes() == tiny_export().files[1].path.read_bytes()


def test_the_same_seed_makes_the_same_file_and_every_kind_makes_another(parts: Parts) -> None:
    whole = parts.to_bytes()
    kinds, unchanged = set(), 0
    for seed in range(400):
        kind, content = damage(parts, seed)
        kinds.add(kind)
        unchanged += content == whole
    assert kinds == set(Kind)
    assert unchanged < 40
    assert damage(parts, 3) == damage(parts, 3)
    assert parts.to_bytes() == whole, "the pieces themselves stay as they were"
