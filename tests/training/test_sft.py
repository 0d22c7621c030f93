"""Two steps of real training on a tiny model: results on disk, stop and continue, divergence."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from data.store import read_conversations, write_conversations
from tests.training.samples import MakeRun, simple_conversation
from tinydispatch import formats
from training import sft
from training.config import RunConfig, load_run_config
from training.dataset import build_dataset
from training.errors import ConfigError, ResumeError, TrainingDivergedError, TrainingInterrupted
from training.options import to_lora_config, to_sft_config
from training.sft import train
from training.tokenizer import load_tokenizer


def weights(run: RunConfig) -> dict[str, torch.Tensor]:
    return load_file(run.run_dir / "checkpoint" / "model.safetensors")


def logged(run: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.run_dir / "train_log.jsonl").read_text("utf-8").splitlines()]


def test_full_training_leaves_a_model_a_tokenizer_and_a_log(make_run: MakeRun, train_path: Path) -> None:
    run = make_run(training__max_steps=2)
    result = train(run, train_path, run.run_dir)
    assert result.adapter_dir is None
    assert result.metrics["steps"] == 2
    assert result.rejected == {}
    model = AutoModelForCausalLM.from_pretrained(result.checkpoint_dir)
    assert model.config.model_type == "qwen3"
    assert AutoTokenizer.from_pretrained(result.checkpoint_dir).eos_token == formats.TURN_END
    assert not (result.checkpoint_dir / "training_args.bin").exists()
    assert [row["step"] for row in logged(run)] == [1, 2]
    assert json.loads((run.run_dir / "checkpoints" / "inputs.json").read_text("utf-8"))["finished"]


def test_the_first_loss_is_the_mean_over_trained_tokens_alone(make_run: MakeRun, train_path: Path) -> None:
    """Computed here from the model and the mask, without the trainer."""
    run = make_run(training__max_steps=1, training__global_batch_size=8, training__per_device_batch_size=8)
    train(run, train_path, run.run_dir)
    tokenizer = load_tokenizer(Path(run.model.path))
    model = AutoModelForCausalLM.from_pretrained(run.model.path, dtype=torch.float32).eval()
    data = build_dataset(read_conversations(train_path), tokenizer, 2048).dataset
    losses = []
    for row in data:
        logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        losses.append(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="none"))
    total = torch.cat(losses)
    expected = total.sum().item() / data_trained(data)
    assert logged(run)[0]["loss"] == pytest.approx(expected, rel=1e-4)


def data_trained(data: Any) -> int:
    return sum(label != -100 for row in data for label in row["labels"])


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Counts the steps that are computed, and can send this process a signal in the middle of one."""

    def __init__(self, signal_at_step: int | None = None, number: signal.Signals = signal.SIGTERM) -> None:
        self._at, self._number = signal_at_step, number
        self.steps = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.steps += 1
        if state.global_step == self._at:
            os.kill(os.getpid(), self._number)


def watch(patch: pytest.MonkeyPatch, watcher: _Watch) -> _Watch:
    make = sft._trainer

    def watched(*arguments: Any) -> Any:
        trainer = make(*arguments)
        trainer.add_callback(watcher)
        return trainer

    patch.setattr(sft, "_trainer", watched)
    return watcher


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_training_continues_to_the_same_weights(
    make_run: MakeRun, train_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    settings = {"training__max_steps": 4, "training__optimizer": "muon", "training__save_steps": 100}
    straight, stopped = make_run(name="straight", **settings), make_run(name="stopped", **settings)
    train(straight, train_path, straight.run_dir)
    with monkeypatch.context() as patch:
        watch(patch, _Watch(1, number))
        with pytest.raises(TrainingInterrupted) as caught:
            train(stopped, train_path, stopped.run_dir)
    assert caught.value.code == code
    assert "after step 2 of 4" in str(caught.value)
    assert not (stopped.run_dir / "checkpoint").exists()
    with monkeypatch.context() as patch:
        rest = watch(patch, _Watch())
        train(stopped, train_path, stopped.run_dir)
    assert rest.steps == 2
    assert [row["step"] for row in logged(stopped)] == [1, 2, 3, 4]
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(stopped)[name]), name


