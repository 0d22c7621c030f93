from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures_playback import WEATHER
from tinydispatch.__main__ import main
from tinydispatch.bundled import bundled_tools, load_tools
from tinydispatch.cli import serve


def _serve(*arguments: object) -> int:
    return main(["serve", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.gguf"], "absent.gguf: no such file"),
        (["absent.gguf", "--host", "0.0.0.0"], "there is no API key"),
        (["absent.gguf", "--timeout", "0"], "request_timeout_s=0"),
        (["absent.gguf", "--tools", "absent.json"], "absent.json: cannot be read"),
        (["absent.gguf", "--keys-file", "absent.txt"], "absent.txt: the keys cannot be read"),
        (["absent.gguf", "--keep-days", "3"], "need --dispatch-log"),
        ([], "either a model file or --registry"),
        (["absent.gguf", "--registry", "absent"], "either a model file or --registry"),
        (["--registry", "absent"], "no champion yet"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TINYDISPATCH_API_KEYS", raising=False)
    monkeypatch.setattr("tinydispatch.server.logs.configure_logging", lambda: None)
    assert _serve(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_without_the_extra_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda _: None)
    assert _serve("absent.gguf") == 2
    assert "pip install 'tinydispatch[serve]'" in capsys.readouterr().err


def test_the_options_become_the_servers_settings() -> None:
    parser = argparse.ArgumentParser()
    serve.add_parser(parser.add_subparsers())
    arguments: Any = parser.parse_args(["serve", "models/nano.gguf", "--max-tools", "5", "--timeout", "2.5"])
    settings = serve._settings(arguments, None)
    assert (settings.model_name, settings.host, settings.port) == ("nano", "127.0.0.1", 8080)
    assert (settings.limits.max_tools, settings.limits.request_timeout_s) == (5, 2.5)


def test_tools_prints_what_the_other_commands_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps({"tools": [{"name": "get_weather", "inputSchema": dict(WEATHER.parameters)}]}))
    assert main(["tools", "--tools", str(path)]) == 0
    path.write_text(capsys.readouterr().out)
    assert [tool.name for tool in load_tools(path)] == ["get_weather"]
    assert main(["tools"]) == 0
    path.write_text(capsys.readouterr().out)
    assert load_tools(path) == bundled_tools()


def test_the_package_and_its_commands_need_no_server_and_no_torch() -> None:
    code = (
        "import sys, tinydispatch.__main__; "
        "print([name for name in ('torch', 'fastapi', 'uvicorn', 'starlette', 'mcp', 'openai') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
