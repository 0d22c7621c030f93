from __future__ import annotations

import pytest

from data.sources.categories import Behaviour, behaviour_of
from tinydispatch.tools import Message, Role, ToolCall

ASK = Message(Role.USER, "?")
CALL = Message(Role.ASSISTANT, "", (ToolCall("f", {}),))
EARLIER = Message(Role.ASSISTANT, "", (ToolCall("f", {}),), is_trained=False)
BOTH = Message(Role.ASSISTANT, "", (ToolCall("f", {}), ToolCall("g", {})))
RESULT = Message(Role.TOOL, "{}", tool_name="f")
REPLY = Message(Role.ASSISTANT, "Done.")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([ASK, REPLY], Behaviour.NO_CALL),
        ([ASK, CALL], Behaviour.SINGLE_CALL),
        ([ASK, CALL, RESULT, REPLY], Behaviour.SINGLE_CALL),
        ([ASK, BOTH], Behaviour.PARALLEL_CALLS),
        ([ASK, EARLIER, RESULT, CALL], Behaviour.NEXT_CALL),
        ([ASK, CALL, RESULT, CALL], Behaviour.MULTI_STEP),
        ([ASK, EARLIER, RESULT, REPLY], Behaviour.FINAL_ANSWER),
        ([ASK], Behaviour.NO_CALL),
    ],
)
def test_the_category_follows_from_what_is_trained(messages: list[Message], expected: Behaviour) -> None:
    assert behaviour_of(messages) is expected
