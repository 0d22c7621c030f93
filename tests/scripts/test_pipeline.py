"""The whole job on a tiny model: every artifact, resumption after a kill, and bad input."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.stages import Stage
from tests.fixtures_models import make_tiny_qwen3
from train import main
from training.hardware import has_accelerator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_tiny_qwen3(tmp_path_factory.mktemp("model"))
    config = json.loads((directory / "config.json").read_text())
    # 400 tokens spell the eight tools at length; without learned positions the number is free to choose.
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return directory


def arguments(runs: Path, model: Path, *overrides: str) -> list[str]:
    small = ["data.sources.0.count=14", "training.max_steps=2", "training.per_device_batch_size=1"]
    short = ["eval.max_new_tokens=2", "data.max_length_tokens=4096", "training.warmup_steps=1", "tracking.wandb=off"]
    return ["--config", "nano.yaml", f"runs_dir={runs}", f"model.path={model}", "name=tiny", *small, *short, *overrides]


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert main(arguments(runs, model)) == 0
    return runs / "tiny"


def test_a_run_leaves_every_artifact_with_its_hash(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    expected = {"config.yaml", "data_card.json", "data_card.md", "data/train.jsonl", "checkpoint/model.safetensors"}
    expected |= {"gguf/tiny-f16.gguf", "gguf/tiny-q8_0.gguf", "eval/core-base.json", "eval/core-gguf-q8_0.json"}
    assert expected <= set(manifest["files"])
    gguf = (finished / "gguf" / "tiny-q8_0.gguf").read_bytes()
    assert manifest["files"]["gguf/tiny-q8_0.gguf"] == hashlib.sha256(gguf).hexdigest()


def test_the_manifest_states_rates_as_hits_and_totals_for_every_model(finished: Path) -> None:
    rates = json.loads((finished / "manifest.json").read_text())["pass_rates"]["core"]
    assert set(rates) == {"base", "checkpoint", "gguf-f16", "gguf-q8_0"}
    for counts in rates.values():
        assert counts["overall"]["total"] == 40
        assert {count["total"] for name, count in counts.items() if name != "overall"} == {8}
        assert sum(count["hits"] for name, count in counts.items() if name != "overall") == counts["overall"]["hits"]


def test_the_manifest_says_what_the_run_was_made_from(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    card = json.loads((finished / "data_card.json").read_text())
    assert manifest["seed"] == 0
    assert manifest["data_hash"] == card["data_hash"]
    assert manifest["packages"]["trl"]
    assert manifest["template_hash"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_everything_made_of_a_log_is_its_owners_alone(method: str, model: Path, tmp_path: Path) -> None:
    call = {"name": "get_weather", "arguments": {"location": "Graz"}}
    lines = [{"messages": [{"role": "user", "content": f"weather in Graz, {i}"}], "calls": [call]} for i in range(9)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = f"data.sources=[{{kind: dispatch_log, path: {tmp_path / 'log.jsonl'}}}]"
    words = [word for word in arguments(tmp_path / "runs", model) if not word.startswith("data.sources")]
    settings = [source, "data.near_duplicate_threshold=null", f"training.method={method}", "training.optimizer=adamw"]
    before = os.umask(0o022)
    try:
        assert main([*words, *settings, "--until", "train"]) == 0
    finally:
        os.umask(before)
    run = tmp_path / "runs" / "tiny"
    made = [run, *run.rglob("*")]
    assert {str(path): oct(path.stat().st_mode) for path in made if path.stat().st_mode & 0o077} == {}
    names = {path.name for path in made}
    assert {"manifest.json", "train.jsonl", "data_card.html", "checkpoints", "model.safetensors"} <= names
    assert method == "full" or (run / "adapter").is_dir()


def test_running_again_keeps_what_is_complete_and_force_redoes_from_a_stage(
    finished: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert main(arguments(finished.parent, model)) == 0
    assert (finished / "checkpoint" / "model.safetensors").stat().st_mtime_ns == before[
        finished / "checkpoint" / "model.safetensors"
    ]
    assert main([*arguments(finished.parent, model), "--force", Stage.EXPORT]) == 0
    gguf = finished / "gguf" / "tiny-q8_0.gguf"
    assert gguf.stat().st_mtime_ns > before[gguf]
    assert (finished / "data" / "train.jsonl").stat().st_mtime_ns == before[finished / "data" / "train.jsonl"]
    assert "overall" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learning_rat=1", "did you mean 'learning_rate'?"),
        ("training.learning_rate=fast", "training.learning_rate"),
        ("model.path=/nowhere/model", "/nowhere/model"),
        ("data.sources=[{kind: openai_jsonl, path: nowhere.jsonl}]", "nowhere.jsonl"),
        ("eval.suites=[nowhere]", "nowhere"),
        pytest.param(
            "training.precision=fp16",
            "training.precision is 'fp16', which needs a GPU",
            marks=pytest.mark.skipif(has_accelerator(), reason="fp16 is fine here"),
        ),
    ],
)
def test_bad_settings_stop_at_once_with_one_line(
    override: str, message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, model, override)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "tiny" / "data").exists()


@pytest.mark.slow
def test_a_run_killed_while_training_goes_on_from_its_checkpoint(model: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "train.py",
        *arguments(tmp_path, model, "training.max_steps=60", "training.save_steps=2"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    checkpoints = tmp_path / "tiny" / "checkpoints"
    deadline = time.monotonic() + 240
    while not list(checkpoints.glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "tiny" / "checkpoint").exists()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "continuing from" in done.stderr
    assert (tmp_path / "tiny" / "gguf" / "tiny-q8_0.gguf").is_file()