def test_a_stopped_training_refuses_other_settings_unless_restarted(
    make_run: MakeRun, train_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(training__max_steps=3)
    with monkeypatch.context() as patch:
        watch(patch, _Watch(0))
        with pytest.raises(TrainingInterrupted):
            train(run, train_path, run.run_dir)
    changed = make_run(training__max_steps=1, training__learning_rate=0.5)
    with pytest.raises(ResumeError, match=r"training\.learning_rate"):
        train(changed, train_path, changed.run_dir)
    assert train(changed, train_path, changed.run_dir, restart=True).metrics["steps"] == 1


def test_a_loss_that_is_no_number_stops_with_advice_and_can_be_followed(make_run: MakeRun, train_path: Path) -> None:
    run = make_run(training__max_steps=4, training__learning_rate=1e30)
    with pytest.raises(TrainingDivergedError, match=r"is nan at step \d; lower training.learning_rate"):
        train(run, train_path, run.run_dir)
    calmer = make_run(training__max_steps=1)
    assert train(calmer, train_path, calmer.run_dir).metrics["steps"] == 1


def test_lora_leaves_an_adapter_with_its_tokenizer(make_run: MakeRun, train_path: Path) -> None:
    run = make_run(training__max_steps=1, training__method="lora", training__optimizer="adamw")
    result = train(run, train_path, run.run_dir)
    assert result.adapter_dir is not None
    assert result.adapter_dir == run.run_dir / "adapter"
    settings = json.loads((result.adapter_dir / "adapter_config.json").read_text("utf-8"))
    assert settings["r"] == 16
    assert "lm_head" not in settings["target_modules"]
    assert AutoTokenizer.from_pretrained(result.adapter_dir).chat_template
    assert not result.checkpoint_dir.exists()


def test_lora_on_a_model_without_a_chat_template_is_refused(make_run: MakeRun, train_path: Path, opt_dir: Path) -> None:
    run = make_run(model__path=opt_dir, training__method="lora", training__optimizer="adamw")
    with pytest.raises(ConfigError, match=r"training\.method=full"):
        train(run, train_path, run.run_dir)


def test_muon_over_spread_weights_is_refused(
    make_run: MakeRun, train_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    run = make_run(training__optimizer="muon")
    with pytest.raises(ConfigError, match=r"training\.optimizer=adamw"):
        train(run, train_path, run.run_dir)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_deepspeed_without_a_gpu_is_refused_instead_of_passed_over(
    make_run: MakeRun, train_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    run = make_run(training__optimizer="adamw")
    with pytest.raises(ConfigError, match=r"fsdp2_cpu\.yaml"):
        train(run, train_path, run.run_dir)


def test_the_published_recipe_trains_a_tiny_opt(make_run: MakeRun, train_path: Path, opt_dir: Path) -> None:
    run = make_run(model__path=opt_dir, training__max_steps=1, training__gradient_checkpointing="true")
    result = train(run, train_path, run.run_dir)
    saved = AutoModelForCausalLM.from_pretrained(result.checkpoint_dir)
    assert saved.get_input_embeddings().weight.shape[0] == 50272


def test_settings_reach_trl(tmp_path: Path) -> None:
    config = to_sft_config(load_run_config("opt350m", ["training.precision=fp32"]), tmp_path)
    assert (config.learning_rate, config.get_warmup_steps(5861), config.max_grad_norm) == (5e-5, 100, 0.3)
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 32
    assert config.gradient_checkpointing
    assert config.max_length is None
    assert not config.packing
    assert not config.bf16
    assert not config.fp16
    assert config.report_to == []


def test_settings_reach_peft() -> None:
    config = to_lora_config(load_run_config("qwen3-4b-lora", ["training.lora.target_modules=[q_proj, v_proj]"]))
    assert (config.r, config.lora_alpha, config.target_modules) == (16, 32, {"q_proj", "v_proj"})


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_half_precision_without_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'fp16', which needs a GPU"):
        to_sft_config(load_run_config("nano", ["training.precision=fp16"]), tmp_path)


def test_the_loss_on_held_out_conversations_is_logged_and_drawn_and_changes_nothing(
    make_run: MakeRun, train_path: Path, tmp_path: Path
) -> None:
    heldout = tmp_path / "heldout.jsonl"
    write_conversations(heldout, map(simple_conversation, ("Graz", "Cork", "Riga, in the new town, by the harbour")))
    watched = make_run(name="watched", training__heldout__every_steps=1)
    result = train(watched, train_path, watched.run_dir, heldout_path=heldout)
    rows = [row for row in logged(watched) if "heldout_loss" in row]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert result.metrics["heldout_loss"] == rows[-1]["heldout_loss"]
    model = AutoModelForCausalLM.from_pretrained(result.checkpoint_dir, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for row in build_dataset(read_conversations(heldout), load_tokenizer(result.checkpoint_dir), 2048).dataset:
        logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        count += int((labels != -100).sum())
    assert rows[-1]["heldout_loss"] == pytest.approx(total / count, rel=1e-4)
    assert ">held out</text>" in (watched.run_dir / "training.svg").read_text("utf-8")
    alone = make_run(name="alone", training__heldout__every_steps="null")
    train(alone, train_path, alone.run_dir, heldout_path=heldout)
    assert [row["loss"] for row in logged(alone)] == [row["loss"] for row in logged(watched) if "loss" in row]
