"""Labelled intent data: forms, mapping files, and what becomes of rows."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.catalogue.reader import resolve
from data.config import HardeningConfig, IntentsSource
from data.intents import normalize
from data.intents.mapping import MAPPINGS, load_mapping
from data.intents.normalize import NotUnderstoodError
from data.intents.requests import Mapped
from data.rejected import Rejected, RejectReason
from data.sources import check_source, read_source
from data.sources.files import DataFileError
from data.sources.intents import map_source
from eval.suites import load_suite
from scripts import intents as command
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Conversation, check_calls

THURSDAY = dt.date(2026, 3, 19)

MAPPING = """
form: flat
no_call_share: 1
groups:
  kitchen:
    about: kitchen
    tools:
      - name: set_timer
        description: Start a timer
        parameters:
          seconds*: {type: integer, minimum: 1}
          label: string
      - name: order
        parameters:
          dish*: string
          count: {type: integer, minimum: 1}
          day: {type: string, format: date}
intents:
  timer:
    tool: set_timer
    arguments:
      seconds: {slot: length, as: seconds}
      label: what
  food:
    tool: order
    arguments:
      dish: dish
      count: {slot: number, as: integer}
      day: {slot: day, as: date}
  chat: {reply: none}
"""


def row(intent: str, marked: str) -> dict[str, Any]:
    """A flat row from "[slot:words]" marks."""
    text, slots = "", []
    for part in marked.replace("]", "[").split("["):
        name, colon, words = part.partition(":")
        if colon:
            slots.append({"name": name, "value": words, "start": len(text), "end": len(text) + len(words)})
        text += words if colon else part
    return {"intent": intent, "text": text, "slots": slots}


ROWS = [
    row("timer", "start a timer for [length:half an hour]"),
    row("timer", "[length:ten minutes] for the [what:eggs]"),
    row("food", "[number:two] [dish:pizzas] for [day:friday]"),
    row("food", "[dish:soup] next [day:saturday]"),
    row("chat", "you are funny"),
]


def source(
    folder: Path, rows: list[dict[str, Any]] | None = None, mapping: str = MAPPING, **more: Any
) -> IntentsSource:
    """A source of flat rows in files under `folder`."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows or ROWS), "utf-8")
    (folder / "mapping.yaml").write_text(mapping, "utf-8")
    return IntentsSource(kind="intents", path=folder / "rows.jsonl", mapping=folder / "mapping.yaml", **more)


def kept(found: IntentsSource) -> dict[str, Any]:
    """Text → arguments of its call on a Thursday; None without a call."""
    _, rows = map_source(found)
    return {
        each.utterance.text: resolve(each.request.calls[0].arguments, THURSDAY) if each.request.calls else None
        for each in rows
        if isinstance(each, Mapped)
    }


def reasons(found: IntentsSource) -> dict[str, int]:
    """How many rows were rejected for which reason."""
    return dict(Counter(str(each.reason) for each in map_source(found)[1] if isinstance(each, Rejected)))


# --- what people say --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "said", "first", "last"),
    [
        ("en", "today's", "2026-03-19", "2026-03-19"),
        ("en", "this friday", "2026-03-20", "2026-03-20"),
        ("en", "next friday", "2026-03-27", "2026-03-27"),
        ("en", "thursday", "2026-03-26", "2026-03-26"),
        ("en", "last monday", "2026-03-16", "2026-03-16"),
        ("en", "the twenty second", "2026-03-22", "2026-03-22"),
        ("en", "march third", "2027-03-03", "2027-03-03"),
        ("en", "first of april two thousand and thirty", "2030-04-01", "2030-04-01"),
        ("en", "in two weeks", "2026-04-02", "2026-04-02"),
        ("en", "this weekend", "2026-03-21", "2026-03-22"),
        ("en", "next week", "2026-03-23", "2026-03-29"),
        ("de", "übermorgen", "2026-03-21", "2026-03-21"),
        ("de", "heute abend", "2026-03-19", "2026-03-19"),
        ("de", "zweiundzwanzigsten märz", "2026-03-22", "2026-03-22"),
        ("de", "kommende woche", "2026-03-23", "2026-03-29"),
        ("fr", "la semaine prochaine", "2026-03-23", "2026-03-29"),
        ("fr", "le premier avril", "2026-04-01", "2026-04-01"),
        ("fr", "aujourd'hui", "2026-03-19", "2026-03-19"),
        ("es", "pasado mañana", "2026-03-21", "2026-03-21"),
        ("es", "cinco de marzo de dos mil treinta", "2030-03-05", "2030-03-05"),
        ("es", "este fin de semana", "2026-03-21", "2026-03-22"),
    ],
)
def test_a_day_said_in_words_is_the_day_that_is_meant(language: str, said: str, first: str, last: str) -> None:
    days = normalize.days(said, language)
    assert (resolve(days.first, THURSDAY), resolve(days.last, THURSDAY)) == (first, last)


