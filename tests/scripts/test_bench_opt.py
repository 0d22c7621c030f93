from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.config import Quantization
from scripts import bench_opt
from scripts.bench_gguf import Bench, BenchError, Contestant, bytes_per_token, compare
from scripts.gguf_speed import MemoryReader, clock_for
from tinydispatch.ggml.header import read_header
from tinydispatch.ggml.open import open_model

_SMALL = {"n_layers": 2, "width": 64, "feed_forward_width": 96, "n_heads": 4, "n_positions": 64, "n_vocab": 400}


@pytest.mark.parametrize(
    ("architecture", "pre_norm", "embedding"), [("gpt2", True, 64), ("opt", True, 64), ("opt", False, 32)]
)
def test_a_file_made_for_timing_runs_and_has_the_asked_shape(
    architecture: str, pre_norm: bool, embedding: int, tmp_path: Path
) -> None:
    shape = replace(
        bench_opt._SAME_SIZE, **_SMALL, embedding_width=embedding, is_pre_norm=pre_norm, has_final_norm=pre_norm
    )
    path = tmp_path / "model.gguf"
    bench_opt.write_model(path, architecture, shape, Quantization.Q8_0)
    assert read_header(path).architecture == architecture
    with open_model(path, 32, 1) as model:
        assert np.isfinite(model.decode(list(range(5, 20)))).all()


def test_the_two_files_that_are_compared_hold_as_many_bytes_of_matrices(tmp_path: Path) -> None:
    shape = replace(bench_opt._SAME_SIZE, **_SMALL, embedding_width=64)
    sizes = []
    for architecture in ("gpt2", "opt"):
        path = tmp_path / f"{architecture}.gguf"
        bench_opt.write_model(path, architecture, shape, Quantization.Q8_0)
        sizes.append(sum(tensor.n_bytes for tensor in read_header(path).tensors))
    assert sizes[0] == sizes[1]


def test_files_take_turns_in_processes_of_their_own_and_share_a_table(tmp_path: Path) -> None:
    shape = replace(bench_opt._SAME_SIZE, **_SMALL, embedding_width=64)
    paths = []
    for architecture in ("gpt2", "opt"):
        paths.append(tmp_path / f"{architecture}.gguf")
        bench_opt.write_model(paths[-1], architecture, shape, Quantization.Q8_0)
    contestants = [Contestant(path.stem, path) for path in paths]
    table = compare(contestants, Bench(prompt=8, generate=2, repeats=1, threads=1)).splitlines()
    assert [line.split()[0] for line in table[2:]] == ["gpt2", "opt"]
    assert table[2].split()[3] == table[2].split()[5] == "1.00"


def test_a_contestant_that_cannot_run_says_why(tmp_path: Path) -> None:
    path = tmp_path / "opt.gguf"
    shape = replace(bench_opt._SAME_SIZE, **_SMALL, embedding_width=64)
    bench_opt.write_model(path, "opt", shape, Quantization.Q8_0)
    with pytest.raises(BenchError, match="unknown model architecture"):
        compare([Contestant("unpatched", path, is_llama_cpp=True)], Bench(8, 2, 1, 1))


def test_a_token_reads_all_weights_but_the_positions(tmp_path: Path) -> None:
    path = tmp_path / "opt.gguf"
    shape = replace(bench_opt._SAME_SIZE, **_SMALL, embedding_width=64)
    bench_opt.write_model(path, "opt", shape, Quantization.Q8_0)
    tensors = {tensor.name: tensor.n_bytes for tensor in read_header(path).tensors}
    assert bytes_per_token(path) == sum(tensors.values()) - tensors["position_embd.weight"]


def test_reading_memory_is_timed() -> None:
    assert MemoryReader(2).bandwidth(clock_for(2)) > 1e8


def test_llama_cpp_comes_first_and_is_the_patched_one_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(bench_opt, "write_model", lambda *given: written.append(given[1]))
    without = bench_opt._contestants(tmp_path, Quantization.Q8_0, None)
    assert written[:2] == ["opt", "gpt2"]
    assert "llama.cpp" in without[0].label
    assert not any(contestant.library for contestant in without)
    library = tmp_path / "libllama.so"
    patched = bench_opt._contestants(tmp_path, Quantization.Q8_0, library)
    assert [contestant.is_llama_cpp for contestant in patched] == [True, True, False, False]
    assert [contestant.library for contestant in patched] == [library, library, library, None]
    found, native = str(library), "TINYDISPATCH_NATIVE"
    assert patched[2].variables == {"TINYDISPATCH_LLAMA_LIB": found, native: "off"}
    assert [contestant.variables.get(native) for contestant in patched] == [None, None, "off", None]
    assert len({contestant.path for contestant in patched}) == 1  # the very same file
