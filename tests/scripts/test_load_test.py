"""The load test itself: what it counts as lost, and what a growing server looks like."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.load_test import Load, Tally, growth, logged_sessions, main, report
from tests.fixtures_gguf import tiny_export
from tests.fixtures_server import running
from tinydispatch.dispatch_log import session_hash

_LOAD = Load(clients=2, seconds=10.0, is_stream=False, kills=0)


def test_every_request_to_a_healthy_server_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ([], ["--stream"]):
        with running() as server:
            assert main([server.url, "--clients", "3", "--seconds", "0.3", *option]) == 0
        assert " 0 lost" in capsys.readouterr().out


def test_an_answer_that_is_not_whole_is_a_loss(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running() as server:
        monkeypatch.setattr("scripts.load_test._is_whole", lambda *_: False)
        assert main([server.url, "--clients", "2", "--seconds", "2"]) == 1
    assert "lost (status 200: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_server_comes_back_and_every_request_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tiny_export().files[0].path)
    assert main([model, "--clients", "3", "--seconds", "1.5", "--threads", "1", "--kills", "1"]) == 0
    out = capsys.readouterr().out
    assert " 0 lost" in out
    assert "killed 1 times" in out
    assert "0 answers are missing in the dispatch log" in out


def test_only_a_server_of_its_own_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["http://127.0.0.1:1", "--kills", "1"]) == 2
    assert "kills only a server that it has started" in capsys.readouterr().err


def test_memory_that_grows_is_told_from_memory_that_is_taken_once() -> None:
    once = [(float(at), 50.0 if at < 100 else 120.0) for at in range(0, 300, 10)]
    assert growth(once) == pytest.approx(0)
    assert growth([(float(at), 100 + at / 10) for at in range(0, 300, 10)]) == pytest.approx(6.0)
    tally = Tally(latencies_s=[1.0, 2.0], memory=[(0.0, 100.0), (5.0, 100.0), (10.0, 101.0)])
    assert "second half: +12.00 MB a minute" in report(tally, 10.0, _LOAD, 0)


def test_a_cut_line_hides_no_other(tmp_path: Path) -> None:
    lines = [f'{{"session_id": "{session_hash(name)}"}}' for name in ("a", "b")]
    (tmp_path / "dispatch-2026-03-19.jsonl").write_text(f'{lines[0]}\n{{"session_\n{lines[1]}\n')
    assert logged_sessions(tmp_path) == {session_hash("a"), session_hash("b")}
