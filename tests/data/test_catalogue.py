"""Catalogue files: what they say, what is wrong with them, and the conversations that are made of them."""

import datetime as dt
from collections import Counter
from pathlib import Path

import pytest

from data.catalogue.check import problems
from data.catalogue.mixing import mixed
from data.catalogue.reader import CatalogueError, load_catalogue, load_domain, resolve_rule
from data.config import HardeningConfig
from scripts.catalogue import main
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Role, check_calls

WEDNESDAY = dt.date(2026, 3, 18)

HEAD = """
domain: pets
about: A pet hotel
tools:
  - name: book_stay
    description: Reserve a place
    parameters:
      properties:
        pet_name: {type: string}
        species: {type: string, enum: [dog, cat]}
        check_in: {type: string, format: date}
        nights: {type: integer}
      required: [pet_name, check_in]
  - {name: get_stay, description: Look a stay up, parameters: {properties: {booking_id: {type: string}}, required: [booking_id]}}
  - {name: list_stays}
  - {name: cancel_stay, parameters: {properties: {booking_id: {type: string}}, required: [booking_id]}}
requests:
"""
BOOKING = (
    '  - {say: "can Milo stay from friday, three nights", call: {book_stay: {nights: 3, pet_name: Milo, check_in: "=friday"}}, '
    "kind: normalized, voice: chatty}\n"
)


def write(folder: Path, *requests: str, head: str = HEAD) -> Path:
    path = folder / "pets.yaml"
    path.write_text(head + "".join(requests), "utf-8")
    return path


@pytest.mark.parametrize(
    ("rule", "day"),
    [
        ("=today", "2026-03-18"),
        ("=today+2", "2026-03-20"),
        ("=today-7T09:30", "2026-03-11T09:30"),
        ("=wednesday", "2026-03-25"),
        ("=friday", "2026-03-20"),
        ("=friday+7", "2026-03-27"),
        ("=last wednesday", "2026-03-11"),
        ("=last tuesday", "2026-03-17"),
        ("=03-18", "2026-03-18"),
        ("=03-17", "2027-03-17"),
        ("=last 03-18", "2025-03-18"),
        ("=02-29", "2028-02-29"),
        ("=day 18", "2026-03-18"),
        ("=day 5", "2026-04-05"),
        ("=day 31", "2026-03-31"),
        ("=last day 31", "2026-01-31"),
        ("=month_end", "2026-03-31"),
        ("=last_month_end", "2026-02-28"),
        ("=week_start", "2026-03-16"),
        ("=next_week_end", "2026-03-29"),
        ("=last_year_start", "2025-01-01"),
        ("=month", "2026-03"),
        ("=next_month", "2026-04"),
        ("=year", "2026"),
        ("=todayT18:00:00Z", "2026-03-18T18:00:00Z"),
    ],
)
def test_a_date_rule_means_the_day_that_a_person_would_mean(rule: str, day: str) -> None:
    assert resolve_rule(rule, WEDNESDAY) == day


def test_a_request_becomes_a_call_of_that_day_in_the_schema_s_order(tmp_path: Path) -> None:
    (request,) = load_domain(write(tmp_path, BOOKING)).requests
    *_, answer = request.messages(WEDNESDAY)
    assert list(answer.tool_calls[0].arguments.items()) == [
        ("pet_name", "Milo"),
        ("check_in", "2026-03-20"),
        ("nights", 3),
    ]


