"""The run's settings: shipped files load, mistakes are named and guessed."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from train import main as train_main
from training.config import CONFIGS_DIR, Dtype, Method, OptimizerName, WandbMode, dump_run_config, load_run_config
from training.errors import ConfigError

MINIMAL = "model: {path: some/model}\ndata: {sources: [{kind: synth, count: 3}]}\n"
# A schedule of runs and a stack of layers, each with a reader of its own.
SHIPPED = sorted(path for path in CONFIGS_DIR.glob("*.yaml") if path.stem not in ("retrain", "stack"))


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def complaint(path: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads_by_path_and_by_name(path: Path) -> None:
    run = load_run_config(str(path))
    assert run == load_run_config(path.name) == load_run_config(path.stem)
    assert run.name == path.stem


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_head_of_every_shipped_config_says_command_hardware_and_cost(path: Path) -> None:
    head = path.read_text("utf-8").split("name:")[0]
    assert f"--config {path.name}" in head
    assert "Hardware:" in head
    assert "Cost:" in head


def test_there_are_shipped_configs() -> None:
    assert {"nano", "opt350m", "qwen3-4b-lora"} <= {path.stem for path in SHIPPED}


def test_opt350m_is_the_published_recipe() -> None:
    run = load_run_config("opt350m")
    training = run.training
    assert run.model.path == "facebook/opt-350m"
    assert training.global_batch_size == 32
    assert (training.learning_rate, training.warmup(5861), training.max_grad_norm) == (5e-5, 100, 0.3)
    assert (training.method, training.epochs, training.weight_decay) == (Method.FULL, 1, 0.01)
    assert training.gradient_checkpointing
    assert run.data.max_length_tokens == 2048


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_recipe_states_the_conversations_of_a_step(path: Path) -> None:
    """Written out, and divided evenly where the recipe is to run first: on one process."""
    assert re.search(r"^  global_batch_size: \d+$", path.read_text("utf-8"), re.M)
    training = load_run_config(str(path)).training
    assert training.accumulation_steps(1) * training.per_device_batch_size == training.global_batch_size


@pytest.mark.parametrize(("processes", "at_once", "accumulated"), [(1, 4, 8), (8, 4, 1), (2, 4, 4), (16, 2, 1)])
def test_a_step_is_as_large_on_every_number_of_processes(processes: int, at_once: int, accumulated: int) -> None:
    training = load_run_config("opt350m", [f"training.per_device_batch_size={at_once}"]).training
    assert training.accumulation_steps(processes) == accumulated


@pytest.mark.parametrize(
    ("processes", "wanted", "at_once", "advice"),
    [
        (16, 32, 4, "training.per_device_batch_size=2, or training.global_batch_size=64"),
        (8, 14, 14, "set training.global_batch_size=112"),
        (3, 32, 4, "set training.global_batch_size=24 or 36"),
        (1, 8, 16, "training.per_device_batch_size=8, or training.global_batch_size=16"),
    ],
)
def test_a_step_that_the_processes_do_not_divide_is_refused_with_the_numbers(
    processes: int, wanted: int, at_once: int, advice: str
) -> None:
    settings = [f"training.global_batch_size={wanted}", f"training.per_device_batch_size={at_once}"]
    with pytest.raises(ConfigError) as error:
        load_run_config("nano", settings).training.accumulation_steps(processes)
    assert f"training.global_batch_size is {wanted}" in str(error.value)
    assert f"make {processes * at_once} at a time" in str(error.value)
    assert advice in str(error.value)


def test_it_is_refused_before_any_data_are_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert train_main(["--config", "nano.yaml", f"runs_dir={tmp_path}", "tracking.wandb=off"]) == 2
    assert "training.global_batch_size is 2, and 3 processes" in capsys.readouterr().err
    assert not (tmp_path / "nano" / "data").exists()


def test_the_key_that_is_gone_says_what_takes_its_place(tmp_path: Path) -> None:
    message = complaint(write(tmp_path, MINIMAL + "training: {gradient_accumulation_steps: 8}\n"))
    assert "key 'training.gradient_accumulation_steps' is gone" in message
    assert "'training.global_batch_size'" in message


def test_warm_up_is_a_share_or_a_number_of_steps(tmp_path: Path) -> None:
    joined, row_by_row = 1498, 5861
    training = load_run_config("opt350m").training
    assert (training.warmup(row_by_row), training.warmup(joined)) == (100, 26)
    assert load_run_config("assistant").training.warmup(joined) == 5
    both = complaint(write(tmp_path, MINIMAL + "training: {warmup_steps: 1, warmup_ratio: 0.1}\n"))
    assert "give 'warmup_steps' or 'warmup_ratio'" in both


def test_a_dumped_config_reads_back_equal(tmp_path: Path) -> None:
    run = load_run_config(write(tmp_path, MINIMAL), ["tracking.project='1e4'", "training.learning_rate=3e-5"])
    assert load_run_config(write(tmp_path, dump_run_config(run))) == run


def test_a_run_is_named_after_its_file_unless_it_says_otherwise(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert load_run_config(path).name == "mine"
    assert load_run_config(path, ["name=other"]).run_dir == Path("runs/other")


def test_an_unknown_key_names_the_file_and_guesses(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "training: {learning_rat: 1.0}\n")
    assert complaint(path) == f"{path}: unknown key 'training.learning_rat'; did you mean 'learning_rate'?"


def test_a_known_key_in_the_wrong_section_is_pointed_to_the_right_one(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "learning_rate: 1.0\n")
    assert complaint(path).endswith("unknown key 'learning_rate'; did you mean 'training.learning_rate'?")


def test_an_unknown_key_inside_a_list_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL.replace("count: 3", "count: 3, max_row: 5"))
    assert complaint(path) == f"{path}: unknown key 'data.sources.0.max_row'; did you mean 'max_rows'?"


def test_an_unknown_source_lists_the_known_ones(tmp_path: Path) -> None:
    message = complaint(write(tmp_path, MINIMAL.replace("kind: synth", "kind: synht")))
    assert "'data.sources.0.kind'" in message
    assert "'toolbench'" in message
    assert "'synht'" in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("training: {epochs: '3'}", "'training.epochs': expected a number, got '3' (text)"),
        ("training: {warmup_steps: 1.5}", "'training.warmup_steps': expected"),
        ("training: {gradient_checkpointing: 1}", "expected true or false, got 1 (integer)"),
        ("training: {method: dora}", "'training.method': expected 'full', 'lora' or 'qlora', got 'dora' (text)"),
        ("training: {learning_rate: .inf}", "'training.learning_rate': expected a finite number"),
        ("training: {learning_rate: 0}", "'training.learning_rate': expected greater than 0, got 0"),
        ("training: 3", "'training': expected a section"),
        ("seed: true", "'seed': expected an integer, got True"),
        ("name: a/b", "'name': 'a/b' names the run's folder"),
        ("training: {lora: {target_modules: [q_proj, lm_head]}}", "'lm_head' cannot carry an adapter"),
        ("training: {method: lora, optimizer: muon}", "adapters train with 'adamw'"),
        ("data: {sources: [{kind: synth, count: '3'}]}", "'data.sources.0.count': expected an integer, got '3'"),
    ],
)
def test_a_wrong_value_names_key_value_and_what_is_expected(tmp_path: Path, line: str, expected: str) -> None:
    text = MINIMAL if not line.startswith("data") else "model: {path: some/model}\n"
    path = write(tmp_path, f"{text}{line}\n")
    message = complaint(path)
    assert message.startswith(f"{path}: ")
    assert expected in message


def test_every_mistake_is_listed_at_once(tmp_path: Path) -> None:
    message = complaint(write(tmp_path, MINIMAL + "training: {epochs: x, method: y, bogus: 1}\n"))
    assert len(message.splitlines()) == 3


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    assert "missing key 'model'" in complaint(write(tmp_path, "data: {sources: [{kind: synth, count: 3}]}\n"))


def test_a_missing_file_lists_the_shipped_configs() -> None:
    message = complaint("nan0")
    assert "'nan0'" in message
    assert "nano.yaml" in message
    assert "opt350m.yaml" in message


def test_numbers_without_a_dot_are_numbers_and_off_is_text(tmp_path: Path) -> None:
    text = MINIMAL + "training: {learning_rate: 1e-4}\ntracking: {wandb: off}\n"
    run = load_run_config(write(tmp_path, text))
    assert run.training.learning_rate == 1e-4
    assert run.tracking.wandb is WandbMode.OFF


def test_a_key_that_occurs_twice_is_an_error(tmp_path: Path) -> None:
    assert "key 'seed' occurs twice" in complaint(write(tmp_path, MINIMAL + "seed: 1\nseed: 2\n"))


def test_text_that_is_no_yaml_or_no_mapping_is_an_error(tmp_path: Path) -> None:
    assert "not valid YAML" in complaint(write(tmp_path, "a: [1\n"))
    assert "expected 'key: value' lines" in complaint(write(tmp_path, "- 1\n"))


def test_overrides_are_yaml_and_reach_into_lists(tmp_path: Path) -> None:
    overrides = [
        "training.max_steps=2",
        "training.learning_rate=1e-3",
        "training.optimizer=muon",
        "model.dtype=bfloat16",
        "data.sources.0.count=7",
        "data.near_duplicate_threshold=null",
        "training.lora.target_modules=[q_proj, v_proj]",
    ]
    run = load_run_config(write(tmp_path, MINIMAL), overrides)
    assert (run.training.max_steps, run.training.learning_rate) == (2, 1e-3)
    assert run.training.optimizer is OptimizerName.MUON
    assert run.model.dtype is Dtype.BFLOAT16
    assert run.data.sources[0].count == 7  # type: ignore[union-attr]
    assert run.data.near_duplicate_threshold is None
    assert run.training.lora.target_modules == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.max_stps=2", "unknown key 'training.max_stps'; did you mean 'max_steps'?"),
        ("training.max_steps=two", "'training.max_steps': expected an integer, got 'two' (text)"),
        ("training.max_steps", "expected KEY=VALUE"),
        ("data.sources.3.count=1", "'3' is no index of a list of 1"),
        ("data.sources.first.count=1", "'first' is no index of a list of 1"),
    ],
)
def test_a_wrong_override_is_named_as_one(tmp_path: Path, override: str, expected: str) -> None:
    message = complaint(write(tmp_path, MINIMAL), override)
    assert message.startswith(f"override '{override}': ")
    assert expected in message


def test_an_adapter_section_without_effect_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_run_config(write(tmp_path, MINIMAL + "training: {lora: {rank: 8}}\n"))
    assert "'training.lora' has no effect" in caplog.text
