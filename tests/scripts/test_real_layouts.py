"""Stand-ins with the layout, template and tokenizer files of each recipe's checkpoint, through the whole job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tinydispatch import formats
from tinydispatch.ggml.header import read_header
from train import main
from training.random_checkpoint import make_checkpoint

pytestmark = pytest.mark.slow

# By recipe: the stand-in, how it is trained, and its GGUF architecture.
_LAYOUTS = {
    "opt350m": ("tiny-opt-350m", torch.float16, "opt"),
    "qwen3-4b-lora": ("tiny-qwen3-4b", torch.bfloat16, "qwen3"),
    "qwen3-0.6b": ("tiny-qwen3", torch.bfloat16, "qwen3"),
    "qwen3.5-4b-lora": ("tiny-qwen3.5-4b", torch.bfloat16, "qwen35"),
}


@pytest.mark.parametrize("recipe", _LAYOUTS)
def test_a_checkpoint_as_it_is_published_goes_through_its_recipe(recipe: str, tmp_path: Path) -> None:
    name, dtype, architecture = _LAYOUTS[recipe]
    make_checkpoint(name, tmp_path / "model", dtype=dtype)
    suite = write_suite(tmp_path / "suite")
    overrides = [
        f"runs_dir={tmp_path}", "name=run", f"model.path={tmp_path / 'model'}",
        "data.sources=[{kind: synth, count: 24}]", "data.max_length_tokens=2048", "training.max_steps=2",
        "training.global_batch_size=2", "training.per_device_batch_size=2", "training.warmup_steps=0",
        "training.precision=fp32", "training.pass_rate.every_steps=null", "tracking.wandb=off",
        f"eval.suites=[{suite}]", "eval.max_new_tokens=48", "export.quantizations=[f16, q8_0]",
        "export.max_verification_tokens=300",
    ]  # fmt: skip
    assert main(["--config", recipe, *overrides]) == 0
    run = tmp_path / "run"
    header = read_header(run / "gguf" / "run-q8_0.gguf")
    assert header.architecture == architecture
    rates = json.loads((run / "manifest.json").read_text("utf-8"))["pass_rates"]["two"]
    assert {row["overall"]["total"] for row in rates.values()} == {2}
    tokenizer = AutoTokenizer.from_pretrained(run / "checkpoint")
    # A stock server leaves the switch for thinking at its default: the file must then render what was trained.
    template = str(tokenizer.chat_template)
    assert formats.without_thinking(template) == template
    for row in ("base", "checkpoint", "gguf-q8_0"):
        result = json.loads((run / "eval" / f"two-{row}.json").read_text("utf-8"))
        assert all(case["outcome"] is not None for case in result["cases"]), result["cases"]


def write_suite(folder: Path) -> Path:
    """Two cases over one tool."""
    folder.mkdir()
    (folder / "suite.json").write_text(json.dumps({"name": "two", "categories": ["call"]}), "utf-8")
    rows = [
        {"id": f"c{place}", "category": "call", "messages": [{"role": "user", "content": f"weather in {city}"}],
         "expected": {"calls": [{"name": "get_weather", "arguments": {"location": city}}]}}
        for place, city in enumerate(("Oslo", "Rome"))
    ]  # fmt: skip
    (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder
