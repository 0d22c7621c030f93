"""Tiny models of the two families, and rows to train them on."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from data.store import write_conversations
from tests.training.samples import MakeRun, simple_conversation
from training.config import RunConfig, load_run_config
from training.random_checkpoint import make_checkpoint
from training.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def opt_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OPT-350M's layout, vocabulary and shape of embedding, 32 wide."""
    directory = tmp_path_factory.mktemp("models") / "tiny-opt"
    make_checkpoint("tiny-opt", directory, dtype=torch.float32)
    return directory


@pytest.fixture(scope="session")
def qwen_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3's layout and chat template with 2,200 tokens, 32 wide."""
    directory = tmp_path_factory.mktemp("models") / "tiny-qwen3"
    make_checkpoint("tiny-qwen3", directory, dtype=torch.float32)
    return directory


@pytest.fixture(scope="session")
def opt_tokenizer(opt_dir: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(opt_dir)


@pytest.fixture(scope="session")
def qwen_tokenizer(qwen_dir: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(qwen_dir)


@pytest.fixture(scope="session")
def train_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    places = ("Oslo", "Zürich", "São Paulo", "Kyiv", "Lima", "New York", "Rome", "Bern")
    write_conversations(path, (simple_conversation(place) for place in places))
    return path


def tiny_run(runs_dir: Path, model_dir: Path, **overrides: object) -> RunConfig:
    """A short run on one CPU thread; keywords are overrides with `__` for a dot."""
    settings: dict[str, object] = {
        "runs_dir": runs_dir,
        "model__path": model_dir,
        "tracking__wandb": "off",
        "training__global_batch_size": 4,
        "training__per_device_batch_size": 2,
        "training__logging_steps": 1,
        "training__warmup_steps": 0,
        "training__precision": "fp32",
    }
    pairs = {**settings, **overrides}.items()
    return load_run_config("nano", [f"{key.replace('__', '.')}={value}" for key, value in pairs])


@pytest.fixture
def make_run(tmp_path: Path, qwen_dir: Path) -> MakeRun:
    """`tiny_run` of the tiny Qwen in a folder of this test's own."""
    return partial(tiny_run, tmp_path / "runs", qwen_dir)


@pytest.fixture(scope="session")
def make_shared_run(tmp_path_factory: pytest.TempPathFactory, qwen_dir: Path) -> MakeRun:
    """`tiny_run` of the tiny Qwen in a folder that lasts for all tests."""
    return partial(tiny_run, tmp_path_factory.mktemp("shared"), qwen_dir)
