from __future__ import annotations

import pytest

from tests.fixtures_playback import TODAY, WEATHER, PlaybackRuntime
from tests.fixtures_server import ONE_CALL
from tinydispatch.cli.chat import talk
from tinydispatch.dispatcher import Dispatcher


def _typing(*lines: str) -> tuple[list[str], object]:
    asked: list[str] = []
    left = list(lines)

    def ask(prompt: str) -> str:
        asked.append(prompt)
        if not left:
            raise EOFError
        return left.pop(0)

    return asked, ask


def test_a_call_asks_for_its_result_and_an_empty_one_ends_the_turn(capsys: pytest.CaptureFixture[str]) -> None:
    runtime = PlaybackRuntime(ONE_CALL)
    asked, ask = _typing("Oslo?", "sunny", "", "/new", "again?", "")
    talk(Dispatcher(runtime, [WEATHER], TODAY), ask)  # type: ignore[arg-type]
    assert asked == ["> ", "get_weather = ", "get_weather = ", "> ", "> ", "get_weather = ", "> "]
    assert capsys.readouterr().out.count('{"name": "get_weather", "arguments": {"location": "Oslo"}}') == 3
    assert "sunny" not in runtime.detokenize(runtime.cached_ids)


def test_a_conversation_that_outgrows_the_context_goes_on_afresh(capsys: pytest.CaptureFixture[str]) -> None:
    _, ask = _typing("x" * 2_000, "/new", "hi")
    talk(Dispatcher(PlaybackRuntime("yes", n_ctx=1_500), [WEATHER], TODAY), ask)  # type: ignore[arg-type]
    captured = capsys.readouterr()
    assert "no longer fits" in captured.err
    assert captured.out == "yes\n"


def test_what_cannot_be_used_as_it_stands_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    _, ask = _typing("Oslo?")
    talk(Dispatcher(PlaybackRuntime(ONE_CALL), [WEATHER], TODAY, max_new_tokens=20), ask)  # type: ignore[arg-type]
    assert "warning: the reply was cut off at the token limit" in capsys.readouterr().err