@pytest.mark.parametrize(
    ("language", "said", "wanted"),
    [
        ("en", "half past seven in the evening", "19:30"),
        ("en", "quarter to six p. m.", "17:45"),
        ("en", "eight hundred am", "08:00"),
        ("en", "noon", "12:00"),
        ("en", "seventeen thirty", "17:30"),
        ("de", "halb acht uhr morgens", "07:30"),
        ("de", "siebzehn uhr dreißig", "17:30"),
        ("fr", "huit heures moins le quart du soir", "19:45"),
        ("fr", "quatorze heures", "14:00"),
        ("es", "siete y media de la tarde", "19:30"),
        ("es", "cuatro menos cuarto p. m.", "15:45"),
    ],
)
def test_a_time_of_day_said_in_words_is_that_time(language: str, said: str, wanted: str) -> None:
    clock = normalize.clock(said, language)
    assert (str(clock), clock.is_settled) == (wanted, True)


@pytest.mark.parametrize("said", ["seven", "half past seven"])
def test_a_time_without_its_half_of_the_day_is_not_settled(said: str) -> None:
    assert not normalize.clock(said, "en").is_settled


@pytest.mark.parametrize(
    ("language", "said"),
    [("en", "in two hours"), ("en", "ten minutes"), ("de", "in einer stunde"), ("es", "en dos horas")],
)
def test_what_counts_from_the_present_time_is_told_apart(language: str, said: str) -> None:
    with pytest.raises(NotUnderstoodError) as caught:
        normalize.clock(said, language)
    assert caught.value.reason is RejectReason.PRESENT_TIME_NEEDED


@pytest.mark.parametrize(
    ("language", "said"),
    [("en", "nine to eleven am"), ("en", "after lunch"), ("fr", "week-end"), ("en", "the third one")],
)
def test_what_is_no_one_time_is_not_guessed(language: str, said: str) -> None:
    with pytest.raises(NotUnderstoodError):
        normalize.clock(said, language)


@pytest.mark.parametrize(
    ("language", "said"), [("en", "mondays"), ("en", "march"), ("de", "nächsten freitag"), ("es", "los jueves")]
)
def test_what_is_no_one_day_is_not_guessed(language: str, said: str) -> None:
    with pytest.raises(NotUnderstoodError):
        normalize.days(said, language)


def test_durations_numbers_money_and_addresses() -> None:
    assert normalize.duration("an hour and a half", "en") == 5400
    assert normalize.duration("zwei stunden", "de") == 7200
    assert normalize.number("one hundred and five", "en") == 105
    assert normalize.number("3,5", "de") == 3.5
    assert normalize.currency("u. s. dollars", "en") == "USD"
    assert normalize.currency("schweizer franken", "de") == "CHF"
    assert normalize.currency("livre sterling", "fr") == "GBP"
    assert normalize.time_zone("tokyo", "en") == "Asia/Tokyo"
    assert normalize.time_zone("deutschland", "de") == "Europe/Berlin"
    assert normalize.email("jo at kew dot org", "en") == "jo@kew.org"
    for bad in ("peso", "money"):
        with pytest.raises(NotUnderstoodError):
            normalize.currency(bad, "en")
    with pytest.raises(NotUnderstoodError):
        normalize.time_zone("russia", "en")


