"""The order in which cases are asked: neighbours share their beginnings, and results keep the suite's order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from eval.backends import Failure, Generation, Request
from eval.backends.base import ClosesOnExit
from eval.cases import by_shared_beginning
from eval.evaluate import evaluate
from eval.gold import gold_backend
from eval.suites import load_suite
from tinydispatch.formats import render_prompt, with_reference_date


class Listener(ClosesOnExit):
    """Notes what it is asked, and has the suite's own answers said."""

    def __init__(self, suite_name: str, batch_size: int) -> None:
        self.suite = load_suite(suite_name)
        self.batch_size = batch_size
        self.sizes: list[int] = []
        self.prompts: list[str] = []
        self._gold = gold_backend([self.suite])

    def generate(self, requests: Sequence[Request]) -> list[Generation | Failure]:
        self.sizes.append(len(requests))
        for request in requests:
            messages = with_reference_date(request.messages, request.reference_date)
            self.prompts.append(render_prompt(messages, request.tools))
        return self._gold.generate(requests)


def anew(prompts: Sequence[str]) -> int:
    """Characters that a backend computes which keeps the last prompt's state."""
    total = len(prompts[0])
    for before, prompt in itertools.pairwise(prompts):
        shared = next((at for at, pair in enumerate(zip(before, prompt, strict=False)) if pair[0] != pair[1]), None)
        total += len(prompt) - (min(len(before), len(prompt)) if shared is None else shared)
    return total


@pytest.mark.parametrize("name", ["core", "workflow", "unseen_tools"])
def test_results_stand_in_the_suites_order_whatever_order_was_asked_in(name: str) -> None:
    listener = Listener(name, 1)
    result = evaluate(listener, listener.suite, model_name="m", progress=False)
    assert [case.id for case in result.cases] == [case.id for case in listener.suite.cases]
    assert result.overall.hits == len(result.cases)
    shuffled = random.Random(0).sample(listener.suite.cases, len(listener.suite.cases))
    other = evaluate(Listener(name, 1), replace(listener.suite, cases=tuple(shuffled)), model_name="m", progress=False)
    assert {case.id: case for case in other.cases} == {case.id: case for case in result.cases}


def test_each_day_and_each_set_of_tools_is_computed_once() -> None:
    listener = Listener("dev", 1)
    evaluate(listener, listener.suite, model_name="m", progress=False)
    days = [prompt[prompt.index("Today is") :][:40] for prompt in listener.prompts]
    assert len([1 for one, other in itertools.pairwise(days) if one != other]) == len(set(days)) - 1
    as_written = [
        render_prompt(with_reference_date(case.messages, case.today), listener.suite.tools)
        for case in listener.suite.cases
    ]
    assert anew(listener.prompts) < 0.6 * anew(as_written)


def test_the_order_does_not_depend_on_the_order_before() -> None:
    suite = load_suite("unseen_tools")
    shuffled = random.Random(0).sample(suite.cases, len(suite.cases))
    assert by_shared_beginning(shuffled, suite) == by_shared_beginning(suite.cases, suite)


def test_a_backend_that_answers_singly_plays_each_conversation_through() -> None:
    listener = Listener("workflow", 1)
    evaluate(listener, listener.suite, model_name="m", progress=False)
    turns = sum(len(step) > 0 for step in listener.prompts)
    goes_on = [after.startswith(before) for before, after in itertools.pairwise(listener.prompts)]
    assert turns - len(listener.suite.cases) <= sum(goes_on) + 2


def test_a_backend_that_answers_in_batches_has_full_ones_until_few_are_left() -> None:
    listener = Listener("workflow", 8)
    evaluate(listener, listener.suite, model_name="m", progress=False)
    assert set(listener.sizes[: len(listener.sizes) // 2]) == {8}
