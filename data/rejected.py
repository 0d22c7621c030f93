"""Why a row was not kept, and what was mended in one that was: closed sets, so that both are counted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

_SAMPLE_CHARS = 300


class RejectReason(StrEnum):
    """Why a row is not in the training data. The data card explains each by its `meaning`."""

    NOT_JSON = "not_json"
    MALFORMED_ROW = "malformed_row"
    UNSUPPORTED_CONTENT = "unsupported_content"
    INVALID_ANSWER = "invalid_answer"
    GAVE_UP = "gave_up"
    NOT_ACCEPTED = "not_accepted"
    DECIDED_ELSEWHERE = "decided_elsewhere"
    THOUGHT_ONLY = "thought_only"
    MALFORMED_CALL = "malformed_call"
    CALL_IN_TEXT = "call_in_text"
    INVALID_TOOLS = "invalid_tools"
    AMBIGUOUS_TOOL = "ambiguous_tool"
    UNKNOWN_TOOL = "unknown_tool"
    SCHEMA_VIOLATION = "schema_violation"
    NO_USER_TURN = "no_user_turn"
    NO_ASSISTANT_TURN = "no_assistant_turn"
    NOTHING_TRAINED = "nothing_trained"
    EMPTY_REPLY = "empty_reply"
    UNSTORABLE = "unstorable"
    UNRENDERABLE = "unrenderable"
    PERSONAL_DATA = "personal_data"
    UNGROUNDED_ADDRESS = "ungrounded_address"
    FLOOD = "flood"
    CONTRADICTORY = "contradictory"
    DUPLICATE = "duplicate"
    LEFT_OUT_BY_WEIGHT = "left_out_by_weight"
    NEAR_DUPLICATE = "near_duplicate"
    EVALUATION_OVERLAP = "evaluation_overlap"
    TOO_LONG = "too_long"
    HELDOUT_TOOL = "heldout_tool"
    OTHER_PART = "other_part"
    MEASURED_ELSEWHERE = "measured_elsewhere"
    INTENT_NOT_MAPPED = "intent_not_mapped"
    INTENT_LEFT_OUT = "intent_left_out"
    SLOT_WITHOUT_ARGUMENT = "slot_without_argument"
    ARGUMENT_NOT_SAID = "argument_not_said"
    SAID_TWICE = "said_twice"
    WORDS_UNLABELLED = "words_unlabelled"
    DAY_NOT_UNDERSTOOD = "day_not_understood"
    TIME_NOT_UNDERSTOOD = "time_not_understood"
    HALF_OF_DAY_UNKNOWN = "half_of_day_unknown"
    PRESENT_TIME_NEEDED = "present_time_needed"
    NUMBER_NOT_UNDERSTOOD = "number_not_understood"
    PLACE_OR_MONEY_NOT_UNDERSTOOD = "place_or_money_not_understood"
    CHOICE_NOT_UNDERSTOOD = "choice_not_understood"
    NOT_ONE_CALL = "not_one_call"
    NO_CALL_SURPLUS = "no_call_surplus"

    @property
    def meaning(self) -> str:
        """One line for the data card."""
        return _MEANINGS[self]


_MEANINGS = {
    RejectReason.NOT_JSON: "the line or file is not JSON",
    RejectReason.MALFORMED_ROW: "keys or turns are missing or of the wrong type",
    RejectReason.UNSUPPORTED_CONTENT: "a message holds something other than text",
    RejectReason.INVALID_ANSWER: "the source itself marks the answer as not valid",
    RejectReason.GAVE_UP: "the dialogue ends in giving up",
    RejectReason.NOT_ACCEPTED: "the answer was refused, or not corrected, and nobody said what is right",
    RejectReason.DECIDED_ELSEWHERE: "another line says what a person decided about this one, and is read in its place",
    RejectReason.THOUGHT_ONLY: "the last turn is a thought without an action",
    RejectReason.MALFORMED_CALL: "a call whose arguments cannot be read as an object",
    RejectReason.CALL_IN_TEXT: "a trained reply holds a call, or its marker, as text that no reader takes apart",
    RejectReason.INVALID_TOOLS: "the list of tools cannot be read, is empty or holds no JSON schema",
    RejectReason.AMBIGUOUS_TOOL: "a call names a tool that is listed twice with different definitions",
    RejectReason.UNKNOWN_TOOL: "a call names a tool that was not offered",
    RejectReason.SCHEMA_VIOLATION: "a trained call contradicts its tool's schema",
    RejectReason.NO_USER_TURN: "nobody asks anything",
    RejectReason.NO_ASSISTANT_TURN: "nobody answers",
    RejectReason.NOTHING_TRAINED: "no assistant turn carries loss",
    RejectReason.EMPTY_REPLY: "a trained assistant turn has neither text nor a call",
    RejectReason.UNSTORABLE: "a value that JSON or UTF-8 cannot express (infinity, half a character)",
    RejectReason.UNRENDERABLE: "the model's chat template refuses the conversation",
    RejectReason.PERSONAL_DATA: "holds personal data or a secret of a class that data.personal_data drops",
    RejectReason.UNGROUNDED_ADDRESS: "a trained call sends to an address that nobody mentioned, or its sender alone",
    RejectReason.FLOOD: "one of more records of a session, client or kind than data.guards lets through",
    RejectReason.CONTRADICTORY: "another answer to the same request, and no more to be believed than that",
    RejectReason.DUPLICATE: "equal to an earlier row",
    RejectReason.LEFT_OUT_BY_WEIGHT: "the weight of its source is below 1",
    RejectReason.NEAR_DUPLICATE: "the same answer to nearly the same request as an earlier row",
    RejectReason.EVALUATION_OVERLAP: "shares its request with an evaluation case",
    RejectReason.TOO_LONG: "longer than max_length_tokens, whatever was shortened",
    RejectReason.HELDOUT_TOOL: "offers a tool or category that training must not see, and belongs to no held-out group",
    RejectReason.OTHER_PART: "of a part of the data set (dev, test) that was not asked for",
    RejectReason.MEASURED_ELSEWHERE: "repeats an utterance of another data set's test part",
    RejectReason.INTENT_NOT_MAPPED: "the mapping file does not name the row's intent",
    RejectReason.INTENT_LEFT_OUT: "the mapping file leaves the intent, or rows worded like this one, out",
    RejectReason.SLOT_WITHOUT_ARGUMENT: "something labelled that no argument of the tool takes",
    RejectReason.ARGUMENT_NOT_SAID: "the tool needs an argument that the row does not say",
    RejectReason.SAID_TWICE: "two values for one argument",
    RejectReason.WORDS_UNLABELLED: "words that would change the call are not labelled",
    RejectReason.DAY_NOT_UNDERSTOOD: "a day that is not understood, or several where the tool takes one",
    RejectReason.TIME_NOT_UNDERSTOOD: "a time of day that is not understood",
    RejectReason.HALF_OF_DAY_UNKNOWN: "'at seven': morning or evening is not said",
    RejectReason.PRESENT_TIME_NEEDED: "counts from the present time of day, which no prompt states",
    RejectReason.NUMBER_NOT_UNDERSTOOD: "a number, duration or rhythm that is not understood",
    RejectReason.PLACE_OR_MONEY_NOT_UNDERSTOOD: "a currency, time zone or address that is not understood",
    RejectReason.CHOICE_NOT_UNDERSTOOD: "none of the values that the tool's schema or the mapping lists",
    RejectReason.NOT_ONE_CALL: "a program of several calls, filters or triggers",
    RejectReason.NO_CALL_SURPLUS: "more requests without a call than the mapping's share of them",
}


class Repair(StrEnum):
    """What an adapter mended in a row that it kept; listed under `repairs` in the conversation's metadata."""

    RETRY_HINT_DROPPED = "retry_hint_dropped"
    THOUGHT_DROPPED = "thought_dropped"
    SEVERAL_ACTIONS = "several_actions"
    ARGUMENTS_FOR_ACTION_INPUT = "arguments_for_action_input"
    TRAILING_TEXT_DROPPED = "trailing_text_dropped"
    EMPTY_ARGUMENTS = "empty_arguments"
    PYTHON_LITERAL = "python_literal"
    RAW_CONTROL_CHARACTERS = "raw_control_characters"
    DOUBLE_ENCODED = "double_encoded"
    RESERVED_WORD_RENAMED = "reserved_word_renamed"
    TOOL_RENAMED = "tool_renamed"
    DUPLICATE_TOOL_DROPPED = "duplicate_tool_dropped"
    TYPE_UNKNOWN = "type_unknown"
    DEFAULT_CONVERTED = "default_converted"
    DEFAULT_DROPPED = "default_dropped"
    ENUM_DROPPED = "enum_dropped"
    REQUIRED_UNLISTED = "required_unlisted"
    MISSING_RETURN_TYPE = "missing_return_type"
    CALL_TAG_LEFT_OPEN = "call_tag_left_open"
    ANSWER_CORRECTED = "answer_corrected"
    CALL_READ_FROM_TEXT = "call_read_from_text"
    FILLED_NULLS_DROPPED = "filled_nulls_dropped"
    PERSONAL_DATA_MASKED = "personal_data_masked"


@dataclass(frozen=True)
class Rejected:
    """A row that was read and not kept; `row_id` finds it again, `sample` shows its beginning."""

    reason: RejectReason
    detail: str
    row_id: str
    sample: str = ""
    about: str = ""  # the evaluation text that an overlapping row shares


class RowError(ValueError):
    """Raised inside an adapter, turned into `Rejected` at its border."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def sample_of(value: Any) -> str:
    """The beginning of a raw value, short enough for the data card."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except RecursionError:
        text = f"{type(value).__name__} nested too deeply to be shown"
    # A row may be rejected for half a surrogate pair; its sample still has to be written.
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _SAMPLE_CHARS else text[:_SAMPLE_CHARS] + "…"
