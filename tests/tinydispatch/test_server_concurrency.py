"""One model and many clients: waiting, leaving, running out of time, and a model that is swapped under load."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fixtures_server import MODEL, ONE_CALL, TOOLS, GatedRuntime, Running, make_dispatcher, running, wait_until
from tinydispatch.server.holder import ModelHolder, QueueFullError, Serving, StoppingError
from tinydispatch.server.settings import Limits

FEW = Limits(max_waiting=2)


def _hold(server: Running, pool: ThreadPoolExecutor) -> Future[httpx.Response]:
    """A request that the model has begun and does not get on with."""
    server.runtime.shut()
    held = pool.submit(server.post, server.ask())
    assert server.runtime.entered.wait(60)
    return held


def _hang_up(server: Running, **more: Any) -> socket.socket:
    """A client that sends a request and never reads."""
    body = json.dumps(server.ask(**more)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
    connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    return connection


def test_health_and_metrics_answer_while_a_call_is_computed() -> None:
    with running() as server, ThreadPoolExecutor() as pool:
        held = _hold(server, pool)
        health = server.health()
        assert (health["status"], health["serving"], health["waiting"]) == ("ok", "first", 0)
        assert server.metric("tinydispatch_busy") == 1
        assert not held.done()
        server.runtime.gate.set()
        assert held.result().status_code == 200
        assert server.metric('tinydispatch_requests_total{path="/v1/chat/completions",status="200"}') == 1
        assert server.metric('tinydispatch_replies_total{kind="calls"}') == 1
        assert server.metric('tinydispatch_tokens_total{kind="prompt"}') > 50


def test_metrics_have_the_names_and_units_that_prometheus_expects() -> None:
    with running() as server:
        assert server.post(server.ask()).status_code == 200
        text = httpx.get(f"{server.url}/metrics").text
    own = [family for family in text_string_to_metric_families(text) if family.name.startswith("tinydispatch_")]
    kinds = {family.name: family.type for family in own if not family.name.endswith("_created")}
    assert {"tinydispatch_requests", "tinydispatch_request_seconds", "tinydispatch_waiting_requests"} <= set(kinds)
    assert all(family.documentation for family in own)
    samples = {sample.name for family in own for sample in family.samples if family.type == "counter"}
    assert samples
    assert all(name.endswith(("_total", "_created")) for name in samples)
    assert all(name.endswith("_seconds") for name, kind in kinds.items() if kind == "histogram")


def test_a_full_queue_answers_429_and_serves_what_it_took() -> None:
    with running(limits=FEW) as server, ThreadPoolExecutor() as pool:
        held = [_hold(server, pool)]
        for n_waiting in (1, 2):
            held.append(pool.submit(server.post, server.ask()))
            wait_until(lambda n_waiting=n_waiting: server.holder.n_waiting == n_waiting)
        with pytest.raises(openai.RateLimitError) as caught:
            server.openai().chat.completions.create(**server.ask())
        assert caught.value.code == "rate_limit_exceeded"
        assert float(caught.value.response.headers["retry-after-ms"]) >= 100
        server.runtime.gate.set()
        assert [future.result().status_code for future in held] == [200, 200, 200]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_midway_stops_the_model(stream: bool) -> None:
    with running("word " * 200) as server:
        server.runtime.shut()
        connection = _hang_up(server, stream=stream)
        assert server.runtime.entered.wait(60)
        connection.close()
        # The prompt is under way; the reply's first token is the first chance to stop.
        wait_until(lambda: server.metric("tinydispatch_clients_gone_total") == 1)
        server.runtime.gate.set()
        wait_until(lambda: not server.holder.is_busy)
        assert len(server.runtime.decoded) < 10
        assert server.post(server.ask(max_tokens=5)).status_code == 200


def test_a_client_that_goes_while_it_waits_is_never_computed() -> None:
    with running() as server, ThreadPoolExecutor() as pool:
        held = _hold(server, pool)
        connection = _hang_up(server)
        wait_until(lambda: server.holder.n_waiting == 1)
        connection.close()
        wait_until(lambda: server.holder.n_waiting == 0)
        server.runtime.gate.set()
        assert held.result().status_code == 200
        assert server.metric("tinydispatch_replies_total") == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_answered_503_and_not_retried(stream: bool) -> None:
    with running(limits=Limits(request_timeout_s=0.4)) as server:
        server.runtime.shut()
        with pytest.raises(openai.InternalServerError) as caught:
            server.openai(max_retries=2).chat.completions.create(**server.ask(stream=stream))
        assert (caught.value.status_code, caught.value.code) == (503, "timeout")
        server.runtime.gate.set()
        wait_until(lambda: not server.holder.is_busy)
        assert server.metric('tinydispatch_requests_total{path="/v1/chat/completions",status="503"}') == 1


def test_a_stream_that_runs_out_of_time_ends_in_an_error_event() -> None:
    with running("word " * 100, limits=Limits(request_timeout_s=1.5)) as server:
        server.runtime.delay_s = 0.05
        stream = server.openai().chat.completions.create(**server.ask(stream=True))
        with pytest.raises(openai.APIError, match="was not answered within the server's limit"):
            for _ in stream:
                pass


def test_a_body_that_does_not_arrive_is_given_up() -> None:
    with running(limits=Limits(body_timeout_s=0.2)) as server:
        connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
        connection.sendall(head + b"Content-Type: application/json\r\n\r\n{")
        connection.settimeout(60)
        assert b"408" in connection.recv(100)
        connection.close()


def test_a_fault_of_ours_is_500_and_the_next_request_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as server:
        with monkeypatch.context() as patch:
            patch.setattr(GatedRuntime, "decode", lambda *_: 1 / 0)
            with pytest.raises(openai.InternalServerError) as caught:
                server.openai().chat.completions.create(**server.ask())
        assert "division" not in caught.value.message
        assert caught.value.type == "server_error"
        assert server.post(server.ask()).status_code == 200


def test_a_swap_lets_the_running_request_finish_and_the_waiting_one_meet_the_new_model() -> None:
    with running() as server, ThreadPoolExecutor() as pool:
        first = _hold(server, pool)
        second = pool.submit(server.post, server.ask())
        wait_until(lambda: server.holder.n_waiting == 1)
        closed = _closings(server.holder)
        swap = pool.submit(server.holder.swap, Serving(make_dispatcher("Which one?")[0], "second"))
        server.runtime.gate.set()
        swap.result(60)
        assert first.result().json()["system_fingerprint"] == "fp_first"
        answer = second.result().json()
        assert answer["system_fingerprint"] == "fp_second"
        assert answer["choices"][0]["message"]["content"] == "Which one?"
        assert closed == ["first"]
        assert server.health()["serving"] == "second"
        assert server.metric('tinydispatch_model_info{id="second"}') == 1


def _closings(holder: ModelHolder) -> list[str]:
    """Collects the id of the model that is in service now, when it is closed."""
    found: list[str] = []
    serving = holder.serving
    close = serving.dispatcher.close

    def closing() -> None:
        found.append(serving.id)
        close()

    serving.dispatcher.close = closing  # type: ignore[method-assign]
    return found


def test_twenty_swaps_under_load_lose_no_request() -> None:
    with running() as server, ThreadPoolExecutor(5) as pool:
        stop = threading.Event()

        def client() -> set[int]:
            seen = set()
            while not stop.is_set():
                seen.add(server.post(server.ask()).status_code)
            return seen

        clients = [pool.submit(client) for _ in range(4)]
        for number in range(20):
            server.holder.swap(Serving(make_dispatcher(ONE_CALL)[0], f"model-{number}"))
        stop.set()
        assert [future.result() for future in clients] == [{200}] * 4


def test_a_holder_finishes_what_it_took_and_takes_nothing_more() -> None:
    dispatcher, runtime = make_dispatcher()
    holder = ModelHolder(Serving(dispatcher, "only"), max_waiting=2)
    runtime.shut()
    jobs = [holder.submit(lambda serving: serving.dispatcher.dispatch("Oslo?").is_usable)]
    assert runtime.entered.wait(60)
    jobs += [holder.submit(lambda serving: serving.id) for _ in range(2)]  # type: ignore[arg-type, misc]
    with pytest.raises(QueueFullError):
        holder.submit(lambda serving: serving.id)
    assert jobs[1].cancel()
    jobs.append(holder.submit(lambda serving: serving.id))  # type: ignore[arg-type]
    closing = threading.Thread(target=holder.close)
    closing.start()
    wait_until(lambda: not holder.is_working)
    with pytest.raises(StoppingError):
        holder.submit(lambda serving: serving.id)
    with pytest.raises(StoppingError):
        holder.swap(Serving(dispatcher, "late"))
    runtime.gate.set()
    closing.join(60)
    assert [jobs[0].result(), jobs[2].result(), jobs[3].result()] == [True, "only", "only"]


def test_what_a_job_raises_reaches_the_one_who_waits_and_the_next_job_runs() -> None:
    holder = ModelHolder(Serving(make_dispatcher()[0], "only"))
    with pytest.raises(ZeroDivisionError):
        holder.submit(lambda _: 1 / 0).result(60)
    assert holder.submit(lambda serving: serving.id).result(60) == "only"
    holder.close()
    holder.close()


def test_requests_name_the_servers_model_and_not_the_one_behind_it() -> None:
    with running() as server:
        server.holder.swap(Serving(make_dispatcher()[0], "other"))
        found = server.openai().chat.completions.create(model=MODEL, messages=server.ask()["messages"], tools=TOOLS)
        assert (found.model, found.system_fingerprint) == (MODEL, "fp_other")
