"""Exported tiny models, made once per test run, and a runtime that plays back a reply without any model."""

from __future__ import annotations

import atexit
import datetime as dt
import shutil
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from export.config import ExportConfig
from export.export import ExportReport, export_gguf
from tests.fixtures_models import make_tiny_qwen3, teach_reply
from tinydispatch import formats
from tinydispatch.ggml.runtime import Logits
from tinydispatch.tools import Message, Role, Tool, ToolCall

TODAY = dt.date(2026, 3, 19)
QUESTION = "What is the weather in Oslo?"
TAUGHT_CALL = ToolCall("get_weather", {"location": "Oslo"})
WEATHER = Tool(
    "get_weather",
    "Weather for a place",
    {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
)


def _scratch() -> Path:
    path = Path(tempfile.mkdtemp(prefix="tinydispatch-test-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@lru_cache(maxsize=1)
def tiny_export() -> ExportReport:
    """A random tiny Qwen3, exported as F16 and Q8_0; the checkpoint is `report.checkpoint`."""
    folder = _scratch()
    return export_gguf(make_tiny_qwen3(folder / "checkpoint"), folder / "gguf", "tiny", ExportConfig())


@lru_cache(maxsize=1)
def taught_export() -> ExportReport:
    """A tiny Qwen3 that answers QUESTION with TAUGHT_CALL when it is offered WEATHER on TODAY."""
    folder = _scratch()
    messages = formats.with_reference_date([Message(Role.USER, QUESTION)], TODAY)
    checkpoint = make_tiny_qwen3(folder / "checkpoint")
    teach_reply(checkpoint, formats.render_prompt(messages, [WEATHER]), formats.render_calls([TAUGHT_CALL]))
    return export_gguf(checkpoint, folder / "gguf", "taught", ExportConfig())


class PlaybackRuntime:
    """Answers every prompt with the same text; a token is a character, or one of the special tokens.

    `decoded` collects the ids of each `decode` call.
    """

    def __init__(self, reply: str, n_ctx: int = 4096) -> None:
        self._special = list(formats.SPECIAL_TOKENS)
        self._reply = [*self.tokenize(reply, parse_special=True), self._special.index(formats.TURN_END)]
        self._reply_position = -1
        self.n_ctx = n_ctx
        self.chat_template: str | None = formats.default_chat_template()
        self.cached_ids: list[int] = []
        self.decoded: list[list[int]] = []
        self.is_closed = False

    eog_ids = frozenset({formats.SPECIAL_TOKENS.index(formats.TURN_END)})
    control_tokens = frozenset({formats.TURN_START, formats.TURN_END, formats.DOCUMENT_END})
    marker_tokens = frozenset(
        {formats.CALL_START, formats.CALL_END, formats.RESULT_START, formats.RESULT_END},
    )

    def special_token(self, name: str) -> str | None:
        return formats.TURN_END if name == "eos" else None

    def tokenize(self, text: str, *, parse_special: bool) -> list[int]:
        ids = []
        while text:
            for index, token in enumerate(self._special):
                # As in llama.cpp, markers arise from any text and control tokens from special parsing only.
                if text.startswith(token) and (parse_special or token in self.marker_tokens):
                    ids.append(index)
                    text = text[len(token) :]
                    break
            else:
                ids.append(len(self._special) + ord(text[0]))
                text = text[1:]
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        n_special = len(self._special)
        return "".join(self._special[token] if token < n_special else chr(token - n_special) for token in ids)

    def decode(self, ids: Sequence[int]) -> Logits:
        self.decoded.append(list(ids))
        self._reply_position += 1
        self.cached_ids += ids
        logits = np.zeros(0x110000, dtype=np.float32)
        logits[self._reply[self._reply_position]] = 1.0
        return logits

    def truncate(self, n_positions: int) -> None:
        del self.cached_ids[n_positions:]
        self._reply_position = -1

    def close(self) -> None:
        self.is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
