"""Two processes on one CPU, with replicas (DDP) or with spread weights (FSDP2), come out where one process does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from data.store import read_conversations, write_conversations
from eval.backends.checkpoint import CheckpointBackend
from eval.evaluate import evaluate
from eval.suites import load_suite
from tests.training.samples import MakeRun, simple_conversation
from training.checkpoints import is_complete, newest_complete
from training.config import RunConfig, dump_run_config
from training.dataset import build_dataset
from training.pass_rate import few_of_each
from training.sft import train
from training.tokenizer import load_tokenizer

# The second argument after the rows is a step at which one of the processes is sent SIGTERM.
_CHILD = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from training import sft, trainer
from training.config import load_run_config
run, rows, stop = load_run_config(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
step = trainer.DispatchTrainer.training_step
def stopping(self, *arguments, **keywords):
    if self.state.global_step == stop and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    loss = step(self, *arguments, **keywords)
    kinds = {type(parameter.data).__name__ for parameter in self.model.parameters()}
    Path(sys.argv[1]).with_suffix(".kinds" + os.environ["RANK"]).write_text(" ".join(sorted(kinds)))
    return loss
trainer.DispatchTrainer.training_step = stopping
sft.train(run, rows, run.run_dir, heldout_path=rows)
"""


def still(opt_dir: Path, folder: Path) -> Path:
    """The tiny OPT without dropout, whose random numbers two processes draw otherwise than one."""
    directory = folder / "still-opt"
    shutil.copytree(opt_dir, directory)
    config = json.loads((directory / "config.json").read_text("utf-8")) | {"dropout": 0.0}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    return directory


def train_in_several(
    run: RunConfig, rows: Path, folder: Path, topology: str, stop_at: int = -1, processes: int = 2
) -> subprocess.CompletedProcess[str]:
    """Through accelerate's launcher and a shipped topology, as a user would."""
    settings, script = folder / f"{run.name}.yaml", folder / "child.py"
    settings.write_text(dump_run_config(run), "utf-8")
    script.write_text(_CHILD, "utf-8")
    root = Path(__file__).parents[2]
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    config = ["--config_file", str(root / "configs" / "accelerate" / f"{topology}.yaml")]
    config += ["--num_processes", str(processes)]
    command = [*launcher, *config, str(script), str(settings), str(rows), str(stop_at)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=root, env=environment)


def loss_and_results(checkpoint: Path, rows: Path) -> tuple[float, list[str]]:
    """Mean loss over the rows' trained tokens, and what a suite's evaluation says of some of its cases."""
    tokenizer = load_tokenizer(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    data = build_dataset(read_conversations(rows), tokenizer, 2048).dataset
    with torch.no_grad():
        losses = [
            model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss for row in data
        ]
    suite = few_of_each(load_suite("dev"), 5)
    answers = evaluate(
        CheckpointBackend(model, tokenizer, max_new_tokens=6, batch_size=5), suite, model_name="", progress=False
    )
    return float(torch.stack(losses).mean()), [f"{case.id} {case.outcome} {case.got}" for case in answers.cases]


@pytest.mark.slow
@pytest.mark.parametrize(("topology", "optimizer"), [("ddp_cpu", "adamw"), ("fsdp2_cpu", "adamw"), ("ddp_cpu", "muon")])
def test_two_processes_end_where_one_does(
    make_run: MakeRun, train_path: Path, opt_dir: Path, tmp_path: Path, topology: str, optimizer: str
) -> None:
    """A step of two processes with a tree of two conversations each is one of one process with two such trees.

    Sums differ in their order.
    On the way the second process is told to stop, both do, and both go on from the checkpoint.
    """
    shared = {"model__path": still(opt_dir, tmp_path), "training__optimizer": optimizer, "training__max_steps": 2}
    one = make_run(name="one", **shared, training__global_batch_size=4)
    two = make_run(name="two", **shared, training__global_batch_size=4)
    train(one, train_path, one.run_dir, heldout_path=train_path)
    stopped = train_in_several(two, train_path, tmp_path, topology, stop_at=0)
    assert stopped.returncode != 0
    assert stopped.stdout.count("stopped after step 1 of 2") == 1, stopped.stderr[-3000:]
    done = train_in_several(two, train_path, tmp_path, topology)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("preflight") == 1
    assert "tree: " in done.stderr
    assert "2 steps of 4" in done.stderr  # two processes of two conversations, not two runs of one process
    assert "continuing from" in done.stderr
    kind = "DTensor" if topology.startswith("fsdp") else "Tensor"
    assert {(tmp_path / f"two.kinds{rank}").read_text("utf-8") for rank in (0, 1)} == {kind}
    newest = newest_complete(two.run_dir / "checkpoints")
    assert newest is not None
    assert newest.name == "checkpoint-2"
    assert is_complete(newest)
    assert {path.name for path in newest.glob("rng_state_*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    first, second = (load_file(run.run_dir / "checkpoint" / "model.safetensors") for run in (one, two))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=2e-4), name
    (loss, results), (same_loss, same_results) = (
        loss_and_results(run.run_dir / "checkpoint", train_path) for run in (one, two)
    )
    assert same_loss == pytest.approx(loss, abs=1e-4)
    assert same_results == results
    assert logged_losses(two)[-1] == pytest.approx(logged_losses(one)[-1], abs=2e-4)  # of held-out conversations


def logged_losses(run: RunConfig) -> list[float]:
    """Of the training's steps, and before and after them of the conversations that are scored alone."""
    lines = (run.run_dir / "train_log.jsonl").read_text("utf-8").splitlines()
    return [row.get("loss") or row["heldout_loss"] for row in map(json.loads, lines)]


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["batch", "tree"])
def test_two_and_four_processes_have_the_losses_of_one(
    make_run: MakeRun, opt_dir: Path, tmp_path: Path, packing: str
) -> None:
    """Two epochs of 11 conversations in steps of 8: an epoch ends in a step that the processes cannot share evenly."""
    rows = tmp_path / "eleven.jsonl"
    places = ["Oslo", "Lima", "Rome", "Bern", "Kyiv", "Graz", "Cork", "Pisa", "Riga", "Nice", "Metz"]
    write_conversations(rows, map(simple_conversation, places))
    shared = {
        "model__path": still(opt_dir, tmp_path),
        "training__packing": packing,
        "training__optimizer": "adamw",
        "training__epochs": 2,
        "training__global_batch_size": 8,
    }
    found = {}
    for processes in (1, 2, 4):
        run = make_run(name=f"by{processes}", **shared)
        if processes == 1:
            train(run, rows, run.run_dir, heldout_path=rows)
        else:
            done = train_in_several(run, rows, tmp_path, "ddp_cpu", processes=processes)
            assert done.returncode == 0, done.stderr[-3000:]
        found[processes] = logged_losses(run)
    print(f"{packing}: {found}")
    assert len(found[1]) == 1 + 4 + 1
    for processes in (2, 4):
        assert found[processes] == pytest.approx(found[1], abs=2e-5), found
