from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from scripts.calibration_figures import calibration_error
from tests.fixtures_playback import TODAY, WEATHER, PlaybackRuntime
from tinydispatch import formats
from tinydispatch.calibration import (
    UNREACHABLE,
    Calibration,
    Scale,
    error_bound,
    fit_scale,
    load_calibration,
    threshold_for,
)
from tinydispatch.confidence import CallConfidence
from tinydispatch.dispatcher import Dispatcher
from tinydispatch.tools import ToolCall

_CALIBRATION = Calibration(Scale(0.5, -1.0), Scale(2.0, 0.1), Scale(1.0, 0.5), threshold=0.7, model="")


def test_a_scale_finds_how_overconfident_a_model_is() -> None:
    rng = random.Random(5)
    raw = [rng.uniform(0.5, 0.999) for _ in range(800)]
    right = [rng.random() < 0.5 * value for value in raw]
    fitted = fit_scale(raw, right)
    before, after = calibration_error(raw, right), calibration_error([fitted(value) for value in raw], right)
    assert after < 0.08 < 0.3 < before


def test_a_scale_never_turns_the_order_of_replies() -> None:
    values = [Scale(0.5, -1.0)(value) for value in (0.0, 0.1, 0.5, 0.9, 1.0)]
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)


def test_each_part_of_a_call_has_its_own_scale() -> None:
    raw = CallConfidence(tool=0.9, arguments={"location": 0.8}, call=0.6)
    scaled = _CALIBRATION.of_call(raw)
    assert scaled.tool == _CALIBRATION.tool(0.9)
    assert scaled.arguments == {"location": _CALIBRATION.argument(0.8)}
    assert scaled.call == _CALIBRATION.reply(0.6)
    assert Calibration().of_call(raw).call == pytest.approx(0.6)


def test_what_cannot_be_fitted_is_said() -> None:
    with pytest.raises(ValueError, match="2 right and 0 wrong"):
        fit_scale([0.5, 0.6], [True, True])
    with pytest.raises(ValueError, match="the surer the model was, the less often it was right"):
        fit_scale([0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [True, True, True, False, False, False])


def test_the_threshold_is_the_last_test_from_the_top_that_few_wrong_ones_pass() -> None:
    # The surest 40 are right, then every second one is wrong. The tests are at 22, 38, 52 and all 60 answers.
    confidences = [1 - number / 100 for number in range(60)]
    is_right = [True] * 40 + [False, True] * 10
    assert threshold_for(confidences, is_right, 0.1, 0.9) == confidences[37]
    assert threshold_for(confidences, is_right, 0.1, 0.99) == UNREACHABLE
    assert threshold_for(confidences, is_right, 0.4, 0.9) == confidences[-1]


def test_the_scan_ends_at_its_first_failure_whatever_comes_after() -> None:
    confidences = [1 - number / 1000 for number in range(300)]
    surest_are_wrong = [False] * 2 + [True] * 298
    assert threshold_for(confidences, surest_are_wrong, 0.1, 0.9) == UNREACHABLE


def test_where_more_are_wrong_than_allowed_a_threshold_is_promised_no_more_often_than_stated() -> None:
    chance = random.Random(11)
    promised = 0
    for _ in range(300):
        confidences = [chance.random() for _ in range(120)]
        is_right = [chance.random() >= 0.11 for _ in range(120)]
        promised += threshold_for(confidences, is_right, 0.1, 0.9) != UNREACHABLE
    assert promised <= 0.1 * 300


def test_a_few_right_answers_are_no_reason_to_trust() -> None:
    # 0.9 ** 21 > 0.1 > 0.9 ** 22: with a tenth wrong, 22 right ones in a row are luck once in ten times.
    assert threshold_for([0.9] * 21, [True] * 21, max_error=0.1, sureness=0.9) == UNREACHABLE
    assert threshold_for([0.9] * 22, [True] * 22, max_error=0.1, sureness=0.9) == 0.9


def test_equal_confidences_are_kept_or_handed_up_together() -> None:
    assert threshold_for([0.8] * 60, [True] * 30 + [False] * 30, max_error=0.1) == UNREACHABLE
    confidences, is_right = [0.9] * 30 + [0.8] * 20, [True] * 40 + [False] * 10
    assert threshold_for(confidences, is_right, max_error=0.1) == 0.9


def test_the_bound_is_where_what_was_seen_becomes_a_rare_accident() -> None:
    assert error_bound(0, 22, 0.9) == pytest.approx(1 - 0.1 ** (1 / 22))
    # Clopper and Pearson's table: 3 of 50, one-sided 95 %.
    assert error_bound(3, 50, 0.95) == pytest.approx(0.1478, abs=1e-3)
    assert error_bound(5, 5) == 1.0
    assert error_bound(400, 2000, 0.9) == pytest.approx(0.212, abs=1e-3)


def test_a_model_that_is_never_right_enough_hands_everything_up() -> None:
    threshold = threshold_for([0.9, 0.8], [False, True], max_error=0.1)
    calibration = Calibration(threshold=threshold)
    dispatch = Dispatcher(PlaybackRuntime("ok"), [WEATHER], TODAY, calibration=calibration).dispatch("hi")
    assert not dispatch.is_confident


def test_a_dispatch_says_whether_it_is_below_the_threshold() -> None:
    runtime = PlaybackRuntime(formats.render_calls([ToolCall("get_weather", {"location": "Oslo"})]))
    sure = Dispatcher(runtime, [WEATHER], TODAY, calibration=Calibration(threshold=0.5)).dispatch("Oslo?")
    doubting = Calibration(reply=Scale(1.0, -20.0), threshold=0.5)
    unsure = Dispatcher(runtime, [WEATHER], TODAY, calibration=doubting).dispatch("Oslo?")
    assert (sure.is_confident, unsure.is_confident) == (True, False)
    assert unsure.confidences[0].call < 0.5 < unsure.confidences[0].tool


def test_a_saved_calibration_comes_back_and_a_broken_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    _CALIBRATION.save(path)
    assert load_calibration(path) == _CALIBRATION
    for text in ('{"slope": "steep"}', "nonsense", "[]", json.dumps({"reply": 3})):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"c\.json: expected numbers"):
            load_calibration(path)
    with pytest.raises(ValueError, match=r"absent\.json: cannot be read"):
        load_calibration(tmp_path / "absent.json")