@pytest.mark.parametrize(
    ("request_line", "complaint"),
    [
        ("  - {say: hi, call: {book_stay: {}}, kind: one, voice: loud}\n", r"pets.yaml:18: 'voice' is 'loud'"),
        ("  - {say: hi, call: {sell_stay: {}}, kind: one, voice: curt}\n", r"pets.yaml:18: 'call' names no tool"),
        ("  - {say: hi, kind: one, voice: curt}\n", r"pets.yaml:18: give either 'call' or 'reply'"),
        ("  - {say: hi, reply: hm, kind: none, voice: curt, mood: sad}\n", r"pets.yaml:18: unknown key 'mood'"),
        (
            "  - {turns: [{sing: la}], reply: hm, kind: none, voice: curt}\n",
            r"a turn is one of user, call, result and say",
        ),
        ("  - {say: hi\n", r"pets.yaml: cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_line_and_key(
    tmp_path: Path, request_line: str, complaint: str
) -> None:
    with pytest.raises(CatalogueError, match=complaint):
        load_domain(write(tmp_path, request_line))


@pytest.mark.parametrize(
    ("request_line", "complaint"),
    [
        (
            '  - {say: "a place for Milo from friday", call: {book_stay: {pet_name: Bello, check_in: "=friday"}}, kind: one, voice: curt}\n',
            "'pet_name' is 'Bello', which the request does not hold",
        ),
        (
            '  - {say: "Milo from the 3rd", call: {book_stay: {pet_name: Milo, check_in: "2026-05-03"}}, kind: one, voice: curt}\n',
            "write a rule",
        ),
        (
            '  - {say: "Milo from friday", call: {book_stay: {pet_name: Milo, check_in: "=freitag"}}, kind: one, voice: curt}\n',
            "no date rule",
        ),
        (
            "  - {say: a place for Milo, call: {book_stay: {pet_name: Milo}}, kind: one, voice: curt}\n",
            "'check_in' is a required",
        ),
        ("  - {say: what, reply: Which one, kind: missing, voice: curt}\n", "needs 'about'"),
        (
            '  - {say: "Milo friday", call: {book_stay: {pet_name: Milo, check_in: "=friday"}}, kind: several, voice: curt}\n',
            "has several calls",
        ),
    ],
)
def test_what_a_person_would_object_to_is_found(tmp_path: Path, request_line: str, complaint: str) -> None:
    found = list(problems(load_domain(write(tmp_path, request_line))))
    assert len(found) == 1
    assert complaint in found[0]
    assert found[0].startswith("pets.yaml:18: ")


def test_a_named_ground_and_a_repeated_request(tmp_path: Path) -> None:
    grounded = (
        '  - {say: "the stay pee bee seven", call: {get_stay: {booking_id: PB-7}}, kind: normalized, voice: dictated, '
        "from: {booking_id: spelled}}\n"
    )
    assert list(problems(load_domain(write(tmp_path, grounded)))) == []
    assert "the same request as" in next(problems(load_domain(write(tmp_path, grounded, grounded))))


def test_the_shipped_catalogue_is_right() -> None:
    domains = load_catalogue()
    assert len(domains) >= 60
    assert sum(len(domain.tools) for domain in domains) >= 400
    requests = [request for domain in domains for request in domain.requests]
    assert len(requests) >= 6000
    assert sum(request.language != "en" for request in requests) >= 0.15 * len(requests)
    assert main(["check"]) == 0


def many(count: int) -> str:
    return "".join(
        f'  - {{say: "stay PB-{n} please", call: {{get_stay: {{booking_id: PB-{n}}}}}, kind: one, voice: curt}}\n'
        for n in range(count)
    )


def test_many_requests_share_one_list_and_every_call_fits_it(tmp_path: Path) -> None:
    domain = load_domain(write(tmp_path, many(40), BOOKING))
    hardening = HardeningConfig(masked=0.5, reordered=0.5, restyled=0.5, undescribed=0.3, without_gold=0, system=0)
    for seed in range(6):
        conversations = list(mixed([domain], seed=seed, requests_per_list=12, hardening=hardening))
        assert len(conversations) == 41
        by_list = Counter((*(tool.name for tool in one.tools), one.reference_date) for one in conversations)
        assert [check_calls(one.calls, one.tools) for one in conversations] == [[]] * 41
        assert min(by_list.values()) >= 9
    again = list(mixed([domain], seed=5, requests_per_list=12, hardening=hardening))
    assert [one.messages for one in again] == [one.messages for one in conversations]


def test_passes_differ_and_a_request_keeps_its_dialogue(tmp_path: Path) -> None:
    domain = load_domain(write(tmp_path, many(12)))
    plain = HardeningConfig(masked=0, reordered=0, restyled=0, undescribed=0, without_gold=0, system=0)
    first, second = (list(mixed([domain], seed=0, passes=2, hardening=plain))[part::2] for part in (0, 1))
    assert {one.dialogue_id for one in first} | {one.dialogue_id for one in second} == {
        f"catalogue-pets-{line}" for line in range(18, 30)
    }
    assert len({one.metadata["row_id"] for one in (*first, *second)}) == 24


def test_a_request_whose_tool_is_gone_is_answered_in_words(tmp_path: Path) -> None:
    domain = load_domain(write(tmp_path, many(30)))
    hardening = HardeningConfig(masked=0, reordered=0, restyled=0, undescribed=0, without_gold=0.2, system=0)
    without = [one for one in mixed([domain], seed=0, hardening=hardening) if not one.calls]
    assert len(without) == 6
    for one in without:
        assert one.tools
        assert "get_stay" not in [tool.name for tool in one.tools]
        assert one.messages[-1].role is Role.ASSISTANT
        assert one.messages[-1].content


def test_a_file_may_ask_the_bundled_tools(tmp_path: Path) -> None:
    line = '  - {say: "weather in Oslo", call: {get_weather: {location: Oslo}}, kind: one, voice: curt}\n'
    domain = load_domain(write(tmp_path, line, head="domain: b\nabout: x\ntools: bundled\nrequests:\n"))
    assert domain.tools == bundled_tools()
    assert list(problems(domain)) == []
    plain = HardeningConfig(masked=0, reordered=0, restyled=0, undescribed=0, without_gold=0, system=0)
    (conversation,) = mixed([domain], seed=0, whole=True, hardening=plain)
    assert conversation.tools == bundled_tools()
