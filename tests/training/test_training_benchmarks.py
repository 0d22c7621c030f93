"""The benchmarks of training: what they count is right, and they run from end to end on tiny models."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import yaml
from transformers import OPTConfig, OPTForCausalLM

from scripts import bench_recipe, bench_training, bench_tree, estimate_recipe, gpu_session
from scripts.training_workload import conversations
from training.config import CONFIGS_DIR, Method, load_run_config
from training.flops import flops_per_token, mean_context


def test_conversations_have_toolbenchs_lengths_and_are_whole() -> None:
    rows = conversations(2000, 0.1)
    lengths = sorted(len(ids) for ids in rows["input_ids"])
    assert lengths[-1] <= 2048
    assert 950 < lengths[1000] < 1250  # 1,248 without those that exceed the positions
    assert [len(labels) for labels in rows["labels"]] == [len(ids) for ids in rows["input_ids"]]
    trained = sum(label != -100 for labels in rows["labels"] for label in labels)
    assert trained / sum(lengths) == pytest.approx(0.1, abs=0.002)
    assert {len(ids) for ids in conversations(3, 0.1, longest=300, shortest=300)["input_ids"]} == {300}


def test_operations_are_counted_by_hand() -> None:
    """One layer: four matrices of attention, two of the feed-forward block, a head used at half of the tokens."""
    config = OPTConfig(
        vocab_size=100,
        hidden_size=8,
        ffn_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=8,
        max_position_embeddings=16,
    )
    model = OPTForCausalLM(config)
    matrices, head, attention = 4 * 8 * 8 + 2 * 8 * 16, 100 * 8, 4 * 8 * mean_context([10])
    assert mean_context([10]) == 5
    forward = 2 * (matrices + head / 2) + attention
    count = partial(flops_per_token, model, trained_share=0.5, context=5)
    assert count(Method.FULL) == pytest.approx(3 * forward)
    assert count(Method.FULL, is_recomputed=True) == pytest.approx(4 * forward)
    assert count(Method.LORA) == pytest.approx(2 * forward + attention)


def test_memory_and_time_of_a_recipe_are_estimated_from_its_shape(capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--config", "opt350m.yaml", "--architecture", "tiny-opt", "training.precision=bf16"]
    assert estimate_recipe.main([*shape, "--conversations", "1000", "--tflops", "100"]) == 0
    printed = capsys.readouterr().out
    assert "with 4 x 2048 tokens at once (an estimate)" in printed
    operations, minutes = (float(line.split()[1]) for line in printed.splitlines()[-2:])
    assert minutes == pytest.approx(operations * 1e15 / 100e12 / 60, abs=0.1)
    assert estimate_recipe.main(["--config", "opt350m.yaml", "training.precision=never"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("recipe", estimate_recipe.RECIPES, ids=lambda recipe: recipe.config)
def test_the_table_is_that_of_the_configs(recipe: estimate_recipe.Recipe) -> None:
    """Its batches make the config's step, its settings are accepted, the config's head and the docs say the same."""
    head = (CONFIGS_DIR / f"{recipe.config}.yaml").read_text("utf-8").split("\nname:")[0]
    docs = (CONFIGS_DIR.parent / "docs" / "training.md").read_text("utf-8")
    rows = [line.strip() for line in docs.splitlines() if line.startswith(f"| {recipe.config} |")]
    assert rows == estimate_recipe.rows(recipe)
    found = [plan for place in estimate_recipe.PLACES if (plan := estimate_recipe.plan(recipe, place)) is not None]
    assert {plan.place.name for plan in found} >= {"80 GB", "8 × 80 GB", "2 nodes"}
    for plan in found:
        training = load_run_config(recipe.config, plan.overrides).training
        assert training.accumulation_steps(plan.place.processes) == plan.accumulated
        assert plan.place.processes * training.per_device_batch_size * plan.accumulated == training.global_batch_size
        assert plan.memory_gb < 0.9 * plan.place.gb
        topology = yaml.safe_load((CONFIGS_DIR / "accelerate" / f"{plan.place.launch}.yaml").read_text("utf-8"))
        assert topology["num_processes"] == plan.place.processes
        if plan.place.processes == 1:
            assert f"{estimate_recipe.time_text(plan.minutes)} on a" in head
        if plan.place.name == "80 GB":
            assert f"{plan.memory_gb:.1f} GB" in head
            assert f"{plan.steps:,} steps" in head


def test_the_comparison_with_trl_keeps_its_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rounds.json"
    tiny = ["--width", "64", "--layers", "1", "--batch", "2", "--length-scale", "0.02", "--out", str(out)]
    for _ in range(2):
        assert bench_training.main([*tiny, "--rounds", "1", "--only", "padded"]) == 0
    rounds = json.loads(out.read_text("utf-8"))
    assert len(rounds) == 2
    for found in rounds:
        assert len(found) == 3
        assert len({one["trained"] for one in found.values()}) == 1  # every variant trained the same tokens
    last = [line for line in capsys.readouterr().out.splitlines() if "tinydispatch" in line][-1]
    assert last.count("|") == 6


def test_trees_are_compared_with_conversations_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--width", "64", "--layers", "1", "--precision", "fp32"]
    assert bench_tree.main([*tiny, "--requests", "24", "--shared", "60", "--own", "8"]) == 0
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| one tool list")]
    assert [line[1] for line in lines] == ["batch", "tree"]
    (_, _, _, tokens, computed, *_), (_, _, _, same_tokens, fewer, *_) = lines
    assert tokens == same_tokens == computed
    assert int(fewer) == int(tokens.replace(",", "")) - 23 * 60


def test_ratios_are_medians_of_rounds() -> None:
    first, ours = bench_training.VARIANTS[0].name, "+ activations kept: tinydispatch"
    slow = {"seconds": 10.0, "trained": 5.0}
    rounds = [{first: slow, ours: {"seconds": took, "trained": 5.0, "loading": 0.1}} for took in (1.0, 2.0, 5.0)]
    lines = bench_training.table(rounds, bench_training.VARIANTS).splitlines()
    assert [line.split(" | ")[-1] for line in lines[2:4]] == ["1.00 |", "5.00 |"]
    assert lines[-1] == "Reading batches takes 5.0% of our time."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "architecture"), [("opt350m.yaml", "tiny-opt"), ("qwen3-4b-lora.yaml", "tiny-qwen3")]
)
def test_a_recipes_cost_is_measured_against_trl(
    config: str, architecture: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "costs.json"
    settings = ["training.packing=rows", "training.per_device_batch_size=1", "training.global_batch_size=2"]
    options = ["--config", config, "--architecture", architecture, "--steps", "2", "--length-scale", "0.05"]
    lengths = ["training.precision=bf16", "data.max_length_tokens=256"]
    assert bench_recipe.main([*options, "--out", str(out), *settings, *lengths]) == 0
    (case,) = json.loads(out.read_text("utf-8"))
    for name in ("ours", "defaults"):
        assert case[name]["tokens"] > 0
        assert 0 < case[name]["model_flops"] / case[name]["seconds"] < case[name]["matrix_flops"]
        assert case[name]["peak_bytes"] > 100_000_000
    printed = capfd.readouterr().out
    assert "TFLOP/s in bf16 matrix products" in printed
    assert f"| {config}, {architecture} | tinydispatch |" in printed


def test_the_session_for_a_gpu_lasts_twelve_minutes_at_most(tmp_path: Path) -> None:
    parts = gpu_session.parts(tmp_path, is_dry=False)
    assert sum(part.limit_s for part in parts) <= 12 * 60
    checks = parts[0].command
    assert checks[1:] == ("--check", "opt350m", "opt-350m", "qwen3-4b-lora", "qwen3-4b")
    assert [part.name for part in parts if "the table says" in part.name]


@pytest.mark.slow
def test_the_session_for_a_gpu_runs_on_tiny_shapes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert gpu_session.main(["--dry-run", "--out", str(tmp_path)]) == 0
    printed = capfd.readouterr().out
    assert printed.count(": done in") == 5
    assert printed.count("is_exact") + printed.count("PackingCheck(") == 2
    assert printed.count("TreeCheck(") == 2
    assert len(list(tmp_path.glob("*.json"))) == 4


def test_a_measurement_that_fails_is_said_and_the_others_are_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_recipe, "_in_own_process", lambda _run: None)
    assert bench_recipe.main([]) == 1
    printed = capsys.readouterr().out
    assert printed.count("| failed |") == 4
    assert "nothing was measured" in printed


def test_a_shape_without_a_recipe_is_an_error() -> None:
    with pytest.raises(SystemExit):
        bench_recipe.main(["--architecture", "tiny-opt"])
