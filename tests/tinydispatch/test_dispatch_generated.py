"""What models are trained to write is never forbidden, and real tool lists compile."""

from __future__ import annotations

import itertools

import llguidance

from data.synth.generate import generate, generate_invented
from tests.fixtures_playback import PlaybackRuntime
from tinydispatch import formats
from tinydispatch.decoding.reply import CallFormat, ReplyShape, reply_grammar
from tinydispatch.decoding.tokens import token_table, token_texts
from tinydispatch.tools import Conversation, Role

_RUNTIME = PlaybackRuntime("")
_TABLE = token_table(_RUNTIME, token_texts(_RUNTIME))


def _refused(conversation: Conversation) -> list[str]:
    matcher = llguidance.LLMatcher(_TABLE, reply_grammar(conversation.tools, ReplyShape(), CallFormat()))
    refused = []
    for message in conversation.messages:
        if message.role is Role.ASSISTANT:
            text = message.content + formats.render_calls(message.tool_calls)
            ids = _RUNTIME.tokenize(text, parse_special=True)
            matcher.reset()
            if matcher.try_consume_tokens(ids) < len(ids) or not matcher.is_accepting():
                refused.append(text)
    return refused


def test_generated_calls_keep_the_schemas_key_order() -> None:
    conversations = [*generate(8, seed=11), *itertools.islice(generate_invented(seed=11), 24)]
    assert [text for conversation in conversations for text in _refused(conversation)] == []
