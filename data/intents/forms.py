"""The forms that labelled intent data come in: each row becomes an `Utterance`.

A row whose labels do not fit its text (a span that is shifted, or overlaps another) is an error of the file: it names
file and line and is raised before anything else is done. Rows of parts that are not
asked for are read as well, and set aside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from data.rejected import RejectReason
from data.sources.files import DataFileError, iter_rows


@dataclass(frozen=True)
class Span:
    """A labelled value: `text[start:end]`. `value`, where the data give one, is what the words stand for."""

    slot: str
    start: int
    end: int
    value: Any = None


@dataclass(frozen=True)
class Utterance:
    """One labelled sentence. `row_id` finds it again; rows with one `group` stay on one side of a split.

    `call`, where the data name the call themselves (thingpedia), is its tool and arguments. `set_aside` says why a row
    is not to be used, whatever the mapping says.
    """

    row_id: str
    text: str
    intent: str
    spans: tuple[Span, ...] = ()
    language: str = "en"
    group: str = ""
    call: tuple[str, Mapping[str, Any]] | None = field(default=None, compare=False)
    set_aside: tuple[RejectReason, str] | None = None

    def said(self, span: Span) -> str:
        """The span's words."""
        return self.text[span.start : span.end]


@dataclass(frozen=True)
class ReadSettings:
    """What decides which rows of a file are read: its parts (train, dev, test), and its language where it says none."""

    parts: tuple[str, ...]
    language: str


def read_utterances(form: str, path: Path, settings: ReadSettings) -> list[Utterance]:
    """Every row of a file, or of all files of a folder, in order.

    Raises:
        DataFileError: a file cannot be read, is not of this form, or a span does not fit its text.
    """
    files = intent_files(path)
    rows = [row for file in files for row in _FORMS[form](file, settings)]
    if not rows:
        raise DataFileError(f"{path}: holds no rows of the form '{form}'")
    return rows


def intent_files(path: Path) -> list[Path]:
    """The file itself, or every .jsonl, .json, .yml and .yaml file below a folder, sorted.

    Raises:
        DataFileError: a folder without any.
    """
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in {".jsonl", ".json", ".yml", ".yaml"})
    if not files:
        raise DataFileError(f"{path}: no .jsonl, .json, .yml or .yaml file in this folder")
    return files


def checked(utterance: Utterance, place: str) -> Utterance:
    """The utterance with its spans in order.

    Raises:
        DataFileError: a span lies outside the text, is empty, or overlaps another.
    """
    spans = sorted(utterance.spans, key=lambda span: (span.start, span.end))
    end = 0
    for span in spans:
        words = utterance.text[max(span.start, 0) : max(span.end, 0)]
        if not 0 <= span.start < span.end <= len(utterance.text):
            raise DataFileError(
                f"{place}: slot '{span.slot}' spans {span.start} to {span.end}, and the text has {len(utterance.text)} "
                "characters; 'start' counts from 0, and 'end' is the character after the last"
            )
        if not words.strip():
            raise DataFileError(f"{place}: slot '{span.slot}' spans nothing but spaces")
        if span.start < end:
            raise DataFileError(
                f"{place}: slot '{span.slot}' ({words!r}) overlaps the one before it; a word has one label"
            )
        end = span.end
    utterance = replace(utterance, spans=tuple(_trimmed(span, utterance.text) for span in spans))
    for span in utterance.spans:
        if _cuts_a_word(utterance.text, span.start) or _cuts_a_word(utterance.text, span.end):
            raise DataFileError(
                f"{place}: slot '{span.slot}' spans {span.start} to {span.end}, {utterance.said(span)!r}, which "
                "begins or ends inside a word: it is shifted"
            )
    return utterance


def _cuts_a_word(text: str, at: int) -> bool:
    """Of scripts with spaces between words alone."""
    return 0 < at < len(text) and all(char.isalnum() and char < "\u0250" for char in text[at - 1 : at + 1])


def _trimmed(span: Span, text: str) -> Span:
    """Without the spaces that annotators take along."""
    words = text[span.start : span.end]
    return replace(
        span,
        start=span.start + len(words) - len(words.lstrip()),
        end=span.end - len(words) + len(words.rstrip()),
    )


# --- annotated text: "wake me at [time : nine am]" --------------------------------------------------------------------

_LABELLED = re.compile(r"\[\s*(\w+)\s*:\s*([^\[\]]*?)\s*\]")


