from __future__ import annotations

import random

import pytest

from data.synth.domains import bundled_specs, invented_domains
from data.synth.offer import bundled_offer, camel, invented_offer, random_spec
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Conversation

SEEDS = range(40)


def test_the_names_of_a_schema_are_unique_and_its_required_ones_exist() -> None:
    for spec in invented_domains():
        for seed in range(2):
            offer = invented_offer(spec, random.Random(seed))
            properties = offer.tool.parameters["properties"]
            assert len(set(offer.names.values())) == len(offer.names)
            assert set(properties) == set(offer.names.values())
            required = {offer.names[key] for key, param in spec.params.items() if param.is_required}
            assert set(offer.tool.parameters["required"]) == required


def test_an_invented_offer_drops_only_optional_parameters() -> None:
    spec = next(spec for spec in bundled_specs() if spec.names[0] == "create_calendar_event")
    kept = {key for seed in SEEDS for key in invented_offer(spec, random.Random(seed)).names}
    always = set.intersection(*(set(invented_offer(spec, random.Random(seed)).names) for seed in SEEDS))
    assert kept == set(spec.params)
    assert always == {"title", "start"}


def test_the_spelling_of_an_enum_leads_back_to_one_value() -> None:
    for spec in (*invented_domains(), *bundled_specs()):
        has_enum = any(param.slot.kind == "enum" for param in spec.params.values())
        for seed in range(5 * has_enum):
            offer = invented_offer(spec, random.Random(seed))
            for key, spelling in offer.enum_values.items():
                assert offer.tool.parameters["properties"][offer.names[key]]["enum"] == list(spelling.values())
                back = {spelled: value for value, spelled in spelling.items()}
                for value in spec.params[key].slot.argument:
                    (said,) = offer.call({key: value}).arguments.values()
                    assert back[said] == value


def test_a_call_uses_the_schemas_names_in_the_schemas_order() -> None:
    spec = next(spec for spec in bundled_specs() if spec.names[0] == "send_email")
    for seed in SEEDS:
        offer = invented_offer(spec, random.Random(seed))
        call = offer.call({"body": "b", "subject": "s", "to": ["a@b.io"]})
        assert call.name == offer.tool.name
        assert list(call.arguments) == [name for name in offer.tool.parameters["properties"] if name in call.arguments]
        assert call.arguments[offer.names["subject"]] == "s"


def test_a_bundled_offer_changes_nothing() -> None:
    spec, tool = bundled_specs()[0], bundled_tools()[0]
    call = bundled_offer(spec, tool).call({"date": "2026-03-20", "location": "Oslo"})
    assert (call.name, dict(call.arguments)) == ("get_weather", {"location": "Oslo", "date": "2026-03-20"})


def test_bundled_names_never_appear_among_invented_offers(invented: list[Conversation]) -> None:
    reserved = {tool.name for tool in bundled_tools()}
    for spec in bundled_specs():
        for seed in range(15):
            assert invented_offer(spec, random.Random(seed), skip_first_name=True).tool.name not in reserved
    assert not reserved & {tool.name for conversation in invented for tool in conversation.tools}


def test_the_tools_of_a_conversation_have_different_names(invented: list[Conversation]) -> None:
    for conversation in invented:
        names = [tool.name for tool in conversation.tools]
        assert len(set(names)) == len(names)


def test_a_made_up_tool_is_asked_for_by_its_own_words() -> None:
    for seed in SEEDS:
        spec = random_spec(random.Random(seed))
        assert set(spec.adjuncts) == set(spec.ask) == set(spec.params)
        verb, thing, *_ = spec.names[0].split("_")
        assert all(verb in head or thing in head for heads in spec.heads.values() for head in heads)


@pytest.mark.parametrize(("name", "said"), [("due_date", "dueDate"), ("title", "title"), ("a_b_c", "aBC")])
def test_snake_case_becomes_camel_case(name: str, said: str) -> None:
    assert camel(name) == said
