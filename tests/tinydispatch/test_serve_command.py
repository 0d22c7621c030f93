from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures_playback import WEATHER
from tests.fixtures_server import MODEL, ONE_CALL, running
from tinydispatch.__main__ import command_parser, main
from tinydispatch.bundled import bundled_tools, load_tools
from tinydispatch.cli import serve
from tinydispatch.server.keys import ApiKeys
from tinydispatch.server.run import bind, greeting
from tinydispatch.server.settings import ServerSettings


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
        (["absent.gguf", "--registry", "absent"], "give neither a file nor --quantization with it"),
        (["--quantization", "q8_0", "--registry", "absent"], "give neither a file nor --quantization with it"),
        (["absent.gguf", "--stack", "absent.yaml"], "absent.yaml: cannot be read"),
        (
            ["absent.gguf", "--model-name", "assistant", "--stack", "configs/stack.yaml"],
            "'assistant' is served already",
        ),
        (["absent.gguf", "--port", "70000"], "127.0.0.1:70000 cannot be listened on"),
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
    parser = command_parser("serve", serve)
    arguments: Any = parser.parse_args(["models/nano.gguf", "--max-tools", "5", "--timeout", "2.5"])
    settings = serve._settings(arguments, None)
    assert (settings.model_name, settings.host, settings.port) == ("nano", "127.0.0.1", 8080)
    assert (settings.limits.max_tools, settings.limits.request_timeout_s) == (5, 2.5)


def test_without_a_file_the_default_model_is_served_under_the_products_name() -> None:
    settings = serve._settings(command_parser("serve", serve).parse_args([]), None)
    assert settings.model_name == "tinydispatch"


def test_a_port_in_use_is_said_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tinydispatch.server.logs.configure_logging", lambda: None)
    monkeypatch.setattr(serve, "Dispatcher", lambda *_, **__: pytest.fail("the model is loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert _serve("some.gguf", "--port", port) == 2
    assert f"127.0.0.1:{port} cannot be listened on: Address already in use; give another --port" in (
        capsys.readouterr().err
    )


def test_an_address_that_was_taken_refuses_until_the_server_listens() -> None:
    (taken,) = bind("127.0.0.1", 0)
    with taken, socket.socket() as client:
        assert client.connect_ex(taken.getsockname()) != 0
        taken.listen()
        with pytest.raises(ValueError, match="Address already in use"):
            bind(*taken.getsockname())


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_greeting_is_a_request_that_works() -> None:
    """What `serve` prints for people is pasted into a shell, and answered."""
    with running(ONE_CALL) as server:
        port = int(server.url.rpartition(":")[2])
        first, second = greeting(ServerSettings(MODEL), port).splitlines()
        assert f"{server.url}/v1" in first
        command = [*shlex.split(second), "-s"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert json.loads(answer)["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "get_weather"


def test_the_greeting_names_an_address_that_clients_can_use() -> None:
    keys = ApiKeys(("a-key-of-enough-letters",))
    everywhere = greeting(ServerSettings("m", host="0.0.0.0", keys=keys, tools=()), 80)
    assert "http://127.0.0.1:80/v1" in everywhere
    assert "authorization: Bearer KEY" in everywhere
    assert "a-key" not in everywhere
    assert '"tools"' not in everywhere
    assert "http://[::1]:80/v1" in greeting(ServerSettings("m", host="::1"), 80)


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
