"""What the larger recipes meet on their first day: missing kernels, one thread, free rows, short memory, long turns."""

from __future__ import annotations

import datetime as dt
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from eval.backends import Generation, Request
from eval.backends.checkpoint import CheckpointBackend
from tests.fixtures_models import make_tiny_qwen35
from tinydispatch import formats
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Conversation, Message, Role, ToolCall
from training.config import Dtype
from training.dataset import encode_conversation
from training.errors import PackingError
from training.hardware import all_threads
from training.model import load_model
from training.packing import make_packable
from training.tree import tree_batch


@pytest.mark.skipif(find_spec("fla") is not None, reason="the kernels are there")
def test_packing_of_linear_attention_names_both_packages_before_the_first_step(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_tiny_qwen35(tmp_path, 2), dtype=torch.float32)
    with pytest.raises(PackingError, match="flash-linear-attention"):
        make_packable(model)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux tells which cores a process has")
def test_stages_of_one_process_use_every_core_whatever_the_launcher_set() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with all_threads():
            assert torch.get_num_threads() == len(os.sched_getaffinity(0))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_opts_free_rows_start_from_related_words(opt_dir: Path, opt_tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_model(opt_dir, opt_tokenizer, Dtype.FLOAT32)
    weight = model.get_input_embeddings().weight
    row = opt_tokenizer.get_vocab()[formats.CALL_START]
    near = opt_tokenizer(" call function tool", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(weight[row], weight[near].mean(0))
    assert torch.equal(weight, model.get_output_embeddings().weight)


def test_a_batch_that_does_not_fit_is_halved(
    qwen_dir: Path, qwen_tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    model = AutoModelForCausalLM.from_pretrained(qwen_dir, dtype=torch.float32)
    requests = [
        Request((Message(Role.USER, f"weather in {city}"),), bundled_tools()[:1], None)
        for city in ("Oslo", "Rome", "Bern", "Lima", "Kyiv")
    ]

    def replies() -> list[str]:
        backend = CheckpointBackend(model, qwen_tokenizer, max_new_tokens=3, batch_size=5)
        found = backend.generate(requests)
        assert all(isinstance(reply, Generation) for reply in found)
        return [reply.text for reply in found if isinstance(reply, Generation)]

    expected, whole = replies(), model.forward

    def small(*arguments: Any, **keywords: Any) -> Any:
        if keywords["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*arguments, **keywords)

    model.forward = small
    assert replies() == expected
    assert "going on with 2" in caplog.text


def test_a_hybrid_templates_conversation_of_four_turns_is_one_tree(qwen_tokenizer: PreTrainedTokenizerBase) -> None:
    messages: list[Message] = []
    for city in ("Oslo", "Rome", "Bern", "Lima"):
        messages += [
            Message(Role.USER, f"weather in {city}?"),
            Message(Role.ASSISTANT, "", (ToolCall("get_weather", {"location": city}),)),
        ]
    conversation = Conversation(tuple(messages), bundled_tools(), "test", "c", reference_date=dt.date(2026, 3, 19))
    examples = encode_conversation(conversation, qwen_tokenizer)
    assert len(examples) == 4  # the empty thought stands in the last turn alone
    # Only the call and the end are trained: the empty thought is part of the prompt.
    for example in examples:
        trained = [token for token, is_trained in zip(example.input_ids, example.is_trained, strict=True) if is_trained]
        assert "<think>" not in qwen_tokenizer.decode(trained)
    tree = tree_batch([{"input_ids": list(each.input_ids), "labels": each.labels} for each in examples])
    together = sum(len(each.input_ids) for each in examples)
    print(together, tree["input_ids"].shape[1])
    assert tree["input_ids"].shape[1] < 0.35 * together