# --- rows and mapping files -------------------------------------------------------------------------------------------


def test_slots_become_arguments_of_their_types(tmp_path: Path) -> None:
    assert kept(source(tmp_path)) == {
        "start a timer for half an hour": {"seconds": 1800},
        "ten minutes for the eggs": {"seconds": 600, "label": "eggs"},
        "two pizzas for friday": {"dish": "pizzas", "count": 2, "day": "2026-03-20"},
        "soup next saturday": {"dish": "soup", "day": "2026-03-28"},  # "next" stands outside the label
        "you are funny": None,
    }


@pytest.mark.parametrize(
    ("marked", "intent", "reason"),
    [
        ("a timer for the [what:rice]", "timer", "argument_not_said"),
        ("[length:ten minutes] and then [length:two hours]", "timer", "said_twice"),
        ("[dish:soup] for [day:some day]", "food", "day_not_understood"),
        ("[dish:soup] for [day:this weekend]", "food", "day_not_understood"),
        ("[number:lots of] [dish:soup]", "food", "number_not_understood"),
        ("[dish:soup] in the [what:kitchen]", "food", "slot_without_argument"),
        ("[dish:soup] for twenty five people", "food", "words_unlabelled"),
        ("[number:zero] [dish:soups]", "food", "schema_violation"),
        ("good bye", "leave", "intent_not_mapped"),
    ],
)
def test_a_row_that_would_make_a_wrong_call_is_rejected_under_a_name(
    tmp_path: Path, marked: str, intent: str, reason: str
) -> None:
    assert reasons(source(tmp_path, [*ROWS, row(intent, marked)])) == {reason: 1}


def test_requests_without_a_call_are_kept_up_to_their_share(tmp_path: Path) -> None:
    rows = [*ROWS, *(row("chat", f"tell me something nice, please, number {'x' * i}") for i in range(6))]
    found = source(tmp_path, rows, MAPPING.replace("no_call_share: 1", "no_call_share: 0.5"))
    assert reasons(found) == {"no_call_surplus": 5}
    assert sum(arguments is None for arguments in kept(found).values()) == 2


def test_conversations_share_lists_and_days_and_every_row_is_accounted_for(tmp_path: Path) -> None:
    rows = [row("food", f"[dish:dish {chr(97 + i)}] for [day:friday]") for i in range(26)]
    rows += [row("food", "nothing"), *ROWS]
    hardening = HardeningConfig(masked=0, restyled=0, undescribed=0, reordered=0, without_gold=0, system=0)
    found = source(tmp_path, rows, hardening=hardening)
    read = list(read_source(found, seed=0, default_tools=()))
    conversations = [each for each in read if isinstance(each, Conversation)]
    assert (len(read), len(conversations)) == (len(rows), len(rows) - 1)
    lists = Counter((str(each.tools), each.reference_date) for each in conversations)
    assert min(lists.values()) >= 12
    assert not any(check_calls(each.calls, each.tools) for each in conversations)
    assert {each.source for each in conversations} == {"flat"}


