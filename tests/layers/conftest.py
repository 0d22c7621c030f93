from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.layers.kitchen import Server


@pytest.fixture
def mid() -> Iterator[Server]:
    """The orchestration layer's model."""
    with Server() as server:
        yield server


@pytest.fixture
def large() -> Iterator[Server]:
    """The planning layer's model."""
    with Server() as server:
        yield server
