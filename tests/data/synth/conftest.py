"""Generated conversations that several test files read, made once."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable
from itertools import islice

import pytest

from data.synth.dialogue import Scene
from data.synth.domains import bundled_specs
from data.synth.generate import generate, generate_invented
from data.synth.offer import bundled_offer
from data.synth.values import Context
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Conversation

THURSDAY = dt.date(2026, 3, 19)


@pytest.fixture(scope="session")
def bundled() -> list[Conversation]:
    return list(generate(150, seed=3))


@pytest.fixture(scope="session")
def invented() -> list[Conversation]:
    return list(islice(generate_invented(seed=3), 150))


@pytest.fixture
def context() -> Context:
    return Context(random.Random(1), THURSDAY)


@pytest.fixture
def make_scene() -> Callable[[int], Scene]:
    """A scene over the eight bundled tools, drawn from a seed."""

    def make(seed: int) -> Scene:
        offers = [bundled_offer(spec, tool) for spec, tool in zip(bundled_specs(), bundled_tools(), strict=True)]
        return Scene(Context(random.Random(seed), THURSDAY), offers, is_simulated=True)

    return make
