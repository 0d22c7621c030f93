"""Two processes on one CPU train one model, save one checkpoint, and come out where one process does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.samples import MakeRun
from training.checkpoints import is_complete, newest_complete
from training.config import RunConfig, dump_run_config
from training.sft import train

_CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from training import sft
from training.config import load_run_config
run = load_run_config(sys.argv[1])
sft.train(run, Path(sys.argv[2]), run.run_dir)
"""


def still(opt_dir: Path, folder: Path) -> Path:
    """The tiny OPT without dropout, whose random numbers two processes draw otherwise than one."""
    directory = folder / "still-opt"
    shutil.copytree(opt_dir, directory)
    config = json.loads((directory / "config.json").read_text("utf-8")) | {"dropout": 0.0}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    return directory


def train_in_two(run: RunConfig, rows: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Through accelerate's launcher and the shipped topology, as a user would."""
    settings, script = folder / f"{run.name}.yaml", folder / "child.py"
    settings.write_text(dump_run_config(run), "utf-8")
    script.write_text(_CHILD, "utf-8")
    root = Path(__file__).parents[2]
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    topology = ["--config_file", str(root / "configs" / "accelerate" / "ddp_cpu.yaml")]
    command = [*launcher, *topology, str(script), str(settings), str(rows)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=root, env=environment)


@pytest.mark.slow
def test_two_processes_end_where_one_does(make_run: MakeRun, train_path: Path, opt_dir: Path, tmp_path: Path) -> None:
    """A step of two processes with two conversations each is a step of one with four; sums differ in their order."""
    shared = {"model__path": still(opt_dir, tmp_path), "training__optimizer": "adamw", "training__max_steps": 2}
    one = make_run(name="one", **shared, training__per_device_batch_size=4, training__gradient_accumulation_steps=1)
    two = make_run(name="two", **shared, training__per_device_batch_size=2, training__gradient_accumulation_steps=1)
    train(one, train_path, one.run_dir)
    done = train_in_two(two, train_path, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("preflight") == 1
    assert "2 steps of 4" in done.stderr  # two processes of two conversations, not two runs of one process
    newest = newest_complete(two.run_dir / "checkpoints")
    assert newest is not None
    assert newest.name == "checkpoint-2"
    assert is_complete(newest)
    assert {path.name for path in newest.glob("rng_state_*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    first, second = (load_file(run.run_dir / "checkpoint" / "model.safetensors") for run in (one, two))
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=2e-4), name