def test_the_same_seed_gives_the_same_conversations(tmp_path: Path) -> None:
    found = source(tmp_path, passes=2)
    first, second, other = (list(read_source(found, seed=seed, default_tools=())) for seed in (1, 1, 2))
    assert first == second != other


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (("  timer:\n", "  timers:\n"), ("mapping.yaml:19: key 'intents.timers'", "did you mean 'timer'?")),
        (("slot: length", "slot: lenght"), ("key 'intents.timer'", "no slot 'lenght'; did you mean 'length'?")),
        (("tool: order", "tool: ordre"), ("mapping.yaml:25: key 'intents.food.tool'", "did you mean 'order'?")),
        (
            ("      label: what", "      lable: what"),
            (":23: key 'intents.timer.arguments.lable'", "did you mean 'label'?"),
        ),
        (("as: seconds", "as: date"), ("key 'intents.timer.arguments.seconds.as'", "of type 'integer'", "seconds")),
        (("as: integer", "as: nubmer"), ("intents.food.arguments.count.as", "did you mean 'number'?")),
        (("      dish: dish\n", ""), ("intents.food.arguments", "requires 'dish'")),
        (("form: flat", "form: luis"), ("mapping.yaml:2: key 'form'", "massive")),
        (
            ("    tool: set_timer\n    arg", "    tool: set_timer\n    sayss: x\n    arg"),
            ("'intents.timer.sayss'", "'says'"),
        ),
        (("    tool: set_timer\n    arg", "    tool: set_timer\n    says: '('\n    arg"), ("no regular expression",)),
    ],
)
def test_a_mapping_that_names_something_that_is_not_there_says_where_and_what_is_meant(
    tmp_path: Path, change: tuple[str, str], wanted: tuple[str, ...]
) -> None:
    assert change[0] in MAPPING
    with pytest.raises(DataFileError) as caught:
        check_source(source(tmp_path, mapping=MAPPING.replace(*change, 1)), "data.sources.0", ())
    for part in wanted:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("slot", "wanted"),
    [
        ({"name": "what", "value": "eggs", "start": 16, "end": 20}, "which is 'the ', not 'eggs'; it stands at 20"),
        ({"name": "what", "start": 18, "end": 22}, "begins or ends inside a word"),
        ({"name": "what", "start": 4, "end": 12}, "overlaps"),
        ({"name": "what", "start": 20, "end": 99}, "the text has 24 characters"),
    ],
)
def test_a_span_that_does_not_fit_its_text_names_the_line(tmp_path: Path, slot: dict[str, Any], wanted: str) -> None:
    bad = row("timer", "[length:ten minutes] for the eggs")
    bad["slots"].append(slot)
    with pytest.raises(DataFileError, match=r"rows\.jsonl:6: slot 'what'") as caught:
        check_source(source(tmp_path, [*ROWS, bad]), "data.sources.0", ())
    assert wanted in str(caught.value)


# --- the forms --------------------------------------------------------------------------------------------------------


def mapped(path: Path, mapping: str | Path, **more: Any) -> IntentsSource:
    """A source for a shipped mapping file."""
    return IntentsSource(kind="intents", path=path, mapping=Path(mapping), **more)


def shortened(tmp_path: Path, name: str, intents: list[str]) -> Path:
    """A shipped mapping with some of its intents: tiny files hold no others."""
    listed = load_mapping(name).intents
    path = tmp_path / f"{name}.yaml"
    omit = sorted(set(listed) - set(intents))
    text = (MAPPINGS / f"{name}.yaml").read_text("utf-8")
    path.write_text(f"{text}\nomit: {json.dumps(omit)}\n", "utf-8")
    return path


def write_massive(path: Path, rows: list[tuple[str, str, str]], locale: str = "en-US") -> Path:
    """MASSIVE's own form: partition, intent, annotated text."""
    lines = []
    for number, (partition, intent, annotated) in enumerate(rows):
        text = annotated
        for part in annotated.split("[")[1:]:
            label, _, words = part.partition("]")[0].partition(" : ")
            text = text.replace(f"[{label} : {words}]", words)
        lines.append(
            {
                "id": str(number),
                "locale": locale,
                "partition": partition,
                "scenario": "x",
                "intent": intent,
                "utt": text,
                "annot_utt": annotated,
            }
        )
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    return path


ERINNERUNG = "erinnere mich [date : morgen] um [time : siebzehn uhr] daran [event_name : brot] zu kaufen"
# A mapping that names a label has to find it in the data.
EVERY_SLOT = (
    "was steht [date : diese woche] an [time : abends] [event_name : termin] bei [person : anna] [relation : chef] "
    "[place_name : hier] [meal_type : essen] [timeofday : früh] [general_frequency : jede woche] "
    "[weather_descriptor : regen] [time_zone : gmt] [email_address : a at b]"
)


