"""What cannot work is refused before the first step, with every reason; what is unusual is said."""

from __future__ import annotations

import copy
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from rich.console import Console
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from scripts.gguf_route import gguf_route
from tests.training.samples import MakeRun, simple_conversation
from training import memory, preflight
from training.config import RunConfig, load_run_config
from training.dataset import EncodedData, build_dataset
from training.errors import PreflightError
from training.memory import estimate_memory
from training.preflight import Check, Verdict, report
from training.sft import train

LORA = {"training__method": "lora", "training__optimizer": "adamw"}


@pytest.fixture(scope="session")
def data(qwen_tokenizer: PreTrainedTokenizerBase) -> EncodedData:
    return build_dataset([simple_conversation(place) for place in ("Oslo", "Lima", "Rome")], qwen_tokenizer, 2048)


def checks(run: RunConfig, data: EncodedData, tokenizer: PreTrainedTokenizerBase) -> dict[str, Check]:
    return {check.name: check for check in preflight.preflight(run, Path(run.model.path), tokenizer, data, None, ())[1]}


def relabelled(data: EncodedData, change: Any) -> EncodedData:
    rows = [{"input_ids": row["input_ids"], "labels": change(row["labels"])} for row in data.dataset]
    return replace(data, dataset=Dataset.from_list(rows, features=data.dataset.features))


def test_an_ordinary_run_passes_every_check(
    make_run: MakeRun, data: EncodedData, qwen_tokenizer: PreTrainedTokenizerBase
) -> None:
    found = checks(make_run(), data, qwen_tokenizer)
    assert list(found) == [
        *("end token", "padding", "length", "trained tokens"),
        *("packing", "memory", "disk", "learning rate", "schedule", "held out"),
    ]
    assert {check.verdict for check in found.values()} == {Verdict.OK}, found


