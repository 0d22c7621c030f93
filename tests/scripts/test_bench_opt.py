from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.config import Quantization
from scripts import bench_opt
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
