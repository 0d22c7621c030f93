"""What a model is trained to answer is, id for id, what it is asked once it is a GGUF file behind a server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from export.config import ExportConfig
from export.export import export_gguf
from tests.training.samples import conversation, weather_call
from tinydispatch import formats
from tinydispatch.ggml.open import open_model
from tinydispatch.prompt import encode_prompt
from tinydispatch.tools import Message, Role
from training.dataset import encode_conversation
from training.tokenizer import load_tokenizer

TALK = conversation(
    Message(Role.SYSTEM, "Be brief & exact."),
    Message(Role.USER, 'Weather in Zürich, "now"?\nAnd São Paulo 🥶'),
    Message(Role.ASSISTANT, tool_calls=(weather_call("Zürich"), weather_call("São Paulo"))),
    Message(Role.TOOL, '{"temperature": -3}', tool_name="get_weather"),
    Message(Role.TOOL, '{"temperature": 31}', tool_name="get_weather"),
    Message(Role.ASSISTANT, "−3 °C and 31 °C."),
)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["opt", "qwen3"])
def test_prompts_of_trained_turns_are_those_of_the_exported_file(
    family: str, opt_dir: Path, qwen_dir: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "checkpoint"
    shutil.copytree(opt_dir if family == "opt" else qwen_dir, directory)
    tokenizer = load_tokenizer(directory)
    tokenizer.save_pretrained(directory)
    report = export_gguf(directory, tmp_path / "gguf", "tiny", ExportConfig.model_validate({"quantizations": ["f16"]}))
    messages = formats.with_reference_date(TALK.messages, TALK.reference_date)
    turns = [index for index, message in enumerate(messages) if message.role is Role.ASSISTANT]
    examples = encode_conversation(TALK, tokenizer)
    with open_model(report.files[0].path, n_ctx=1024) as model:
        assert tokenizer.eos_token_id in model.eog_ids
        for turn in turns:
            asked = encode_prompt(model, messages[:turn], TALK.tools)
            holders = [example for example in examples if list(example.input_ids[: len(asked)]) == asked]
            assert any(example.is_trained[len(asked)] for example in holders), (family, turn)
