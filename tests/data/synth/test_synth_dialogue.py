from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pytest

from data.synth import dialogue, phrasing
from data.synth.dialogue import Scene, report
from data.synth.domains import Clause, Link, links
from tinydispatch.tools import Message, Role

MakeScene = Callable[[int], Scene]
ORDERED = [link for link in links()["dependent"] if not link.is_conditional]
CONDITIONAL = [link for link in links()["dependent"] if link.is_conditional]


def exchanges(
    make: Callable[[Scene], list[Message]], make_scene: MakeScene, draws: int = 60
) -> Iterator[list[Message]]:
    yield from filter(None, (make(make_scene(seed)) for seed in range(draws)))


def only(link: Link) -> Callable[[], Mapping[str, tuple[Link, ...]]]:
    return lambda: {"dependent": (link,)}


@pytest.mark.parametrize("link", ORDERED, ids=lambda link: link.phrase)
def test_of_two_wishes_in_order_the_first_is_called_alone_and_the_second_after_its_result(
    link: Link, make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialogue, "links", only(link))
    lengths = set()
    for messages in exchanges(dialogue.dependent_calls, make_scene, 12):
        lengths.add(len(messages))
        assert len(messages[1].tool_calls) == 1
        if len(messages) == 4:
            assert messages[2].role is Role.TOOL
            assert messages[2].tool_name == messages[1].tool_calls[0].name
            assert len(messages[3].tool_calls) == 1
    assert lengths == {2, 4}


@pytest.mark.parametrize("link", CONDITIONAL, ids=lambda link: link.phrase)
def test_what_hangs_on_a_condition_is_left_open_and_the_condition_fits_the_first_tool(
    link: Link, make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialogue, "links", only(link))
    for messages in exchanges(dialogue.dependent_calls, make_scene, 12):
        assert len(messages) == 2
        (call,) = messages[1].tool_calls
        assert not link.first or call.name in link.first


def test_before_you_b_a_calls_a_although_b_is_said_first(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialogue, "links", only(Link("before you {B}, {A}", needs_imperative=True)))
    for messages in exchanges(dialogue.dependent_calls, make_scene):
        (call,) = messages[1].tool_calls
        if call.name == "send_email":
            before, _, after = messages[0].content.partition(", ")
            assert call.arguments["to"][0] in messages[0].content
            assert call.arguments["to"][0] not in before
            assert after


def test_parallel_exchanges_call_everything_at_once_and_nothing_twice(make_scene: MakeScene) -> None:
    counts = set()
    for messages in exchanges(dialogue.parallel_calls, make_scene, 120):
        calls = messages[1].tool_calls
        counts.add(len(calls))
        assert all(one != other for index, one in enumerate(calls) for other in calls[index + 1 :])
        assert [message.tool_name for message in messages[2:-1]] in ([], [call.name for call in calls])
    assert counts == {2, 3}


def test_the_same_wish_said_twice_is_no_parallel_exchange(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = make_scene(1).request(Clause.IMPERATIVE)
    monkeypatch.setattr(Scene, "request", lambda *_: found)
    assert list(exchanges(dialogue.parallel_calls, make_scene, 10)) == []


def test_one_wish_over_several_values_makes_calls_that_differ_in_one_argument(make_scene: MakeScene) -> None:
    for messages in exchanges(dialogue.same_tool, make_scene, 120):
        calls = messages[1].tool_calls
        assert len(calls) in (2, 3)
        for other in calls[1:]:
            assert other.name == calls[0].name
            assert sum(other.arguments[key] != value for key, value in calls[0].arguments.items()) == 1


def test_a_missing_argument_is_asked_for_and_not_guessed(make_scene: MakeScene) -> None:
    lengths = set()
    for messages in exchanges(dialogue.missing_argument, make_scene):
        lengths.add(len(messages))
        assert messages[1].tool_calls == ()
        assert messages[1].content
        if len(messages) == 4:
            assert messages[2].role is Role.USER
            assert len(messages[3].tool_calls) == 1
    assert lengths == {2, 4}


def test_a_follow_up_repeats_the_call_with_one_thing_changed(make_scene: MakeScene) -> None:
    for messages in exchanges(dialogue.follow_up, make_scene):
        first, second = (message.tool_calls[0] for message in messages if message.tool_calls)
        assert first.name == second.name
        assert set(first.arguments) == set(second.arguments)
        assert sum(second.arguments[key] != value for key, value in first.arguments.items()) <= 1


def test_small_talk_and_absent_tools_call_nothing(make_scene: MakeScene) -> None:
    for messages in exchanges(dialogue.no_call, make_scene):
        assert [message.role for message in messages] == [Role.USER, Role.ASSISTANT]
        assert messages[1].tool_calls == ()
        assert messages[1].content


def test_a_request_says_every_required_parameter(make_scene: MakeScene) -> None:
    for seed in range(80):
        scene = make_scene(seed)
        offer = scene.rng.choice(scene.offers)
        request = phrasing.compose(offer.spec, scene.context)
        if request is not None:
            assert {key for key, param in offer.spec.params.items() if param.is_required} <= set(request.arguments)


def test_an_omitted_parameter_is_not_said(make_scene: MakeScene) -> None:
    for seed in range(60):
        scene = make_scene(seed)
        email = next(offer for offer in scene.offers if offer.tool.name == "send_email")
        request = phrasing.compose(email.spec, scene.context, omitted="subject")
        assert request is None or "subject" not in request.arguments


def test_a_wanted_kind_of_clause_is_kept(make_scene: MakeScene) -> None:
    for clause in Clause:
        found = make_scene(1).request(clause)
        assert found is not None
        assert found[1].clause is clause


def test_no_register_changes_a_copied_value(make_scene: MakeScene) -> None:
    for seed in range(150):
        scene = make_scene(seed)
        email = next(offer for offer in scene.offers if offer.tool.name == "send_email")
        request = phrasing.compose(email.spec, scene.context)
        if request is not None:
            text = phrasing.dress(phrasing.polite(request, scene.rng), request.clause, scene.rng)
            assert request.arguments["subject"] in text
            assert request.arguments["body"] in text


def test_a_report_fills_a_template_from_arguments_and_result_or_says_done(make_scene: MakeScene) -> None:
    scene = make_scene(5)
    found = scene.request(None, scene.offers[0])
    assert found is not None
    result = {"temperature": 7, "conditions": "foggy", "humidity_percent": 80}
    texts = {report(found[1], result, scene.rng) for _ in range(40)}
    assert any("foggy" in text for text in texts)
    assert not any("{" in text for text in texts)
    assert report(found[1], {}, scene.rng)