def test_massive_in_german_onto_the_bundled_tools(tmp_path: Path) -> None:
    path = write_massive(
        tmp_path / "de.jsonl",
        [
            ("train", "weather_query", "wie wird das wetter [date : morgen] in [place_name : berlin]"),
            ("train", "calendar_set", ERINNERUNG),
            ("train", "qa_currency", "was sind zweihundert [currency_name : euro] in [currency_name : dollar]"),
            ("train", "calendar_query", EVERY_SLOT),
            ("test", "weather_query", "regnet es in [place_name : bonn]"),
        ],
        "de-DE",
    )  # fmt: skip
    mapping = shortened(tmp_path, "massive-bundled", ["weather_query", "calendar_set", "qa_currency", "calendar_query"])
    found = mapped(path, mapping)
    assert list(kept(found).values()) == [
        {"location": "berlin", "date": "2026-03-20"},
        {"text": "brot zu kaufen", "remind_at": "2026-03-20T17:00"},
        {"amount": 200, "from_currency": "EUR", "to_currency": "USD"},
    ]
    assert reasons(found) == {"slot_without_argument": 1, "other_part": 1}
    rows = map_source(found)[1]
    assert {each.request.dialogue_id for each in rows if isinstance(each, Mapped)} == {
        "massive-0",
        "massive-1",
        "massive-2",
    }


def test_hwu64_takes_what_was_typed_and_leaves_out_what_massive_measures(tmp_path: Path) -> None:
    def line(annotation: str, text: str, typed: str, partitions: list[str]) -> dict[str, Any]:
        return {
            "intent": "lights",
            "annotation": annotation,
            "text": text,
            "text_as_typed": typed,
            "massive_partition": partitions,
        }

    rows = [
        line("off in the [room : kitchen]", "off in the kitchen", "Off in the KITCHEN, please!", ["train"]),
        line("off in the [room : hall]", "off in the hall", "off in 2 places", []),
        line("off in the [room : attic]", "off in the attic", "Off in the attic", ["test"]),
    ]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), "utf-8")
    (tmp_path / "m.yaml").write_text(
        "form: hwu64\ngroups: {g: {tools: [{name: off, parameters: {room*: string}}]}}\n"
        "intents: {lights: {tool: off, arguments: {room: room}}}\n",
        "utf-8",
    )
    found = mapped(tmp_path / "h.jsonl", tmp_path / "m.yaml")
    assert kept(found) == {"Off in the KITCHEN, please!": {"room": "KITCHEN"}, "off in the hall": {"room": "hall"}}
    assert reasons(found) == {"measured_elsewhere": 1}


def test_clinc150_and_snips_own_files(tmp_path: Path) -> None:
    (tmp_path / "data_full.json").write_text(
        json.dumps(
            {
                "train": [["what is on my card", "balance"]],
                "oos_train": [["who won", "oos"]],
                "test": [["x y", "balance"]],
            }
        ),
        "utf-8",
    )
    (tmp_path / "c.yaml").write_text(
        "form: clinc150\nno_call_share: 1\ngroups: {g: {tools: [{name: balance}]}}\n"
        "intents: {balance: {tool: balance}, oos: {reply: none}}\n",
        "utf-8",
    )
    found = mapped(tmp_path / "data_full.json", tmp_path / "c.yaml")
    assert (kept(found), reasons(found)) == ({"what is on my card": {}, "who won": None}, {"other_part": 1})

    data = {
        "PlayMusic": [{"data": [{"text": "play "}, {"text": "Té Para Tres", "entity": "playlist"}, {"text": " now\n"}]}]
    }
    (tmp_path / "train_PlayMusic.json").write_bytes(json.dumps(data, ensure_ascii=False).encode("latin-1"))
    found = mapped(tmp_path / "train_PlayMusic.json", shortened(tmp_path, "snips", ["PlayMusic"]))
    with pytest.raises(DataFileError, match="labels no slot"):
        map_source(found)
    every = ["artist", "track", "album", "genre", "year", "sort", "service", "music_item"]
    data["PlayMusic"].append({"data": [{"text": f"{name} ", "entity": name} for name in every]})
    (tmp_path / "train_PlayMusic.json").write_bytes(json.dumps(data, ensure_ascii=False).encode("latin-1"))
    assert kept(found)["play Té Para Tres now"] == {"playlist": "Té Para Tres"}


