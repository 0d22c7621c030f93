from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fixtures_gguf import QUESTION, TODAY, WEATHER, taught_export, tiny_export
from tinydispatch.__main__ import main
from tinydispatch.ggml.runtime import ComputeError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYDISPATCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tools_file(tmp_path: Path) -> Path:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([WEATHER.to_openai()]), "utf-8")
    return path


def _call(*arguments: object) -> int:
    return main(["call", *map(str, arguments)])


def test_the_call_is_the_one_document_on_stdout(tools_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = taught_export().files[1].path
    assert _call(model, QUESTION, "--tools", tools_file, "--date", TODAY, "--threads", 1) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"name": "get_weather", "arguments": {"location": "Oslo"}}
    assert "load" in captured.err
    assert "prefill" in captured.err


def test_the_json_document_holds_timings_and_problems(tools_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = taught_export().files[1].path
    assert _call(model, QUESTION, "--tools", tools_file, "--date", TODAY, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["calls"] == [{"name": "get_weather", "arguments": {"location": "Oslo"}}]
    assert {"load_ms", "prefill_ms", "decode_ms", "total_ms"} < set(document["timings"])
    assert 0 <= document["confidence"] <= 1
    assert set(document["confidences"][0]) == {"tool", "arguments", "call"}
    assert document["violations"] == document["unparsed"] == []


def test_an_unusable_answer_has_a_status_of_its_own(tools_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call(tiny_export().files[0].path, QUESTION, "--tools", tools_file, "--date", TODAY) == 1
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert "warning:" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.gguf", "hi"], "absent.gguf: no such file"),
        (["runs/*.gguf", "hi"], "no file matches runs/*.gguf"),
        (["a.gguf", "b.gguf", "hi"], "2 model files match (a.gguf, b.gguf); name one"),
        (["a.gguf", "what's", "up"], "expected one sentence in quotes"),
        (["a.gguf"], "expected a model file and a sentence"),
        (["a.gguf", "  "], "the text is empty"),
        (["a.gguf", "hi", "--tools", "absent.json"], "absent.json: cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_date_that_is_none_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _call("a.gguf", "hi", "--date", "19.3.2026")
    assert caught.value.code == 2
    assert "'19.3.2026' is not a date" in capsys.readouterr().err


def test_too_many_threads_or_none_are_refused(tools_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call(tiny_export().files[0].path, "hi", "--tools", tools_file, "--threads", 0) == 2
    assert "threads=0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [ComputeError("too little memory for 415 ids"), MemoryError("too little memory for 415 ids")]
)
def test_too_little_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_arguments: object, **_settings: object) -> None:
        raise error

    monkeypatch.setattr("tinydispatch.cli.call.Dispatcher", refuse)
    assert main(["call", "any.gguf", "hi"]) == 2
    assert capsys.readouterr().err == "tinydispatch: too little memory for 415 ids\n"
