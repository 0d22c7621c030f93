"""A grammar learns as it is used: its first steps take several times as long as the same steps later."""

from __future__ import annotations

import time
from collections.abc import Sequence

import llguidance
import numpy as np

from tinydispatch.decoding.reply import CallFormat
from tinydispatch.formats import CALL_START
from tinydispatch.ggml.runtime import Runtime
from tinydispatch.tools import Tool

# A call of a bundled tool has 4 to 12 places where something may be chosen.
_MOST_CHOICES, _SECONDS = 32, 0.1


def rehearse(matcher: llguidance.LLMatcher, runtime: Runtime, tools: Sequence[Tool], form: CallFormat) -> None:
    """Take copies of a matcher through a short call of each tool, as many as a tenth of a second allows.

    What the copies learn the matcher knows. Nothing is evaluated by the model.
    """
    deadline = time.monotonic() + _SECONDS
    quote = runtime.tokenize("\n" if form.is_xml else '"', parse_special=False)
    for tool in tools:
        opening = f"{CALL_START}{form.before_name}{tool.name}"
        copy = matcher.deep_copy()
        ids = runtime.tokenize(opening, parse_special=True)
        copy.consume_tokens(ids[: copy.validate_tokens(ids)])
        for _ in range(_MOST_CHOICES):
            copy.consume_tokens(copy.compute_ff_tokens())
            if copy.is_stopped() or time.monotonic() > deadline:
                break
            allowed = np.unpackbits(np.frombuffer(copy.compute_bitmask(), dtype=np.uint8), bitorder="little")
            # Text is ended at once where that is allowed.
            shortest = [token for token in quote if allowed[token]]
            copy.consume_token((shortest or np.flatnonzero(allowed).tolist())[0])