def test_text_that_was_read_in_the_wrong_encoding_is_mended_with_its_spans(tmp_path: Path) -> None:
    wrong = "NoctÃ¡mbulo"
    found = source(tmp_path, [*ROWS, row("food", f"[dish:{wrong}] for [day:friday]")])
    assert kept(found)["Noctámbulo for friday"] == {"dish": "Noctámbulo", "day": "2026-03-20"}


def test_rasa_files_with_synonyms_roles_and_the_rest_of_a_project(tmp_path: Path) -> None:
    (tmp_path / "domain.yml").write_text("version: '3.1'\nintents: [travel]\n", "utf-8")
    (tmp_path / "nlu.yml").write_text(
        'nlu:\n- intent: travel\n  examples: |\n    - from [Oslo]{"entity": "city", '
        '"role": "start"} to [the capital](city:Bergen)\n'
        '    - to [NYC]{"entity": "city"} from [Rome]{"entity": "city", "role": "start", "value": "FCO"}\n'
        "- synonym: New York\n  examples: |\n    - NYC\n",
        "utf-8",
    )
    (tmp_path / "m.yaml").write_text(
        "form: rasa\ngroups: {g: {tools: [{name: go, parameters: {start*: string, end*: string}}]}}\n"
        "intents: {travel: {tool: go, arguments: {start: city.start, end: city}}}\n",
        "utf-8",
    )
    (tmp_path / "m.yaml").rename(tmp_path.parent / "m.yaml")
    found = mapped(tmp_path, tmp_path.parent / "m.yaml")
    assert kept(found) == {
        "from Oslo to the capital": {"start": "Oslo", "end": "Bergen"},
        "to NYC from Rome": {"start": "FCO", "end": "New York"},
    }
    (tmp_path / "nlu.yml").write_text(
        "nlu:\n- intent: travel\n  examples: |\n    - fine\n    - to [NYC]{entity: city}\n", "utf-8"
    )
    with pytest.raises(DataFileError, match=r"nlu\.yml:5: \{entity: city\} is no entity"):
        map_source(found)


def test_thingpedia_placeholders_get_one_value_in_text_and_call(tmp_path: Path) -> None:
    properties = {
        "to": {"type": "string", "description": "tt:username"},
        "count": {"type": "number"},
        "lang": {"type": "string"},
    }
    parameters = {"type": "object", "properties": properties, "required": ["to"]}
    tool = {"name": "com.x.send", "description": "send", "parameters": parameters}
    call = {"to": "USERNAME_0", "count": "NUMBER_0", "lang": "GENERIC_ENTITY_tt:iso_lang_code_0"}
    text = "send NUMBER_0 to USERNAME_0 in GENERIC_ENTITY_tt:iso_lang_code_0 ."
    rows: list[dict[str, Any]] = [
        {"text": text, "kind": "command", "compound": False, "call": {"name": "com.x.send", "arguments": call}},
        {"text": "send", "kind": "command", "compound": False, "call": {"name": "com.x.send", "arguments": {}}},
        {"text": "send", "kind": "monitor", "compound": False},
        {"text": "get", "kind": "command", "compound": False, "call": {"name": "com.y.get", "arguments": {}}},
        {
            "text": "when it rains send",
            "kind": "command",
            "compound": False,
            "call": {"name": "com.x.send", "arguments": {}},
        },
    ]
    (tmp_path / "tools.jsonl").write_text(json.dumps(tool) + "\n", "utf-8")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), "utf-8")
    found = mapped(tmp_path, "thingpedia")
    ((said, arguments),) = kept(found).items()
    languages = {
        value: words for words, value in load_mapping("thingpedia").placeholders["GENERIC_ENTITY_tt:iso_lang_code"]
    }
    assert said == f"send {arguments['count']} to {arguments['to']} in {languages[arguments['lang']]}."
    assert reasons(found) == {"argument_not_said": 1, "not_one_call": 2, "unknown_tool": 1}


