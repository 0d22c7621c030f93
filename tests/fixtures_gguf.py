"""Exported tiny models, made once per test run."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from export.config import ExportConfig, Quantization
from export.export import ExportReport, export_gguf
from tests.fixtures_models import make_tiny_llama, make_tiny_qwen3, make_tiny_tokenizer, teach_reply
from tests.fixtures_playback import QUESTION, TAUGHT_CALL, TODAY, WEATHER, PlaybackRuntime
from tinydispatch import formats
from tinydispatch.tools import Message, Role

__all__ = [
    "QUESTION",
    "TAUGHT_CALL",
    "TODAY",
    "WEATHER",
    "PlaybackRuntime",
    "scratch",
    "taught_export",
    "tiny_export",
    "tiny_llama_export",
]


def scratch() -> Path:
    path = Path(tempfile.mkdtemp(prefix="tinydispatch-test-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@lru_cache(maxsize=1)
def tiny_export() -> ExportReport:
    """A random tiny Qwen3, exported as F16 and Q8_0; the checkpoint is `report.checkpoint`."""
    folder = scratch()
    return export_gguf(make_tiny_qwen3(folder / "checkpoint"), folder / "gguf", "tiny", ExportConfig())


@lru_cache(maxsize=1)
def tiny_llama_export() -> ExportReport:
    """A random Llama with SmolLM2's layout and splitting, in every format; `report.checkpoint` is the checkpoint."""
    folder = scratch()
    checkpoint = make_tiny_llama(folder / "checkpoint", make_tiny_tokenizer(is_smollm=True))
    return export_gguf(checkpoint, folder / "gguf", "llama", ExportConfig(quantizations=tuple(Quantization)))


@lru_cache(maxsize=1)
def taught_export() -> ExportReport:
    """A tiny Qwen3 that answers QUESTION with TAUGHT_CALL when it is offered WEATHER on TODAY."""
    folder = scratch()
    messages = formats.with_reference_date([Message(Role.USER, QUESTION)], TODAY)
    checkpoint = make_tiny_qwen3(folder / "checkpoint")
    teach_reply(checkpoint, formats.render_prompt(messages, [WEATHER]), formats.render_calls([TAUGHT_CALL]))
    return export_gguf(checkpoint, folder / "gguf", "taught", ExportConfig())
