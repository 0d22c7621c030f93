"""The schedules that ship are ones that their schedulers accept."""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from retraining.config import load_retrain_config
from retraining.stages import Stage
from tests.retraining.fakes_site import Site, fake_answer, fake_evaluator

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def test_the_shipped_configuration_loads_and_its_base_too() -> None:
    config = load_retrain_config("retrain.yaml")
    assert config.base == "nano.yaml"
    assert config.gate.max_loss == 0.03


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_timer_and_its_service() -> None:
    units = [str(DEPLOY / "systemd" / f"tinydispatch-retrain.{kind}") for kind in ("timer", "service")]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Persistent=true" in Path(units[0]).read_text()


def test_every_schedule_runs_the_same_command() -> None:
    command = ".venv/bin/python -m scripts.retrain --config retrain.yaml"
    for name in ("systemd/tinydispatch-retrain.service", "retrain.cron", "github/retrain.yml"):
        assert command in (DEPLOY / name).read_text(), name


def test_the_workflow_runs_one_at_a_time_and_takes_a_refusal_for_an_answer() -> None:
    workflow = yaml.safe_load((DEPLOY / "github" / "retrain.yml").read_text())
    assert workflow["concurrency"]["cancel-in-progress"] is False
    (step,) = [step for step in workflow["jobs"]["retrain"]["steps"] if step.get("name") == "Retrain"]
    assert "0 | 3 | 4 | 75" in step["run"]


def definitions(config: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The Dagster definitions, as `dagster dev -f` loads them."""
    pytest.importorskip("dagster")
    monkeypatch.setenv("TINYDISPATCH_RETRAIN_CONFIG", str(config))
    spec = importlib.util.spec_from_file_location("retraining_definitions", DEPLOY / "dagster" / "definitions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def materialised(module: ModuleType, *, fails: bool = False) -> tuple[list[str], list[tuple[str, bool]]]:
    """The assets that the job makes, in their order, and what its checks found."""
    import dagster

    job = module.defs.resolve_job_def("retrain")
    result = job.execute_in_process(instance=dagster.DagsterInstance.ephemeral(), raise_on_error=False)
    assert result.success is not fails
    made = [event.asset_key.path[-1] for event in result.get_asset_materialization_events()]
    return made, [(check.check_name, check.passed) for check in result.get_asset_check_evaluations()]


@pytest.mark.slow
def test_in_dagster_the_gate_lets_a_model_through_holds_one_back_and_nothing_new_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path)
    module = definitions(site.config, monkeypatch)
    monkeypatch.setattr(module, "evaluator", fake_evaluator)
    monkeypatch.setattr(module, "answer", fake_answer)
    site.log("weather in Graz", "weather in Graz tomorrow")
    assert materialised(module) == ([*Stage], [("gate", True)])
    site.log("poison one", "poison two")
    assert materialised(module, fails=True) == ([*Stage][:-1], [("gate", False)])
    assert materialised(module) == ([], [])
    assert site.champion().startswith("good")


@pytest.mark.slow
def test_the_dagster_definition_materialises_every_stage_on_nano(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "dispatch.jsonl"
    call = {"name": "get_weather", "arguments": {"location": "Graz"}}
    log.write_text(json.dumps({"messages": [{"role": "user", "content": "weather in Graz"}], "calls": [call]}) + "\n")
    overrides = ["training.max_steps=2", "tracking.wandb=off", "training.warmup_steps=0"]
    overrides += ["data.sources=[{kind: synth, count: 14}]", "eval.max_new_tokens=16"]
    config = tmp_path / "retrain.yaml"
    tree = {
        "registry": str(tmp_path / "registry"),
        "base": "nano.yaml",
        "overrides": overrides,
        "intake": {"sources": [{"kind": "dispatch_log", "path": str(log)}], "min_new": 1},
        "gate": {"first_min_rate": 0.0, "first_max_invalid": 1.0, "generated": 0},
    }
    config.write_text(yaml.safe_dump(tree))
    assert materialised(definitions(config, monkeypatch)) == ([*Stage], [("gate", True)])
    assert (tmp_path / "registry" / "champion" / "model.gguf").is_file()
