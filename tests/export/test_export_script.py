from __future__ import annotations

from pathlib import Path

import pytest

from scripts.export_gguf import main
from tests.fixtures_gguf import tiny_export


def test_the_script_exports_a_checkpoint_and_prints_what_it_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tiny_export().checkpoint
    status = main(
        ["--config", "nano", "--checkpoint", str(checkpoint), "--out", str(tmp_path), "export.quantizations=[q8_0]"]
    )
    assert status == 0
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["nano-export.json", "nano-q8_0.gguf"]
    printed = capsys.readouterr().out
    assert "nano-q8_0.gguf" in printed
    assert "texts tokenize alike" in printed


def test_a_missing_checkpoint_and_an_unknown_key_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", "nano", "--checkpoint", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"export_gguf: {tmp_path}: no checkpoint there (no config.json)\n"
    assert main(["--config", "nano", "export.quantisations=[f16]"]) == 2
    assert "did you mean 'quantizations'" in capsys.readouterr().err