def test_what_trees_save_is_said_and_memory_is_that_of_a_tree(
    make_run: MakeRun, data: EncodedData, qwen_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three conversations of the same tools and date."""
    asked: list[int] = []

    def noted(run: RunConfig, directory: Path, row_tokens: int, share: float) -> memory.MemoryEstimate:
        asked.append(row_tokens)
        return estimate_memory(run, directory, row_tokens, share)

    monkeypatch.setattr(preflight, "estimate_memory", noted)
    found = {}
    for packing in ("auto", "batch"):
        run = make_run(training__packing=packing, training__global_batch_size=3, training__per_device_batch_size=3)
        found[packing] = checks(run, data, qwen_tokenizer)["packing"].finding
    assert found["batch"] == "batch"
    assert re.match(r"tree: [34]\d% of the tokens are computed", found["auto"]), found
    assert asked[0] < 0.5 * asked[1]


def test_the_table_is_printed_once_and_every_failure_is_in_the_error() -> None:
    console = Console(file=io.StringIO(), width=100)
    made = [Check("one", Verdict.FAIL, "first"), Check("two", Verdict.OK, "fine"), Check("three", Verdict.FAIL, "last")]
    with pytest.raises(PreflightError, match=r"this run cannot work\. one: first; three: last"):
        report(made, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert [word in printed for word in ("one", "two", "fine", "three")] == [True] * 4


def test_an_end_token_without_loss_is_refused(
    make_run: MakeRun, data: EncodedData, qwen_tokenizer: PreTrainedTokenizerBase
) -> None:
    silent = relabelled(data, lambda labels: [*labels[:-1], -100])
    check = checks(make_run(), silent, qwen_tokenizer)["end token"]
    assert check.verdict is Verdict.FAIL
    assert "at the end of 3 of 3 sequences" in check.finding


def test_padding_with_the_end_token_is_refused(
    make_run: MakeRun, data: EncodedData, qwen_tokenizer: PreTrainedTokenizerBase
) -> None:
    confused = copy.deepcopy(qwen_tokenizer)
    confused.pad_token = confused.eos_token
    assert checks(make_run(), data, confused)["padding"].verdict is Verdict.FAIL


def test_a_sequence_beyond_the_positions_is_refused(
    make_run: MakeRun, data: EncodedData, qwen_tokenizer: PreTrainedTokenizerBase, qwen_dir: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    shutil.copytree(qwen_dir, short)
    config = json.loads((short / "config.json").read_text("utf-8")) | {"max_position_embeddings": 100}
    (short / "config.json").write_text(json.dumps(config), "utf-8")
    check = checks(make_run(model__path=short), data, qwen_tokenizer)["length"]
    assert check.verdict is Verdict.FAIL
    assert "the model has 100 positions" in check.finding


def test_a_model_larger_than_all_memory_is_refused_and_a_batch_larger_than_what_is_free_is_warned_of(
    make_run: MakeRun, data: EncodedData, qwen_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    need = estimate_memory(run, Path(run.model.path), 300, 0.1)
    for there, verdict in (
        ((need.counted - 1, need.counted - 1), Verdict.FAIL),
        ((need.counted + 1, need.counted + 1), Verdict.WARN),
    ):
        monkeypatch.setattr(preflight, "device_memory", lambda there=there: there)
        assert checks(run, data, qwen_tokenizer)["memory"].verdict is verdict


def test_a_disk_without_room_for_one_checkpoint_is_refused(
    make_run: MakeRun, data: EncodedData, qwen_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert checks(make_run(), data, qwen_tokenizer)["disk"].verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"training__learning_rate": 0.5}, "learning rate"),
        (
            {"training__method": "lora", "training__optimizer": "adamw", "training__learning_rate": 1e-6},
            "learning rate",
        ),
        ({"training__warmup_steps": 100}, "schedule"),
    ],
)
def test_slips_of_the_settings_are_warned_of(
    make_run: MakeRun,
    data: EncodedData,
    qwen_tokenizer: PreTrainedTokenizerBase,
    settings: dict[str, Any],
    line: str,
) -> None:
    found = checks(make_run(**settings), data, qwen_tokenizer)
    assert [name for name, check in found.items() if check.verdict is Verdict.WARN] == [line]


def test_hardly_any_prompt_is_warned_of(
    make_run: MakeRun, data: EncodedData, qwen_tokenizer: PreTrainedTokenizerBase
) -> None:
    check = checks(make_run(), replace(data, trained_tokens=data.tokens), qwen_tokenizer)["trained tokens"]
    assert check.verdict is Verdict.WARN


def test_a_failed_check_stops_training_before_the_weights_are_loaded(make_run: MakeRun, train_path: Path) -> None:
    run = make_run()
    with pytest.raises(PreflightError, match="GGUF route: there is none"):
        train(run, train_path, run.run_dir, answered=[Check("GGUF route", Verdict.FAIL, "there is none")])
    assert not (run.run_dir / "checkpoints").exists()


def test_the_exporters_table_is_asked(make_run: MakeRun, qwen_dir: Path, tmp_path: Path) -> None:
    assert gguf_route(make_run(), qwen_dir).verdict is Verdict.OK
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"]}), "utf-8")
    refused = gguf_route(make_run(), other)
    assert refused.verdict is Verdict.FAIL
    assert "training.require_gguf=false" in refused.finding
    assert gguf_route(make_run(training__require_gguf="false"), other).verdict is Verdict.WARN


def test_counted_memory_is_that_of_the_tensors(qwen_dir: Path, make_run: MakeRun) -> None:
    stored = load_file(qwen_dir / "model.safetensors")
    weights = sum(tensor.numel() for name, tensor in stored.items() if name != "lm_head.weight")
    full = estimate_memory(make_run(training__optimizer="adamw"), qwen_dir, 300, 0.1)
    assert (full.weights, full.gradients, full.optimizer) == (4 * weights, 4 * weights, 8 * weights)
    muon = estimate_memory(make_run(), qwen_dir, 300, 0.1)
    assert full.optimizer / 2 < muon.optimizer < full.optimizer
    lora = estimate_memory(make_run(**LORA), qwen_dir, 300, 0.1)
    assert lora.gradients < full.gradients
    assert lora.weights == full.weights + lora.gradients


def test_checkpointing_and_sharding_lower_the_estimate(
    qwen_dir: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = estimate_memory(make_run(), qwen_dir, 300, 0.1)
    thrifty = estimate_memory(make_run(training__gradient_checkpointing="true"), qwen_dir, 300, 0.1)
    assert plain.activations is not None
    assert thrifty.activations is not None
    assert thrifty.activations < plain.activations
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert memory.estimate_memory(make_run(), qwen_dir, 300, 0.1).gradients == plain.gradients // 4


def test_activations_are_kept_where_there_is_room_and_computed_again_where_there_is_not(
    qwen_dir: Path,
    make_run: MakeRun,
    data: EncodedData,
    qwen_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def estimate(choice: str, room: int | None = None) -> memory.MemoryEstimate:
        run = make_run(training__gradient_checkpointing=choice)
        return estimate_memory(run, qwen_dir, 300, 0.1, room=room)

    kept, again = estimate("false"), estimate("true")
    assert estimate("auto", kept.total * 10 // 9 + 2) == kept
    assert estimate("auto", kept.total) == again
    assert estimate("auto", 1) == again
    run = make_run()
    for room, is_recomputed in ((10**12, False), (1, True)):
        monkeypatch.setattr(memory, "device_memory", lambda room=room: (room, room))
        decided, found = preflight.preflight(run, Path(run.model.path), qwen_tokenizer, data, None, ())
        assert decided.training.gradient_checkpointing is is_recomputed
        finding = next(check.finding for check in found if check.name == "memory")
        assert ("activations are computed twice" in finding) is is_recomputed


def test_a_frozen_head_has_no_gradient_to_make_room_for(qwen_dir: Path, make_run: MakeRun) -> None:
    vocabulary, width = load_file(qwen_dir / "model.safetensors")["model.embed_tokens.weight"].shape
    full, lora = (estimate_memory(make_run(**settings), qwen_dir, 300, 0.1) for settings in ({}, LORA))
    assert full.loss - lora.loss == 4 * vocabulary * width


def test_a_4b_model_is_estimated_without_its_weights(tmp_path: Path) -> None:
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    overrides = ["training.precision=bf16", "training.method=full", "training.optimizer=adamw", "model.dtype=bfloat16"]
    estimate = estimate_memory(load_run_config("nano", overrides), tmp_path, 2048, 0.1)
    assert estimate.weights == 2 * 4_022_468_096
