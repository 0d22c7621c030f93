from __future__ import annotations

import random
from itertools import islice

from data.synth.generate import drill_conversation, generate, generate_invented, generate_lists
from tinydispatch.bundled import bundled_tools
from tinydispatch.formats import parse_reply, render_calls
from tinydispatch.tools import Conversation, Role, check_calls

# Parameters of the bundled tools whose values stand in the call as they were said.
COPIED = {"location", "text", "to", "subject", "body", "cc", "title", "attendees", "query"}


def test_every_call_validates_against_its_tool(bundled: list[Conversation], invented: list[Conversation]) -> None:
    conversations = [*bundled, *invented]
    assert len(conversations) == 300
    violations = [check_calls(conversation.calls, conversation.tools) for conversation in conversations]
    assert [found for found in violations if found] == []
    assert sum(len(conversation.calls) for conversation in conversations) > 500


def test_copied_values_stand_in_the_users_words(bundled: list[Conversation]) -> None:
    missing = []
    for conversation in bundled:
        said = "\n".join(message.content for message in conversation.messages if message.role is Role.USER)
        for call in conversation.calls:
            for key in COPIED & set(call.arguments):
                value = call.arguments[key]
                missing += [one for one in (value if isinstance(value, list) else [value]) if one not in said]
    assert missing == []


def test_the_same_seed_gives_the_same_conversations_whatever_the_count() -> None:
    assert list(generate(3, seed=9)) == list(generate(5, seed=9))[:3]
    assert list(generate(2, seed=9)) != list(generate(2, seed=10))


def test_the_invented_stream_depends_on_its_seed_alone() -> None:
    assert list(islice(generate_invented(4), 2)) == list(islice(generate_invented(4), 3))[:2]
    assert list(islice(generate_invented(4), 2)) != list(islice(generate_invented(5), 2))


def test_so_many_conversations_have_one_list_and_one_date() -> None:
    listed = list(generate_lists(24, seed=3, per_list=8))
    assert listed[:12] == list(generate_lists(12, seed=3, per_list=8))
    groups = [listed[first : first + 8] for first in (0, 8, 16)]
    for group in groups:
        assert len({(tuple(tool.name for tool in each.tools), each.reference_date) for each in group}) == 1
        assert len({each.messages[0].content for each in group}) > 4
    assert len({tuple(tool.name for tool in group[0].tools) for group in groups}) == 3
    ours = {tool.name for tool in bundled_tools()}
    assert not any(tool.name in ours for each in listed for tool in each.tools)
    for each in listed:
        for message in each.messages:
            assert not check_calls(message.tool_calls, each.tools)


def test_disguised_conversations_offer_the_bundled_tools_alone_under_other_names() -> None:
    reserved = {tool.name for tool in bundled_tools()}
    for conversation in islice(generate_invented(4, disguised_share=1.0), 30):
        assert 3 <= len(conversation.tools) <= 8
        assert not reserved & {tool.name for tool in conversation.tools}
        assert check_calls(conversation.calls, conversation.tools) == []


def test_a_share_of_the_invented_conversations_is_disguised_and_the_rest_stay_what_they_were() -> None:
    plain = list(islice(generate_invented(4, disguised_share=0.0), 24))
    mixed = list(islice(generate_invented(4, disguised_share=0.5), 24))
    assert plain == list(islice(generate_invented(4), 24))
    kept = [one == other for one, other in zip(plain, mixed, strict=True)]
    assert 4 < sum(kept) < 20


def test_a_bundled_conversation_offers_all_eight_tools_mostly_in_their_own_order(bundled: list[Conversation]) -> None:
    own_order = [conversation.tools == bundled_tools() for conversation in bundled]
    assert 0.7 < sum(own_order) / len(own_order) < 1
    assert all({tool.name for tool in c.tools} == {tool.name for tool in bundled_tools()} for c in bundled)


def test_a_conversation_begins_with_the_user_and_every_result_answers_a_call(
    bundled: list[Conversation], invented: list[Conversation]
) -> None:
    for conversation in (*bundled, *invented):
        assert conversation.messages[0].role is Role.USER
        open_calls: list[str] = []
        for message in conversation.messages:
            if message.role is Role.TOOL:
                assert message.tool_name == open_calls.pop(0)
            else:
                open_calls = [call.name for call in message.tool_calls]


def test_the_category_is_the_exchange_or_mixed(bundled: list[Conversation]) -> None:
    for conversation in bundled:
        exchanges = conversation.metadata["exchanges"]
        assert 1 <= len(exchanges) <= 6
        assert conversation.category == (exchanges[0] if len(set(exchanges)) == 1 else "mixed")


def test_the_number_of_exchanges_is_a_choice() -> None:
    assert {len(c.metadata["exchanges"]) for c in generate(10, seed=2, exchanges=(1, 1))} == {1}


def test_calls_survive_being_written_and_read(bundled: list[Conversation], invented: list[Conversation]) -> None:
    for conversation in (*bundled, *invented):
        for message in conversation.messages:
            assert parse_reply(render_calls(message.tool_calls)).calls == message.tool_calls


def test_a_drill_asks_for_one_tool_whose_every_value_is_valid() -> None:
    for index in range(30):
        conversation = drill_conversation(random.Random(index), f"drill-{index}")
        assert len(conversation.tools) == 1
        assert len(conversation.calls) >= 8
        assert check_calls(conversation.calls, conversation.tools) == []
