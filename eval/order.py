"""In which order cases are asked, so that each prompt begins as long as possible like the one before it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from eval.cases import Case, Suite
from tinydispatch.formats import with_reference_date


def by_shared_beginning(cases: Iterable[Case], suite: Suite) -> list[Case]:
    """The cases sorted by what their prompts consist of: tools, system message with the date, then what was said.

    Sorted texts have no better neighbour to share a beginning with, so a backend that keeps the last prompt's state
    computes each set of tools, and each day, once. The order is the same in every run; a report keeps the suite's.
    """

    def key(case: Case) -> list[Any]:
        tools = json.dumps([tool.to_openai() for tool in suite.tools_for(case)])
        messages = with_reference_date(case.messages, case.today)
        return [tools, *((str(said.role), said.content, repr(said.tool_calls)) for said in messages)]

    return sorted(cases, key=key)
