"""TRL's SFTTrainer with what it leaves open: a stop on divergence, checkpoints that are whole or absent, speed."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset, concatenate_datasets
from safetensors import SafetensorError
from trl import SFTTrainer

from training.adapters import speed_up_adapters
from training.checkpoints import newest_complete, prune, publish, seal
from training.config import OptimizerName, Packing, Precision, RunConfig
from training.dataset import IGNORED
from training.errors import CheckpointWriteError, TrainingDivergedError
from training.hardware import has_accelerator, resolve_precision
from training.lengths import with_few_lengths
from training.optimizer import MuonWithAdamW
from training.sharding import is_sharded
from training.tree import EvenlyFilled, SharedBeginnings, TellEpoch, tree_batch

_PARTIAL = "partial"  # where checkpoints are written before they get their name


class DispatchTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with the run's optimizer, a stop before a bad update, and checkpoints that are named once whole."""

    def __init__(self, run: RunConfig, **arguments: Any) -> None:
        self._run = run
        self._losses: list[torch.Tensor] = []  # of the step under way
        self._saving_to: Path | None = None
        self._sampler: SharedBeginnings | EvenlyFilled | None = None
        super().__init__(**arguments)
        if run.training.method.has_adapter and not is_sharded():
            is_bf16 = resolve_precision(run.training.precision) is Precision.BF16
            speed_up_adapters(self.model, in_bf16=is_bf16 and not self.args.bf16)
        if run.training.packing is Packing.TREE:
            batch_size, seed = run.training.per_device_batch_size, run.seed
            self._sampler = SharedBeginnings(self.train_dataset, batch_size, seed)
            self.data_collator: Any = tree_batch
        elif (
            run.training.per_device_batch_size == 1
            and run.training.packing is not Packing.ROWS
            and not has_accelerator()
        ):
            self.data_collator = with_few_lengths(self.data_collator, self.processing_class.pad_token_id)
        if self.args.world_size > 1:
            self._fill_the_last_batches()
        if self._sampler is not None:
            self.add_callback(TellEpoch(self._sampler))

    def _fill_the_last_batches(self) -> None:
        """Give every process as many batches, by rows without loss at the epoch's end.

        Left to accelerate, the first rows of the epoch would be trained once more there.
        """
        rows: Dataset = self.train_dataset
        inner = self._sampler or SeedableRandomSampler(rows, data_seed=self.args.data_seed)
        together = self.args.per_device_train_batch_size * self.args.world_size
        self._sampler = EvenlyFilled(inner, len(rows), together)
        self.train_dataset: Any = concatenate_datasets([rows, _no_loss(rows, self.processing_class.pad_token_id)])

    def create_optimizer(self, model: Any = None) -> Any:
        """Muon where the run asks for it; the Trainer's own AdamW otherwise."""
        training = self._run.training
        if training.optimizer is OptimizerName.MUON and self.optimizer is None:
            self.optimizer: Any = MuonWithAdamW(
                self.model if model is None else model,
                learning_rate=training.learning_rate,
                muon_learning_rate=training.muon_learning_rate,
                weight_decay=training.weight_decay,
            )
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Conversations that share much go into one batch where what they share is computed once."""
        return super()._get_train_sampler(train_dataset) if self._sampler is None else self._sampler

    def training_step(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*arguments, **keywords)
        self._losses.append(loss.detach())
        return loss

    def loss_of(self, rows: Dataset) -> float:
        """Mean loss over the trained tokens of some rows, by all processes together; the model stays as it is."""
        size, rank, n_processes = self.args.per_device_train_batch_size, self.args.process_index, self.args.world_size
        batches = SharedBeginnings(rows, size, 0).batches()
        # Spread weights are gathered layer by layer, for which every process has to be there for every batch.
        mine, model = (batches, self.model_wrapped) if is_sharded() else (batches[rank::n_processes], self.model)
        sums = torch.zeros(2, dtype=torch.float64)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                for places in mine:
                    batch = self._prepare_inputs(self.data_collator([rows[place] for place in places]))
                    scored = model(**batch, fused_lm_head=True)
                    sums -= torch.stack([scored.log_probs.sum(), -scored.label_mask.sum()]).double().cpu()
        finally:
            model.train(was_training)
        if n_processes > 1:
            sums = self.accelerator.gather(sums.float().to(self.args.device)[None]).sum(0).double().cpu()
        return float(sums[0] / sums[1])

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm, after which the update comes: the last moment at which the weights are still good."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        losses, self._losses = self._losses, []
        # Looked at once a step, because each look makes the host wait for the device.
        for loss in losses:
            if not math.isfinite(loss.item()):
                raise TrainingDivergedError(self._diverged(f"the loss is {loss.item()}"))
        # With loss scaling (fp16) an overflow is routine: the scaler leaves the update out and scales down.
        if not self.args.fp16 and norm is not None and not math.isfinite(_as_float(norm)):
            raise TrainingDivergedError(self._diverged(f"the gradient's norm is {_as_float(norm)}"))
        return norm

    def _diverged(self, what: str) -> str:
        training = self._run.training
        last = newest_complete(Path(self.args.output_dir))
        kept = f"; the last good checkpoint is {last}" if last is not None else ""
        return (
            f"{what} at step {self.state.global_step + 1}; lower training.learning_rate ({training.learning_rate}), "
            f"lengthen the warm-up ({training.warmup(self.state.max_steps)} steps) or set training.precision=fp32{kept}"
        )

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._saving_to or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Write under another name, seal, rename, and only then drop older ones.

        Raises:
            CheckpointWriteError: the disk is full or refuses; what was written so far is removed.
        """
        checkpoints = Path(self.args.output_dir)
        self._saving_to = checkpoints / _PARTIAL
        name = f"checkpoint-{self.state.global_step}"
        try:
            if self.is_world_process_zero():
                shutil.rmtree(self._saving_to, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                seal(self._saving_to / name)
                publish(self._saving_to / name, checkpoints / name)
                prune(checkpoints, self._run.training.keep_last_n)
            self.accelerator.wait_for_everyone()
        except (OSError, RuntimeError, SafetensorError) as error:  # the three ways in which writers report a full disk
            shutil.rmtree(self._saving_to, ignore_errors=True)
            raise CheckpointWriteError(_not_written(checkpoints, name, error)) from error
        finally:
            self._saving_to = None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """A tied weight is written once: gathered from several processes, both of its names hold a copy."""
        for name, source in getattr(self.model, "all_tied_weights_keys", {}).items():
            if state_dict is not None and {name, source} <= state_dict.keys():
                assert torch.equal(state_dict[name], state_dict[source]), f"{name} is no longer tied to {source}"
                del state_dict[name]
        super()._save(output_dir, state_dict)

    def create_model_card(self, *arguments: Any, **keywords: Any) -> None:
        """None: TRL's card for each checkpoint describes neither the data nor the results; the run's manifest does."""


def _no_loss(like: Dataset, pad_id: int) -> Dataset:
    """One row of two tokens that are not trained, in the columns of another data set."""
    row = {"input_ids": [[pad_id] * 2], "labels": [[IGNORED] * 2], "seq_lengths": [[2]]}
    return Dataset.from_dict({name: row[name] for name in like.column_names}, features=like.features)


def _as_float(norm: Any) -> float:
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def _not_written(checkpoints: Path, name: str, error: Exception) -> str:
    free_gb = shutil.disk_usage(checkpoints).free / 1e9
    last = newest_complete(checkpoints)
    kept = f"{last} is whole and the same command continues from it" if last else "there is no earlier one"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{checkpoints / name} could not be written ({reason}; {free_gb:.1f} GB free); {kept}"
