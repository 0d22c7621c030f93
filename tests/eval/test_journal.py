"""Evaluations that are killed, that go on, and that several processes share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from eval.backends import Failure, Generation, Request
from eval.cases import Suite
from eval.config import EvalConfig
from eval.evaluate import evaluate, evaluate_model
from eval.journal import Journal, Share, weights_digest
from eval.results import load_result
from eval.suites import load_suite
from tests.eval.fake_server import FakeServer, completion

MEASURED = {"weights": "a"}


class Parrot:
    """Answers with what it was asked, and remembers it; from `dies_at` on it is killed."""

    batch_size = 3

    def __init__(self, dies_at: int | None = None) -> None:
        self.asked: list[str] = []
        self._dies_at = dies_at

    def generate(self, requests: Sequence[Request]) -> list[Generation | Failure]:
        if self._dies_at is not None and len(self.asked) >= self._dies_at:
            raise KeyboardInterrupt
        self.asked += [request.messages[-1].content for request in requests]
        return [
            Failure("out of order") if "7" in text else Generation(text, 0.1, 3)
            for text in self.asked[-len(requests) :]
        ]

    def close(self) -> None:
        """Nothing to free."""

    def __enter__(self) -> Parrot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_suite(folder: Path, count: int) -> Path:
    folder.mkdir()
    (folder / "suite.json").write_text(json.dumps({"name": "many", "categories": ["none"]}), "utf-8")
    rows = [
        {"id": f"c{n}", "category": "none", "messages": [{"role": "user", "content": f"case {n}"}],
         "expected": {"calls": []}}
        for n in range(count)
    ]  # fmt: skip
    (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return load_suite(write_suite(tmp_path / "suite", 20))


def run(parrot: Parrot, suite: Suite, folder: Path, measured: dict[str, Any] = MEASURED, **share: Any) -> Any:
    journal = Journal(folder, "many-m", measured, Share(**share))
    try:
        return evaluate(parrot, suite, model_name="m", progress=False, journal=journal)
    finally:
        journal.close()


def test_what_was_scored_before_a_kill_is_not_asked_again_and_what_failed_is(suite: Suite, tmp_path: Path) -> None:
    first, second = Parrot(dies_at=12), Parrot()
    with pytest.raises(KeyboardInterrupt):
        run(first, suite, tmp_path)
    (path,) = tmp_path.glob("*.progress-0.jsonl")
    path.write_bytes(path.read_bytes()[:-9])  # the kill came in the midst of a line
    result = run(second, suite, tmp_path)
    lost = first.asked[-1]
    again = {text for text in first.asked if text == lost or "7" in text}
    assert Counter(second.asked) == Counter(
        [f"case {n}" for n in range(20) if f"case {n}" not in first.asked] + [*again]
    )
    assert [case.id for case in result.cases] == [f"c{n}" for n in range(20)]
    assert result == evaluate(Parrot(), suite, model_name="m", progress=False)


def test_another_model_or_setting_begins_anew(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Parrot(dies_at=12), suite, tmp_path)
    parrot = Parrot()
    run(parrot, suite, tmp_path, {"weights": "b"})
    assert len(parrot.asked) == 20


def test_processes_ask_each_case_once_and_have_the_result_of_one(suite: Suite, tmp_path: Path) -> None:
    parrots = [Parrot() for _ in range(3)]
    for number in (2, 1):
        run(parrots[number], suite, tmp_path, number=number, count=3, launch="x")
    result = run(parrots[0], suite, tmp_path, number=0, count=3, launch="x")
    assert Counter(text for parrot in parrots for text in parrot.asked) == Counter(f"case {n}" for n in range(20))
    assert max(len(parrot.asked) for parrot in parrots) == 7
    assert result == evaluate(Parrot(), suite, model_name="m", progress=False)


def test_the_first_process_waits_for_this_start_of_the_others(suite: Suite, tmp_path: Path) -> None:
    run(Parrot(), suite, tmp_path, number=1, count=2, launch="an earlier one")
    journal = Journal(tmp_path, "many-m", MEASURED, Share(0, 2, "now"), sleep=lambda _: other.append(finish()))
    other: list[None] = []

    def finish() -> None:
        run(Parrot(), suite, tmp_path, number=1, count=2, launch="now")

    assert len(evaluate(Parrot(), suite, model_name="m", progress=False, journal=journal).cases) == 20
    assert len(other) == 1


def test_a_finished_evaluation_leaves_its_result_alone(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.evaluate.open_backend", lambda *_: Parrot())
    evaluate_model("x", [suite], EvalConfig(), model_name="m", folder=tmp_path / "out", progress=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["many-m.json"]


def test_weights_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(bytes(3_000_000))
    before = weights_digest(tmp_path / "model")
    os.utime(path, (1, 1))
    assert weights_digest(tmp_path / "model") == before
    path.write_bytes(bytes(2_999_999) + b"x")
    assert weights_digest(tmp_path / "model") != before
    assert weights_digest("http://localhost:1/v1#m") == "http://localhost:1/v1#m"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    fake.answer = lambda body, count: (200, completion(body["messages"][-1]["content"]))  # noqa: ARG005
    yield fake
    fake.close()


def command(server: FakeServer, suite: Path, out: Path, *start: str) -> list[str]:
    settings = ["eval.endpoint_concurrency=32"]
    return [*start, "-m", "scripts.evaluate", f"{server.url}#m", "--suite", str(suite), "--out", str(out), *settings]


@pytest.mark.slow
def test_ten_thousand_cases_go_on_after_a_kill_and_none_is_kept_twice(server: FakeServer, tmp_path: Path) -> None:
    suite, out = write_suite(tmp_path / "suite", 10_000), tmp_path / "out"
    process = subprocess.Popen(command(server, suite, out, sys.executable), stdout=subprocess.DEVNULL)
    while len(server.bodies) < 4_000 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command(server, suite, out, sys.executable), check=True, capture_output=True, text=True)
    assert "of 10000 cases are there already" in done.stderr
    asked = Counter(body["messages"][-1]["content"] for body in server.bodies)
    assert len(asked) == 10_000
    assert asked.total() <= 10_000 + 4 * 32, "at most one round of requests is asked again"
    result = load_result(out / "many-m.json")
    assert (len({case.id for case in result.cases}), result.overall.hits) == (10_000, 10_000)
    assert sorted(path.name for path in out.iterdir()) == ["many-m.json", "report.html"]


@pytest.mark.slow
def test_accelerates_processes_share_the_cases(server: FakeServer, tmp_path: Path) -> None:
    suite, out = write_suite(tmp_path / "suite", 200), tmp_path / "out"
    launcher = [str(Path(sys.executable).parent / "accelerate"), "launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run(command(server, suite, out, *launcher), check=True, capture_output=True, text=True)
    assert Counter(body["messages"][-1]["content"] for body in server.bodies).most_common(1)[0][1] == 1
    assert load_result(out / "many-m.json").overall.hits == 200
    assert done.stdout.count("results in") == 1
