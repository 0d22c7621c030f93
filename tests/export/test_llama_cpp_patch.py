from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from export.llama_cpp.build import BuildError, install, is_patched, main, patch_source
from tinydispatch.ggml.architectures import ARCHITECTURES, Shape
from tinydispatch.ggml.library import LIBRARY_VARIABLE, find_library

_FOLDER = Path(__file__).parents[2] / "export" / "llama_cpp"
_PATCH = (_FOLDER / "opt.patch").read_text("utf-8")
_ADDED = [line[1:] for line in _PATCH.splitlines() if line.startswith("+") and not line.startswith("+++")]


def _original(folder: Path) -> Path:
    """A source made of nothing but the lines that the patch expects around its own."""
    for section in re.split(r"^--- ", _PATCH, flags=re.MULTILINE)[1:]:
        name = re.search(r"^\+\+\+ b/(\S+)", section, re.MULTILINE)
        assert name
        if section.startswith("/dev/null"):
            continue
        text = ""
        for first, hunk in re.findall(r"^@@ -(\d+).*?@@.*?\n(.*?)(?=^@@|\Z)", section, re.MULTILINE | re.DOTALL):
            text += "\n" * (int(first) - 1 - text.count("\n"))
            text += "".join(line[1:] + "\n" for line in hunk.splitlines() if not line.startswith("+"))
        path = folder / name[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return folder


@pytest.mark.skipif(shutil.which("patch") is None, reason="patch(1) is not installed")
def test_the_patch_fits_its_lines_exactly_and_brings_the_new_file(tmp_path: Path) -> None:
    patched = tmp_path / "patched"
    patch_source(_original(tmp_path / "source"), patched)
    assert '{ LLM_ARCH_OPT,              "opt"              },' in (patched / "src" / "llama-arch.cpp").read_text(
        "utf-8"
    )
    assert is_patched(patched)


@pytest.mark.skipif(shutil.which("patch") is None, reason="patch(1) is not installed")
def test_a_source_that_differs_is_refused_and_leaves_no_half_patched_one(tmp_path: Path) -> None:
    source = _original(tmp_path / "source")
    path = source / "src" / "llama-arch.cpp"
    path.write_text(path.read_text("utf-8").replace("LLM_ARCH_GPT2", "LLM_ARCH_GPT3"), "utf-8")
    with pytest.raises(BuildError, match="cannot patch"):
        patch_source(source, tmp_path / "patched")
    assert not (tmp_path / "patched").exists()


def test_a_folder_without_llama_cpp_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("cmake") is None or shutil.which("patch") is None:
        pytest.skip("cmake or patch(1) is not installed")
    assert main(["--out", str(tmp_path / "out"), "--source", str(tmp_path)]) == 2
    assert "holds no source of llama.cpp" in capsys.readouterr().err


def test_installed_libraries_are_the_ones_that_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    built = tmp_path / "bin"
    built.mkdir()
    with pytest.raises(BuildError, match=r"holds no libllama\.so"):
        install(built)
    (built / "libllama.so.0").write_text("new")
    (built / "libllama.so").symlink_to("libllama.so.0")
    install(built)
    folder = install(built)
    assert find_library() == (folder / "libllama.so.0").resolve()
    assert find_library().read_text() == "new"


def test_the_patch_reads_every_tensor_that_our_graph_reads() -> None:
    before = Shape(ARCHITECTURES["opt"], 1, 64, 128, 4, 16, 300, 1e-5, 64, 4, 16)
    shape = replace(before, embedding_width=32, is_pre_norm=False, has_final_norm=False)
    names = {rule.name for each in (shape, before) for rule in each.rules()}
    known = {  # llama.cpp's names of those that it had before
        "token_embd": "TOKEN_EMBD",
        "output": "OUTPUT",
        "position_embd": "POS_EMBD",
        "output_norm": "OUTPUT_NORM",
        "attn_output": "ATTN_OUT",
        "attn_norm": "ATTN_NORM",
        "attn_output_norm": "ATTN_OUT_NORM",
        "layer_output_norm": "LAYER_OUT_NORM",
        "ffn_norm": "FFN_NORM",
        "ffn_up": "FFN_UP",
        "ffn_down": "FFN_DOWN",
        "project_in": "PROJECT_IN",
        "project_out": "PROJECT_OUT",
    }
    text = "\n".join(_ADDED)
    for name in names:
        stem = name.rsplit(".", 1)[0].removeprefix("blk.0.")
        wanted = "create_tensor_qkv" if stem in ("attn_q", "attn_k", "attn_v") else f"LLM_TENSOR_{known[stem]},"
        assert wanted in text, name
