from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from tests.fixtures_gguf import QUESTION, WEATHER, taught_export
from tests.fixtures_playback import PlaybackRuntime
from tinydispatch import bench
from tinydispatch.__main__ import main
from tinydispatch.cli.bench import report
from tinydispatch.cli.memory import give_back_freed_memory
from tinydispatch.native.library import find_native


@pytest.fixture
def tools_file(tmp_path: Path) -> Path:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([WEATHER.to_openai()]), "utf-8")
    return path


def test_the_document_holds_speed_its_split_and_memory(tools_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = taught_export().files[1].path
    command = ["bench", str(model), "--tools", str(tools_file), "--text", QUESTION, "--text", "hi", "--json"]
    assert main([*command, "--rounds", "2", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["threads"], found["n_calls"]) == (model.name, 1, 4)
    assert found["computed_by"].startswith("the native decoder (" if find_native() else "llama.cpp")
    assert 0 < found["median_ms"] <= found["p95_ms"]
    assert found["prefill_per_s"] > 0 < found["decode_per_s"]
    assert found["prompt_tokens"] > 50
    assert sum(found["split"].values()) <= 2 * found["p95_ms"]
    # The interpreter alone takes more than 10 MB.
    assert found["memory"]["peak_mb"] > 10
    assert found["memory"]["own_mb"] + found["memory"]["mapped_mb"] <= found["memory"]["peak_mb"] + 1


def test_the_report_has_a_line_for_each_part_of_a_call(tools_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(taught_export().files[1].path), "--tools", str(tools_file), "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line[:13].strip() for line in lines]
    assert names[2:] == [
        "computed by", "load", "first call", "prefill", "decode", "call", "prefill", "forced", "sampled", "grammar",
        "rest", "peak memory",
    ]  # fmt: skip


def test_only_what_is_kept_of_the_prompt_is_left_out_of_later_calls() -> None:
    load = bench.Workload((QUESTION, "hi"), rounds=3)
    found = bench.measure(taught_export().files[1].path, [WEATHER], load, threads=1)
    # The first call reads the whole prompt, and those that count a few words of it.
    assert found.split.prefill_ms < 1000 * found.prompt_tokens / found.prefill_per_s
    assert "8 calls" not in report(found)
    assert "6 calls" in report(found)


def test_tokens_a_second_are_measured_as_far_as_the_context_has_room() -> None:
    runtime = PlaybackRuntime("ok", n_ctx=10)
    runtime.decode([1] * 8)
    assert bench._decode_per_s(runtime) > 0
    assert len(runtime.cached_ids) == 10
    assert bench._decode_per_s(runtime) == 0


def test_the_context_can_be_filled_to_its_end() -> None:
    runtime = PlaybackRuntime("ok", n_ctx=100)
    runtime.decode([1] * 30)
    bench._fill(runtime)
    assert len(runtime.cached_ids) == 100
    filled: list[PlaybackRuntime] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "_fill", filled.append)
        path = taught_export().files[1].path
        for fills_context in (False, True):
            bench.measure(path, [WEATHER], bench.Workload((QUESTION,), 1, 8, fills_context), threads=1)
    assert len(filled) == 1


def test_without_proc_the_peak_comes_from_the_system_call(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bench.memory()
    monkeypatch.setattr(bench, "_STATUS", Path("/absent"))
    found = bench.memory()
    assert (found.own_mb, found.mapped_mb) == (None, None)
    assert 0.5 < found.peak_mb / whole.peak_mb < 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.gguf"], "absent.gguf: no such file"),
        (["absent.gguf", "--rounds", "0"], "--rounds 0: must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_tools_that_do_not_fit_the_context_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    model = taught_export().files[1].path
    assert main(["bench", str(model), "--context", "64"]) == 2
    assert f"{model}: the prompt of" in capsys.readouterr().err


def test_freed_memory_goes_back_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    assert give_back_freed_memory() is (platform.libc_ver()[0] == "glibc")
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    assert not give_back_freed_memory()
