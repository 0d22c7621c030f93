"""Quantized files are llama.cpp's, byte by byte, where a build of it is at hand to say so.

`TINYDISPATCH_QUANTIZER=/path/to/libllama.so python -m pytest -m slow tests/export/test_check_quantizer.py`
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from export.checkpoint import open_checkpoint
from export.config import ExportConfig, OptGraph, Quantization
from export.convert import write_gguf
from export.vocabulary import read_vocabulary
from scripts import check_quantizer
from scripts.check_quantizer import QuantizerError, compare_with_llama, main
from tests.fixtures_gguf import tiny_export
from tests.fixtures_models import make_tiny_llama, make_tiny_qwen3
from tests.fixtures_opt import make_tiny_opt, post_norm_export
from tinydispatch.ggml.header import read_header
from training.random_checkpoint import make_checkpoint
from training.tokenizer import load_tokenizer

_LIBRARY = os.environ.get("TINYDISPATCH_QUANTIZER")
_QUANTIZED = (Quantization.Q8_0, Quantization.Q5_K_M, Quantization.Q4_K_M)
# Wide enough for blocks of 256, and so many layers that the mixtures treat some of them otherwise.
_WIDE_OPT = {"hidden_size": 256, "ffn_dim": 512, "num_hidden_layers": 9}


def _make(kind: str, folder: Path) -> Path:
    if kind == "qwen3":
        return make_tiny_qwen3(folder, hidden_size=256, intermediate_size=512, num_hidden_layers=9)
    if kind == "llama":  # SmolLM2's widths: rows of 576 do not divide into blocks of 256, those of 1,536 do
        sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
        return make_tiny_llama(folder, num_hidden_layers=9, **sizes)
    if kind == "qwen35":
        make_checkpoint("tiny-qwen3.5", folder)
        return folder
    layout = {"word_embed_proj_dim": 256, "do_layer_norm_before": True} if kind == "gpt2" else {}
    return make_tiny_opt(folder, **(_WIDE_OPT | layout))


@pytest.mark.slow
@pytest.mark.skipif(_LIBRARY is None, reason="TINYDISPATCH_QUANTIZER names no libllama.so with llama_model_quantize")
@pytest.mark.parametrize("kind", ["qwen3", "llama", "qwen35", "gpt2", "opt"])
def test_quantized_files_are_llama_cpps(kind: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(_make(kind, tmp_path / "checkpoint"))
    tokenizer = load_tokenizer(checkpoint.path)
    vocabulary = read_vocabulary(checkpoint.path, tokenizer, checkpoint.config.vocab_size)
    config, paths = ExportConfig(opt_graph=OptGraph.AUTO), []
    for quantization in (Quantization.F32, *_QUANTIZED):
        paths.append(tmp_path / f"x-{quantization}.gguf")
        write_gguf(checkpoint, vocabulary, paths[-1], "x", quantization, config)
    assert read_header(paths[0]).architecture == kind
    assert main(["--library", str(_LIBRARY), *map(str, paths)]) == 0


def test_tensors_that_differ_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = Path(shutil.copy(tiny_export().files[1].path, tmp_path / "ours.gguf"))
    theirs = Path(shutil.copy(ours, tmp_path / "theirs.gguf"))
    monkeypatch.setattr(check_quantizer, "_run", lambda *arguments: shutil.copy(theirs, arguments[2]))
    arguments = ["--library", "any", str(tiny_export().files[0].path), str(ours)]
    n_tensors = len(read_header(ours).tensors)
    assert main(arguments) == 0
    assert f"{n_tensors} of {n_tensors} tensors equal" in capsys.readouterr().out
    header = read_header(theirs)
    changed = header.tensors[4]
    content = bytearray(theirs.read_bytes())
    content[header.data_offset + changed.offset + changed.n_bytes - 1] ^= 1
    theirs.write_bytes(content)
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert f"{n_tensors - 1} of {n_tensors} tensors equal" in printed
    assert f"  {changed.name} differs" in printed


def test_a_library_that_does_not_know_opt_is_given_the_tensors_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = post_norm_export()
    ours = Path(shutil.copy(report.files[2].path, tmp_path / "ours.gguf"))
    seen = []

    def knows_gpt2_alone(_library: Path, source: Path, target: Path, file_type: int) -> None:
        header = read_header(source)
        seen.append((header.architecture, header.metadata.get(f"{header.architecture}.block_count"), file_type))
        if header.architecture == "opt":
            raise QuantizerError("unknown model architecture")
        shutil.copy(ours, target)

    monkeypatch.setattr(check_quantizer, "_run", knows_gpt2_alone)
    assert compare_with_llama(tmp_path, report.files[0].path, ours).different == ()
    assert seen == [("opt", 3, 7), ("gpt2", 3, 7)]


def test_a_library_without_the_function_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(file.path) for file in tiny_export().files]
    assert main(["--library", "/absent/libllama.so", *files]) == 2
    error = capsys.readouterr().err
    assert error.startswith("check_quantizer: /absent/libllama.so: cannot quantize")
    assert "No such file" in error or "cannot open" in error
