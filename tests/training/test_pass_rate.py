"""Pass rates during training are logged per category, change nothing about the training, and end in a plot."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from eval.cases import SuiteError
from eval.suites import load_suite
from tests.training.samples import MakeRun
from training.attention import ATTENTION
from training.pass_rate import LOG_NAME, answered, few_of_each
from training.plot import plot_run
from training.sft import train

WATCHED = {
    "training__pass_rate": "{every_steps: 1, max_cases: 2, max_new_tokens: 3}",
    "training__max_steps": 2,
    "training__global_batch_size": 2,
}


def test_rates_are_logged_and_training_is_the_same_without_them(make_run: MakeRun, train_path: Path) -> None:
    watched, plain = (
        make_run(name="watched", **WATCHED),
        make_run(name="plain", **WATCHED | {"training__pass_rate": "{}"}),
    )
    for run in (watched, plain):
        train(run, train_path, run.run_dir)
    rows = [json.loads(line) for line in (watched.run_dir / LOG_NAME).read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["counts"]["overall"]["total"] == 2
    assert len(rows[0]["counts"]) == 3  # overall, and a category for each of two cases
    assert [set(case) for case in rows[0]["failed"]] == [{"id", "outcome", "got"}] * 2
    assert not (plain.run_dir / LOG_NAME).exists()
    files = [load_file(run.run_dir / "checkpoint" / "model.safetensors") for run in (watched, plain)]
    for name, value in files[0].items():
        assert torch.equal(value, files[1][name]), name
    assert (watched.run_dir / "checkpoint" / "generation_config.json").read_text("utf-8") == (
        plain.run_dir / "checkpoint" / "generation_config.json"
    ).read_text("utf-8")
    drawn = (watched.run_dir / "training.svg").read_text("utf-8")
    assert "pass rate" in drawn
    assert "pass rate" not in (plain.run_dir / "training.svg").read_text("utf-8")


def test_a_suite_that_does_not_exist_is_an_error_before_the_first_step(make_run: MakeRun, train_path: Path) -> None:
    run = make_run(training__pass_rate="{every_steps: 1, suite: devv}")
    with pytest.raises(SuiteError, match="did you mean 'dev'"):
        train(run, train_path, run.run_dir)
    assert not (run.run_dir / "train_log.jsonl").exists()


def test_a_few_cases_are_spread_over_the_categories() -> None:
    suite = load_suite("dev")
    chosen = few_of_each(suite, 7)
    counts = [sum(case.category == name for case in chosen.cases) for name in suite.categories]
    assert sorted(counts) == [1, 1, 1, 2, 2]


def test_the_model_is_left_as_it_was(qwen_dir: Path, qwen_tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(qwen_dir).train()
    model.set_attn_implementation(ATTENTION)
    settings, state = model.generation_config, torch.random.get_rng_state()
    answered(model, qwen_tokenizer, few_of_each(load_suite("dev"), 1), 2)
    assert model.training
    assert model.generation_config is settings
    assert model.config._attn_implementation == ATTENTION
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_plot_is_well_formed_and_survives_a_line_cut_short(tmp_path: Path) -> None:
    (tmp_path / "train_log.jsonl").write_text(
        '{"step": 1, "loss": 3.5}\n{"step": 20, "loss": 0.5}\n{"step": 3', "utf-8"
    )
    row = {"step": 20, "counts": {"overall": {"hits": 1, "total": 4}, "a<b": {"hits": 1, "total": 1}}}
    (tmp_path / LOG_NAME).write_text(json.dumps(row) + "\n", "utf-8")
    path = plot_run(tmp_path)
    assert path is not None
    tree = ElementTree.parse(path)
    lines = [element for element in tree.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 3
    assert plot_run(tmp_path / "nothing") is None