# --- what is shipped --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(MAPPINGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_mapping_file_can_be_used(path: Path) -> None:
    mapping = load_mapping(path)
    assert mapping.licence or path.stem == "rasa-example"


def test_no_tool_of_a_shipped_mapping_has_a_bundled_tools_name() -> None:
    bundled = {tool.name for tool in bundled_tools()}
    for path in MAPPINGS.glob("*.yaml"):
        if path.stem != "massive-bundled":
            groups = load_mapping(path).groups
            assert not bundled & {tool.name for group in groups for tool in group.tools}, path


def test_the_rasa_example_becomes_what_docs_intents_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["table", "--mapping", "rasa-example", "configs/intents/rasa-example/nlu"]) == 0
    assert "| read | 59 |" in capsys.readouterr().out
    found = mapped(Path("configs/intents/rasa-example/nlu"), "rasa-example")
    assert kept(found)["please get us the oak room this thursday, half past three in the afternoon"] == {
        "room": "oak",
        "start": "2026-03-26T15:30",
    }


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["table", "--mapping", "masive", str(tmp_path)]) == 2
    assert "no such mapping file; shipped are" in capsys.readouterr().err


def test_a_suite_of_the_test_part_is_one_that_can_be_passed(tmp_path: Path) -> None:
    mapping = shortened(tmp_path, "massive-bundled", ["qa_currency", "play_music"])
    paths = []
    for locale in ("de-DE", "es-ES"):
        rows = [
            ("test", "qa_currency", f"{n} [currency_name : euro] in [currency_name : dollar]") for n in range(11, 16)
        ]
        rows += [("train", "qa_currency", "99 [currency_name : euro] in [currency_name : yen]")]
        rows += [("test", "play_music", f"{'la ' * n}[artist_name : abba]") for n in range(1, 4)]
        paths.append(str(write_massive(tmp_path / f"{locale}.jsonl", rows, locale)))
    out = tmp_path / "suite"
    assert command.main(["suite", "--mapping", str(mapping), *paths, "--out", str(out), "--count", "6"]) == 0
    suite = load_suite(out)
    assert Counter(case.category for case in suite.cases) == {"German": 3, "Spanish": 3}
    assert {len(case.expected) for case in suite.cases} == {0, 1}
    lines = [case.note.split()[0].rpartition(":")[2] for case in suite.cases]
    assert len(set(lines)) == 6  # a sentence and its translation stand on the same line of both files
    assert "yen" not in (out / "cases.jsonl").read_text("utf-8")
    assert command.main(["suite", "--mapping", str(mapping), *paths, "--out", str(out), "--count", "600"]) == 2


DATA = Path(os.environ.get("TINYDISPATCH_DATA", "/nowhere"))


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="TINYDISPATCH_DATA names no folder with massive/, snips/, hwu64/, …")
@pytest.mark.parametrize(
    ("mapping", "path", "least"),
    [
        ("massive", "massive/en-US.jsonl", 4500),
        ("massive-bundled", "massive/de-DE.jsonl", 1500),
        ("snips", "snips/train.jsonl", 9000),
        ("hwu64", "hwu64/hwu64.jsonl", 3000),
        ("thingpedia", "thingpedia", 3500),
    ],
)
def test_the_real_files_keep_as_many_rows_as_docs_intents_says(mapping: str, path: str, least: int) -> None:
    _, rows = map_source(mapped(DATA / path, mapping))
    assert sum(isinstance(each, Mapped) for each in rows) >= least
