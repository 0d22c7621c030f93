from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest

from scripts import bench_dispatch
from scripts.bench_dispatch import Bench, Question
from scripts.bench_first_call import FirstCall
from scripts.bench_server import LlamaServer
from tests.fixtures_playback import TODAY, WEATHER, PlaybackRuntime
from tinydispatch.formats import render_calls, with_reference_date
from tinydispatch.tools import Message, Role, Tool, ToolCall

_CALL = ToolCall("get_weather", {"location": "Oslo"})


class _Fake(LlamaServer):
    def __init__(self) -> None:
        super().__init__("", 0)
        self.asked: list[str] = []

    def ask(self, messages: Sequence[Message], tools: Sequence[Tool], max_new_tokens: int) -> tuple[ToolCall, ...]:
        self.asked.append(messages[-1].content)
        assert max_new_tokens > 0
        return (_CALL,) if tools else ()

    def cpu_seconds(self) -> float:
        return float(len(self.asked))


def _questions(*texts: str) -> list[Question]:
    return [Question(with_reference_date([Message(Role.USER, text)], TODAY), (WEATHER,)) for text in texts]


def _bench(server: LlamaServer, *, is_cpu_time: bool) -> Bench:
    runtimes = {is_native: PlaybackRuntime(render_calls([_CALL])) for is_native in (False, True)}
    return Bench(runtimes, bench_dispatch._VARIANTS, server, is_cpu_time=is_cpu_time)


def test_no_round_knows_the_replies_of_the_one_before() -> None:
    bench = _bench(_Fake(), is_cpu_time=False)
    bench.run(_questions("Oslo?"), rounds=2)
    assert [done.tokens.accepted for done in bench.measured["engine"].completions] == [
        done.tokens.accepted for done in bench.measured["  without recall"].completions
    ]


def test_every_variant_answers_every_question_and_the_first_round_is_not_counted() -> None:
    server = _Fake()
    bench = _bench(server, is_cpu_time=True)
    bench.run(_questions("Oslo?", "Oslo now?"), rounds=2)
    assert server.asked == ["Oslo?", "Oslo now?"] * 3
    assert len(bench.measured) == 1 + len(bench_dispatch._VARIANTS)
    for result in bench.measured.values():
        assert (len(result.latencies_ms), result.calls) == (4, [(_CALL,)] * 4)
    # The other process's time counts for the server alone: a second for each question here.
    assert min(bench.measured["llama.cpp server"].latencies_ms) >= 1000
    assert max(bench.measured["engine"].latencies_ms) < 1000


def test_the_tables_hold_ratios_and_where_the_time_went() -> None:
    bench = _bench(_Fake(), is_cpu_time=False)
    bench.run(_questions("Oslo?"), rounds=1)
    table = bench_dispatch._table(bench.measured)
    assert "llama.cpp server" in table
    assert "  without forced ids" in table
    assert "1/1" in table
    split = bench_dispatch._split(bench.measured["engine"])
    for part in ("prefill", "forced", "sampled", "grammar"):
        assert f"{part} " in split


def test_a_first_call_is_compared_with_a_warm_one() -> None:
    assert "30.0 ms with a saved prefix (90.0 ms without), warm 20.0 ms: 1.50 times" in str(FirstCall(90, 30, 20))


class _Handler(BaseHTTPRequestHandler):
    answer: ClassVar[dict[str, Any]] = {}
    bodies: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        body = json.dumps(self.answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_server_is_asked_with_tools_and_cache_and_its_calls_are_read(address: str) -> None:
    function = {"name": "get_weather", "arguments": '{"location": "Oslo"}'}
    broken = {"name": "get_weather", "arguments": '{"loc'}
    _Handler.answer = {"choices": [{"message": {"tool_calls": [{"function": function}, {"function": broken}]}}]}
    server = LlamaServer(address, 0)
    assert server.ask([Message(Role.USER, "Oslo?")], [WEATHER], 9) == (_CALL, ToolCall("get_weather", {}))
    body = _Handler.bodies[-1]
    assert (body["temperature"], body["max_tokens"], body["cache_prompt"]) == (0, 9, True)
    assert body["tools"] == [WEATHER.to_openai()]
    _Handler.answer = {"error": {"message": "no"}}
    assert server.ask([Message(Role.USER, "Oslo?")], [WEATHER], 9) == ()
    assert server.errors == ["{'error': {'message': 'no'}}"]
