"""Accelerate's own parser takes every launch topology, every recipe says what it costs, the spot task is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from training.config import CONFIGS_DIR, Packing, load_run_config

LAUNCHES = sorted((CONFIGS_DIR / "accelerate").glob("*.yaml"))
# Those of a user's two cores have measured heads; here are the ones for models from a hub.
_LOCAL = {"nano", "retrain", "stack", "assistant", "dispatcher", "own_tools", "rasa-example"}
RECIPES = sorted(path.stem for path in CONFIGS_DIR.glob("*.yaml") if path.stem not in _LOCAL)


def test_there_is_one_for_each_topology() -> None:
    names = {path.stem for path in LAUNCHES}
    assert names == {"cpu", "ddp_cpu", "one_gpu", "ddp", "fsdp2", "fsdp2_cpu", "zero3", "two_nodes"}


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_accelerate_reads_every_key_of_it(path: Path) -> None:
    config = load_config_from_file(str(path))
    for key in yaml.safe_load(path.read_text("utf-8")):
        assert hasattr(config, key), key


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_accelerate_would_launch_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.commands.launch.is_deepspeed_available", lambda: True)
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "train.py", "--config", "nano.yaml"])
    arguments, config, _ = _validate_launch_command(arguments)
    text = yaml.safe_load(path.read_text("utf-8"))
    assert arguments.num_processes == text["num_processes"]
    assert arguments.num_machines == text["num_machines"]
    assert arguments.multi_gpu == (text["distributed_type"] == "MULTI_GPU")
    assert arguments.use_fsdp == (text["distributed_type"] == "FSDP")
    assert arguments.use_deepspeed == (text["distributed_type"] == "DEEPSPEED")
    assert str(config.mixed_precision) == "no"


def test_one_gpu_is_one_where_a_machine_has_more() -> None:
    """Without a name the process sees all of them, and transformers spreads its batches over all it sees."""
    arguments = launch_command_parser().parse_args(
        ["--config_file", str(CONFIGS_DIR / "accelerate" / "one_gpu.yaml"), "train.py"]
    )
    arguments, _, _ = _validate_launch_command(arguments)
    _, environment = prepare_simple_launcher_cmd_env(arguments)
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_its_head_names_the_command(path: Path) -> None:
    assert f"accelerate launch --config_file configs/accelerate/{path.name}" in path.read_text("utf-8")


def test_the_spot_task_resumes_from_a_bucket() -> None:
    task = yaml.safe_load((CONFIGS_DIR / "sky" / "spot.yaml").read_text("utf-8"))
    assert task["resources"]["use_spot"]
    assert "runs_dir=/runs" in task["run"]
    assert "/runs" in task["file_mounts"]
    assert (CONFIGS_DIR / task["envs"]["CONFIG"]).is_file()


def test_the_recipes_are_there() -> None:
    qwen = {"qwen3-0.6b", "qwen3-4b-lora", "qwen3-4b-qlora", "qwen3.5-4b-lora"}
    assert {"opt125m", "opt350m", "opt1.3b", *qwen} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_head_says_command_hardware_memory_and_time_and_calls_estimates_so(name: str) -> None:
    head = (CONFIGS_DIR / f"{name}.yaml").read_text("utf-8").split("\nname:")[0]
    for entry in (f"train.py --config {name}.yaml", "Hardware:", "Memory:", "Time:"):
        assert entry in head
    memory = head[head.index("Memory:") : head.index("Cost:")]
    assert "estimate" in memory
    assert "python -m scripts.estimate_recipe" in memory


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_wastes_nothing_on_padding_and_fits_its_model(name: str) -> None:
    run = load_run_config(name)
    assert run.training.packing is Packing.BATCH
    assert run.data.max_length_tokens <= (2048 if name.startswith("opt") else 40_960)
    assert run.training.method.value == (name.rsplit("-", 1)[-1] if name.endswith("lora") else "full")
