from __future__ import annotations

from pathlib import Path

import pytest

from data.synth import domains, grammar
from data.synth.domains import Clause, DomainError, ToolSpec, load_file
from tinydispatch.bundled import bundled_tools

SYNTH = Path(load_file.__code__.co_filename).parent
SHIPPED = sorted([*(SYNTH / "domains").glob("*.yaml"), *(SYNTH / "bundled").glob("*.voice*.yaml")])
TOOL_FILES = [path for path in SHIPPED if not path.name.startswith("chitchat")]

GOOD = """
domain: lamps
tools:
  - names: [switch_lamp, lampSwitch]
    descriptions: ["Switch a lamp"]
    params:
      room: {names: [room, where], slot: {words: [porch, kitchen]}, required: true}
      state: {slot: {enum: {on: ["on"], off: ["off", "dark"]}}}
    heads:
      imperative: ["[switch|turn] the lamp in the {room}"]
      noun: ["lamp"]
    adjuncts:
      room: ["in the {room}"]
      state: ["make it {state}"]
    ask: {room: ["Which room?"]}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "lamps.yaml"
    path.write_text(text, "utf-8")
    return path


def lamp(tmp_path: Path) -> ToolSpec:
    (spec,) = load_file(written(tmp_path, GOOD))
    return spec


@pytest.mark.parametrize("path", TOOL_FILES, ids=lambda path: path.name)
def test_every_shipped_file_loads(path: Path) -> None:
    for spec in load_file(path):
        assert spec.heads[Clause.IMPERATIVE]
        assert spec.descriptions


def test_the_format_is_read_as_written(tmp_path: Path) -> None:
    spec = lamp(tmp_path)
    assert (spec.domain, spec.names) == ("lamps", ("switch_lamp", "lampSwitch"))
    assert spec.params["room"].is_required
    assert spec.params["room"].names == ("room", "where")
    assert spec.params["state"].names == ("state",)
    assert not spec.params["state"].is_required
    assert spec.params["state"].slot.argument == {"on": ("on",), "off": ("off", "dark")}
    assert spec.replies == ("Done.",)


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("tools:", "tool:", "expected 'domain' and a list 'tools'"),
        ("names: [switch_lamp, lampSwitch]", "title: x", "every tool needs a list 'names'"),
        ("descriptions:", "description:", "tool 'switch_lamp': missing key 'descriptions'"),
        (
            "slot: {words: [porch, kitchen]}",
            "slot: hall",
            "tool 'switch_lamp': parameter 'room': unknown slot 'hall'",
        ),
        ("slot: {words: [porch, kitchen]}, ", "", "tool 'switch_lamp': parameter 'room' needs a 'slot'"),
        ("imperative:", "imperatives:", "heads of unknown kind 'imperatives'; expected imperative, question"),
        ('in the {room}"]\n    ', 'in the {hall}"]\n    ', "the lamp in the {hall}' uses ['hall'], no parameter"),
        ("[switch|turn]", "[switch|turn", "'[' is never closed in phrase '[switch|turn the lamp in the {room}'"),
        ('      room: ["in the {room}"]\n', "", "head 'lamp' cannot say required ['room']"),
        ("heads:", "heads: [", "not YAML"),
    ],
)
def test_an_error_names_the_file_the_tool_and_the_phrase(
    before: str, after: str, complaint: str, tmp_path: Path
) -> None:
    assert before in GOOD
    path = written(tmp_path, GOOD.replace(before, after, 1))
    with pytest.raises(DomainError) as error:
        load_file(path)
    assert str(error.value).startswith(str(path))
    assert complaint in str(error.value)


def test_a_second_voice_adds_wordings_and_keeps_parameters(tmp_path: Path) -> None:
    spec = lamp(tmp_path)
    other_text = GOOD.replace("[switch|turn] the lamp", "flip the light").replace("lampSwitch", "flip")
    (other,) = load_file(written(tmp_path, other_text.replace('off: ["off", "dark"]', 'off: ["out"]')))
    merged = spec.merged(other)
    assert merged.names == ("switch_lamp", "lampSwitch", "flip")
    assert len(merged.heads[Clause.IMPERATIVE]) == 2
    assert merged.params["state"].slot.argument["off"] == ("off", "dark", "out")
    assert merged.params["room"].is_required


def test_the_bundled_specs_follow_the_bundled_tools_and_name_their_parameters() -> None:
    specs = domains.bundled_specs()
    assert [spec.names[0] for spec in specs] == [tool.name for tool in bundled_tools()]
    for spec, tool in zip(specs, bundled_tools(), strict=True):
        assert set(spec.params) == set(tool.parameters["properties"])
        assert {key for key, param in spec.params.items() if param.is_required} == set(tool.parameters["required"])


def test_no_invented_tool_bears_a_bundled_name() -> None:
    reserved = {tool.name for tool in bundled_tools()}
    assert not reserved & {name for spec in domains.invented_domains() for name in spec.names}
    assert not reserved & {name for spec in domains.bundled_specs() for name in spec.names[1:]}


@pytest.mark.parametrize(("kind", "letters"), [("parallel", "AB"), ("dependent", "AB"), ("three", "ABC")])
def test_every_link_holds_each_request_once(kind: str, letters: str) -> None:
    names = {tool.name for tool in bundled_tools()}
    for link in domains.links()[kind]:
        assert sorted(ref.name for ref in grammar.slot_refs(grammar.parse(link.phrase))) == list(letters)
        assert set(link.first) <= names


@pytest.mark.parametrize(
    ("phrase", "is_conditional"),
    [("{A}, and if it's dry, {B}", True), ("{A}. Unless I'm busy, {B}", True), ("{A} and then {B}", False)],
)
def test_a_condition_is_told_from_an_order_in_time(phrase: str, is_conditional: bool) -> None:
    assert domains.Link(phrase, needs_imperative=True).is_conditional is is_conditional


def test_small_talk_has_a_reply_of_each_kind() -> None:
    talk = domains.small_talk()
    assert {kind for _, kind in talk.utterances} <= set(talk.replies)