def parse_annotated(annotated: str, place: str) -> tuple[str, tuple[Span, ...]]:
    """The plain text, and its spans.

    Raises:
        DataFileError: a bracket that is no label.
    """
    text, spans, done = "", [], 0
    for found in _LABELLED.finditer(annotated):
        text += annotated[done : found.start()]
        spans.append(Span(found[1], len(text), len(text) + len(found[2])))
        text, done = text + found[2], found.end()
    text += annotated[done:]
    if "[" in text or "]" in text:
        raise DataFileError(
            f"{place}: a bracket without its other half in {annotated!r:.80}; a label is [slot : value]"
        )
    return text, tuple(spans)


def _rows(file: Path, keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Place and object of each row; every row has to have the keys."""
    for row in iter_rows(file):
        place = row.row_id if row.row_id.startswith(str(file)) else f"{file.parent}/{row.row_id}"
        if row.error is not None:
            raise DataFileError(f"{place}: not JSON: {row.error}")
        if not isinstance(row.value, dict):
            raise DataFileError(f"{place}: expected an object with {', '.join(keys)}, not {row.value!r:.60}")
        if missing := [key for key in keys if key not in row.value]:
            raise DataFileError(f"{place}: no '{missing[0]}'; a row of this form has {', '.join(keys)}")
        yield place, row.value


def _text(value: Any, key: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataFileError(f"{place}: '{key}' must be text, it is {value!r:.60}")
    return value


def _short(place: str) -> str:
    return place.rsplit("/", 1)[-1]


def _massive(file: Path, settings: ReadSettings) -> Iterator[Utterance]:
    for place, row in _rows(file, ("id", "locale", "partition", "intent", "utt", "annot_utt")):
        text, spans = parse_annotated(_text(row["annot_utt"], "annot_utt", place), place)
        if text != row["utt"]:
            raise DataFileError(
                f"{place}: 'annot_utt' without its labels is {text!r:.80}, and 'utt' {row['utt']!r:.80}"
            )
        language = _text(row["locale"], "locale", place)[:2].lower()
        # A sentence and its translations are one dialogue: what is learnt of one must not be asked in the other.
        utterance = Utterance(_short(place), text, row["intent"], spans, language, f"massive-{row['id']}")
        yield _of_part(checked(utterance, place), row["partition"], settings)


def _hwu64(file: Path, settings: ReadSettings) -> Iterator[Utterance]:
    for place, row in _rows(file, ("intent", "annotation", "text", "text_as_typed", "massive_partition")):
        row_id = _short(place)
        text, spans = parse_annotated(_text(row["annotation"], "annotation", place), place)
        if text != row["text"]:
            raise DataFileError(
                f"{place}: 'annotation' without its labels is {text!r:.80}, and 'text' {row['text']!r:.80}"
            )
        typed = re.sub(r"\[\w+ : ([^\]]*)\]", r"\1", str(row["text_as_typed"])).strip()
        found = _found_again(spans, text, typed)
        if found is not None and not set("[]") & set(typed):
            text, spans = typed, found
        utterance = Utterance(row_id, text, row["intent"], spans, settings.language, f"hwu64-{text.casefold()}")
        if {"test", "dev"} & set(row["massive_partition"] or ()):
            detail = f"stands in MASSIVE's {', '.join(row['massive_partition'])}"
            utterance = replace(utterance, set_aside=(RejectReason.MEASURED_ELSEWHERE, detail))
        yield checked(utterance, place)


def _found_again(spans: Sequence[Span], text: str, other: str) -> tuple[Span, ...] | None:
    """The spans where their words stand in another spelling of the text; None where one is not found in order."""
    found, begin = [], 0
    folded = other.casefold()
    if len(folded) != len(other):
        return None
    for span in spans:
        words = text[span.start : span.end].casefold()
        hit = re.compile(rf"(?<!\w){re.escape(words)}(?!\w)").search(folded, begin)
        if hit is None:
            return None
        found.append(Span(span.slot, hit.start(), hit.end()))
        begin = hit.end()
    return tuple(found)


def _clinc150(file: Path, settings: ReadSettings) -> Iterator[Utterance]:
    if file.suffix == ".json":
        tree = _json_object(file)
        rows = [(f"{file}[{part}][{i}]", part, pair) for part, pairs in tree.items() for i, pair in enumerate(pairs)]
        for place, part, pair in rows:
            if not isinstance(pair, list) or len(pair) != 2:
                raise DataFileError(f"{place}: expected [text, intent], not {pair!r:.60}")
            # "oos_train" belongs to train.
            yield _clinc_row(place, part.removeprefix("oos_"), pair[0], pair[1], settings)
        return
    for place, row in _rows(file, ("split", "intent", "text")):
        yield _clinc_row(place, row["split"], row["text"], row["intent"], settings)


def _clinc_row(place: str, part: str, text: Any, intent: str, settings: ReadSettings) -> Utterance:
    text = _text(text, "text", place)
    utterance = Utterance(_short(place), text, intent, (), settings.language, f"clinc150-{text.casefold()}")
    return _of_part(utterance, part, settings)


def _of_part(utterance: Utterance, part: str, settings: ReadSettings) -> Utterance:
    if part in settings.parts:
        return utterance
    return replace(utterance, set_aside=(RejectReason.OTHER_PART, f"of the part '{part}'"))


def _json_object(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_bytes().decode("utf-8"))
    except UnicodeDecodeError:
        # SNIPS ships PlayMusic's training file in Latin-1.
        tree = json.loads(file.read_text("latin-1"))
    except (OSError, ValueError) as error:
        raise DataFileError(f"{file}: cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise DataFileError(f"{file}: expected an object, not {type(tree).__name__}")
    return tree


def _snips(file: Path, settings: ReadSettings) -> Iterator[Utterance]:
    """SNIPS' own files ({intent: [{"data": [{"text", "entity"}]}]}), or flat rows."""
    if file.suffix != ".json":
        yield from _flat(file, settings)
        return
    for intent, rows in _json_object(file).items():
        for index, row in enumerate(rows):
            place = f"{file}[{intent}][{index}]"
            if not isinstance(row, dict) or not isinstance(row.get("data"), list):
                raise DataFileError(f'{place}: expected {{"data": [{{"text": …, "entity": …}}]}}, not {row!r:.60}')
            text, spans = "", []
            for chunk in row["data"]:
                words = chunk["text"]
                if "entity" in chunk:
                    begin = len(text) + len(words) - len(words.lstrip())
                    spans.append(Span(chunk["entity"], begin, begin + len(words.strip())))
                text += words
            text, mended = _mended(*_stripped(text, spans))
            yield checked(Utterance(_short(place), text, intent, mended, settings.language), place)


def _stripped(text: str, spans: Sequence[Span]) -> tuple[str, Sequence[Span]]:
    """Without the line break that ends some texts, which a label may hold."""
    end = len(text.rstrip())
    return text[:end], [replace(span, end=end) if end < span.end <= len(text) else span for span in spans]


def _mended(text: str, spans: Sequence[Span]) -> tuple[str, tuple[Span, ...]]:
    """UTF-8 that was read as Latin-1 ("NoctÃ¡mbulo"), as it was written; anything else as it is."""
    if not re.search(r"[\u00c2-\u00f4][\u0080-\u00bf]", text):
        return text, tuple(spans)
    try:
        return text.encode("latin-1").decode("utf-8"), tuple(
            replace(
                span,
                start=len(text[: span.start].encode("latin-1").decode("utf-8")),
                end=len(text[: span.end].encode("latin-1").decode("utf-8")),
            )
            for span in spans
        )
    except UnicodeError:
        return text, tuple(spans)


def _flat(file: Path, settings: ReadSettings) -> Iterator[Utterance]:
    """{"intent", "text", "slots": [{"name", "value", "start", "end"}]}, a line each."""
    for place, row in _rows(file, ("intent", "text", "slots")):
        text = _text(row["text"], "text", place)
        spans = []
        for slot in row["slots"]:
            if not isinstance(slot, dict) or not {"name", "start", "end"} <= slot.keys():
                raise DataFileError(f"{place}: a slot has name, start and end (and value): {slot!r:.80}")
            words = text[slot["start"] : slot["end"]]
            if "value" in slot and slot["value"] != words:
                at = text.find(str(slot["value"]))
                hint = f"it stands at {at}" if at >= 0 else "which the text does not hold"
                raise DataFileError(
                    f"{place}: slot '{slot['name']}' spans {slot['start']} to {slot['end']}, which is {words!r}, not "
                    f"{slot['value']!r}; {hint}"
                )
            spans.append(Span(slot["name"], slot["start"], slot["end"]))
        text, mended = _mended(*_stripped(text, spans))
        yield checked(Utterance(_short(place), text, row["intent"], mended, settings.language), place)


# --- Rasa -------------------------------------------------------------------------------------------------------------

_ENTITY = re.compile(r"\[(?P<words>[^\]]+)\](?:\((?P<short>[^)]+)\)|(?P<long>\{[^}]*\}))")


def _rasa(file: Path, settings: ReadSettings) -> Iterator[Utterance]:
    """`nlu:` with intents and their examples, as `rasa train` reads it; synonyms give entities their values."""
    if file.suffix not in (".yml", ".yaml"):
        yield from _flat(file, settings)
        return
    try:
        loader = yaml.SafeLoader(file.read_text("utf-8"))
        root = loader.get_single_node()
        tree = loader.construct_document(root) if root is not None else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataFileError(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("nlu"), list):
        if isinstance(tree, dict) and {"rules", "stories", "responses", "intents", "pipeline"} & tree.keys():
            return  # the rest of a Rasa project
        raise DataFileError(f"{file}: expected 'nlu' with a list of intents")
    synonyms = {
        _unmarked(words).casefold(): entry["synonym"]
        for entry in tree["nlu"]
        if isinstance(entry, dict) and "synonym" in entry
        for _, words in _examples(entry)
    }
    lines = _example_lines(root)
    for index, entry in enumerate(tree["nlu"]):
        if not isinstance(entry, dict):
            raise DataFileError(f"{file}: entry {index + 1} of 'nlu' is no mapping: {entry!r:.60}")
        if "intent" not in entry:
            continue
        for offset, words in _examples(entry):
            place = f"{file}:{lines[index] + offset}"
            text, spans = _rasa_example(words, synonyms, place)
            intent = str(entry["intent"]).strip()
            yield checked(Utterance(_short(place), text, intent, spans, settings.language), place)


def _examples(entry: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Line within the block, and example."""
    examples = entry.get("examples") or ""
    if isinstance(examples, list):  # the long form: - text: |
        texts = [str(item.get("text", "")) if isinstance(item, dict) else str(item) for item in examples]
        return [(index, text.strip().removeprefix("- ").strip()) for index, text in enumerate(texts) if text.strip()]
    return [
        (offset, line.strip()[1:].strip())
        for offset, line in enumerate(str(examples).split("\n"))
        if line.strip().startswith("-") and line.strip()[1:].strip()
    ]


def _example_lines(root: yaml.Node | None) -> list[int]:
    """For each entry of `nlu` the line on which its first example stands."""
    lines = []
    for key, value in root.value if root is not None else ():
        if key.value == "nlu":
            for entry in value.value:
                marks = [node for name, node in entry.value if name.value == "examples"] or [entry]
                block = getattr(marks[0], "style", None) == "|"
                lines.append(marks[0].start_mark.line + (2 if block else 1))
    return lines


def _unmarked(words: str) -> str:
    return _ENTITY.sub(lambda found: found["words"], words)


def _rasa_example(words: str, synonyms: Mapping[str, str], place: str) -> tuple[str, tuple[Span, ...]]:
    text, spans, done = "", [], 0
    for found in _ENTITY.finditer(words):
        text += words[done : found.start()]
        inner = found["words"].strip()
        name, value = _rasa_entity(found, place)
        value = value if value is not None else synonyms.get(inner.casefold())
        spans.append(Span(name, len(text), len(text) + len(inner), value))
        text, done = text + inner, found.end()
    return text + words[done:], tuple(spans)


def _rasa_entity(found: re.Match[str], place: str) -> tuple[str, Any]:
    if found["short"] is not None:
        name, _, value = found["short"].partition(":")
        return name.strip(), value.strip() or None
    try:
        entity = json.loads(found["long"])
        name = entity["entity"]
    except (ValueError, KeyError, TypeError):
        message = f'{place}: {found["long"]} is no entity; expected {{"entity": "city", "role": …, "value": …}}'
        raise DataFileError(message) from None
    # A role tells two values of one kind apart, as slot names do elsewhere.
    role = entity.get("role") or entity.get("group")
    return (f"{name}.{role}" if role else name), entity.get("value")


# --- thingpedia -------------------------------------------------------------------------------------------------------


def _thingpedia(file: Path, settings: ReadSettings) -> Iterator[Utterance]:
    if file.stem == "tools":
        return
    for place, row in _rows(file, ("text", "kind", "compound")):
        call = row.get("call")
        text = _text(row["text"], "text", place)
        utterance = Utterance(_short(place), text, "", (), settings.language, f"thingpedia-{text}")
        if call is None or row["compound"] or row["kind"] != "command":
            detail = (
                "two calls"
                if row["compound"]
                else "a trigger"
                if row["kind"] != "command"
                else "filters or several calls"
            )
            yield replace(utterance, set_aside=(RejectReason.NOT_ONE_CALL, detail))
            continue
        yield replace(utterance, intent=call["name"], call=(call["name"], call["arguments"]))


_FORMS: Mapping[str, Callable[[Path, ReadSettings], Iterator[Utterance]]] = {
    "massive": _massive,
    "snips": _snips,
    "hwu64": _hwu64,
    "clinc150": _clinc150,
    "rasa": _rasa,
    "thingpedia": _thingpedia,
    "flat": _flat,
}
FORMS = tuple(_FORMS)
