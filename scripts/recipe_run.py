"""One measurement of `scripts.bench_recipe`, in a process of its own: `scripts.recipe_run RUN OUT`, both JSON."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from scripts.bench_recipe import Measured, Run
from scripts.training_workload import StepClock, any_tokenizer, conversations, toolbench_lengths
from training.config import Packing, RunConfig, load_run_config
from training.flops import flops_per_token, mean_context
from training.hardware import has_accelerator, multiplies_bf16
from training.head import trained_tokens_only
from training.memory import MemoryEstimate, estimate_memory
from training.model import TORCH_DTYPES
from training.options import to_lora_config
from training.random_checkpoint import config_of
from training.sft import make_trainer


def measure(run: Run) -> Measured:
    """Make the steps and look at clock and memory."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    rate = matrix_rate()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = any_tokenizer(Path(folder))
        settings = [f"training.max_steps={run.steps}", "training.save_steps=1000000", *run.overrides]
        recipe = load_run_config(run.config, settings)
        rows = _rows(run, recipe)
        model = random_model(run.architecture, recipe)
        clock = StepClock()
        clock.watch(model)
        flops = _flops_per_token(model, recipe, rows)
        estimate = _estimate(run, recipe, rows, Path(folder)) if run.is_ours else None
        if estimate is not None:
            changed = {"gradient_checkpointing": estimate.is_recomputed}
            recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=changed)})
        make = _ours if run.is_ours else _defaults
        trainer = make(run, recipe, model, tokenizer, rows, Path(folder) / "out")
        trainer.add_callback(clock)
        scoring = trained_tokens_only() if run.is_ours else contextlib.nullcontext()
        with scoring, contextlib.redirect_stdout(None):
            trainer.train()
    assert clock.timing is not None
    lengths = toolbench_lengths(10_000, longest=recipe.data.max_length_tokens)
    return Measured(
        device=device_name(),
        versions=f"torch {torch.__version__}, transformers {version('transformers')}, trl {version('trl')}",
        matrix_flops=rate,
        seconds=clock.timing.seconds,
        tokens=clock.timing.tokens,
        trained_tokens=clock.timing.trained_tokens,
        model_flops=flops * clock.timing.tokens,
        mean_length=sum(lengths) / len(lengths),
        peak_bytes=peak_memory(),
        estimated_bytes=None if estimate is None else estimate.total,
    )


def random_model(architecture: str, recipe: RunConfig) -> PreTrainedModel:
    """The shape with random weights, made on the device, where 4 billion numbers take a second."""
    config = config_of(architecture)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=TORCH_DTYPES[recipe.model.dtype])
    return model


def _rows(run: Run, recipe: RunConfig) -> Dataset:
    training, longest = recipe.training, recipe.data.max_length_tokens
    batch = training.global_batch_size
    per_row = 3 if training.packing is Packing.ROWS and run.is_ours else 1  # rows hold under two on average
    shortest = longest if run.is_full_length else 0
    return conversations(
        run.steps * max(batch * per_row, 8),
        run.trained_share,
        scale=run.length_scale,
        longest=longest,
        shortest=shortest,
    )


def _ours(
    _run: Run,
    recipe: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    out: Path,
) -> SFTTrainer:
    trainer = make_trainer(recipe, model, tokenizer, rows, out)
    trainer.args.save_strategy = "no"
    return trainer


def _defaults(
    run: Run,
    recipe: RunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    out: Path,
) -> SFTTrainer:
    """But for max_length, whose 1,024 would cut the calls off, and for weights that stay on the disk."""
    config = SFTConfig(
        output_dir=str(out),
        max_steps=run.steps,
        max_length=None,
        use_cpu=not has_accelerator(),
        dataloader_pin_memory=has_accelerator(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    adapter = to_lora_config(recipe) if recipe.training.method.has_adapter else None
    return SFTTrainer(
        model=model.float(), args=config, train_dataset=rows, processing_class=tokenizer, peft_config=adapter
    )


def _flops_per_token(model: PreTrainedModel, recipe: RunConfig, rows: Dataset) -> float:
    lengths = [len(ids) for ids in rows["input_ids"]]
    trained = sum(label != -100 for labels in rows["labels"] for label in labels)
    share = trained / sum(lengths)
    return flops_per_token(model, recipe.training.method, trained_share=share, context=mean_context(lengths))


def matrix_rate() -> float:
    """Operations a second of bf16 matrix products on this device: the best of five runs of a large square one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Where bf16 is emulated, a product of 1,024 takes minutes.
    size, repeats = (8192, 20) if device.type == "cuda" else (1024 if multiplies_bf16() else 128, 4)
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    right = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(6):  # the first warms up, and is never the best
        _wait()
        started = time.perf_counter()
        for _ in range(repeats):
            left @ right
        _wait()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 * repeats / best


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> int:
    """Bytes at the highest, since the process began."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # in kB on Linux


def device_name() -> str:
    """The GPU, or processor and threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return platform.processor() or platform.machine()


def _estimate(run: Run, recipe: RunConfig, rows: Dataset, folder: Path) -> MemoryEstimate:
    directory = folder / "config"
    config_of(run.architecture).save_pretrained(directory)
    longest = max(len(ids) for ids in rows["input_ids"])
    row_tokens = recipe.data.max_length_tokens if recipe.training.packing is Packing.ROWS else longest
    return estimate_memory(recipe, directory, row_tokens, run.trained_share)


def main() -> int:
    """Returns 0, or 2 when there is no such recipe, setting or architecture."""
    run, out = Run(**json.loads(sys.argv[1])), Path(sys.argv[2])
    try:
        found = measure(run)
    except ValueError as error:
        print(f"{run.config} at {run.architecture}: {error}", file=sys.stderr)
        return 2
    out.write_text(json.dumps(asdict(found)), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
