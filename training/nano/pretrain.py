"""Train nano from scratch: `python -m training.nano.pretrain --out runs/nano-base`.

A Qwen3-shaped decoder of 2.9 M parameters reads conversations over invented tools. Muon moves the matrices and AdamW
the rest, in small batches (2,048 tokens); the rate stays level and falls to zero over the last quarter. On a CPU
two processes of one thread each are used, because an operation of this size gains nothing from a second thread.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from data.synth.generate import generate_invented
from training.nano.corpus import PackedRows, conversation_text
from training.nano.tokenizer import train_tokenizer

_TOKENIZER_TEXTS = 5_000
_LOG_EVERY_STEPS = 50
_SAVE_EVERY_STEPS = 500


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the generator's own source."""

    steps: int = 8_400
    seed: int = 20_260_319
    vocab_size: int = 1_024
    hidden_size: int = 192
    layers: int = 6
    intermediate_size: int = 512
    heads: int = 3
    kv_heads: int = 3
    head_dim: int = 64
    max_positions: int = 2_048
    row_length_tokens: int = 1_024
    processes: int = 2  # rows per step, one each; the seeds depend on it
    muon_lr: float = 0.02
    adamw_lr: float = 3e-3
    warmup_steps: int = 50
    decay_share: float = 0.25
    copy_only_steps: int = 250
    copy_share: float = 0.08
    disguised_from_step: int = 3_500
    disguised_share: float = 0.75
    drilled_from_step: int = 7_000
    drilled_share: float = 0.6

    def lr_scale(self, step: int) -> float:
        """Warm-up, level, then a straight line to zero."""
        decay_steps = max(1, int(self.steps * self.decay_share))
        return min(1.0, (step + 1) / self.warmup_steps, max(0.0, (self.steps - step) / decay_steps))


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3-shaped decoder with tied embeddings."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        intermediate_size=recipe.intermediate_size,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(recipe.seed)
    return Qwen3ForCausalLM(config)


class Optimizers:
    """Muon on this process's share of the hidden matrices, AdamW on the rest; shares are exchanged after each step."""

    def __init__(self, model: nn.Module, recipe: Recipe, rank: int, world: int) -> None:
        named = list(model.named_parameters())
        self.matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
        others = [p for name, p in named if not any(p is matrix for matrix in self.matrices)]
        self.rank, self.world = rank, world
        muon = torch.optim.Muon(self.matrices[rank::world], lr=recipe.muon_lr, momentum=0.95, weight_decay=0.01)
        adamw = torch.optim.AdamW(others, lr=recipe.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0)
        self.all = ((muon, recipe.muon_lr), (adamw, recipe.adamw_lr))

    def step(self, scale: float) -> None:
        """One update at `scale` times the base rates."""
        for optimizer, base_lr in self.all:
            for group in optimizer.param_groups:
                group["lr"] = base_lr * scale
            optimizer.step()  # type: ignore[no-untyped-call]
        if self.world > 1:
            for index, matrix in enumerate(self.matrices):
                dist.broadcast(matrix.data, src=index % self.world)

    def state(self) -> list[dict[str, Any]]:
        """What a resumed run needs."""
        return [optimizer.state_dict() for optimizer, _ in self.all]

    def load(self, states: list[dict[str, Any]]) -> None:
        """The opposite of `state`."""
        for (optimizer, _), state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


def _average_gradients(model: nn.Module, world: int) -> None:
    if world == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.view(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def weighted_loss(
    logits_BTV: torch.Tensor, ids_BT: torch.Tensor, weights_BT: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """(weighted mean over targets, plain mean over the fully weighted ones, for the log)."""
    targets, weights = ids_BT[:, 1:], weights_BT[:, 1:]
    losses = F.cross_entropy(logits_BTV[:, :-1].float().transpose(1, 2), targets, reduction="none")
    is_answer = weights == 1.0
    answer_loss = (losses.detach() * is_answer).sum() / is_answer.sum().clamp(min=1)
    return (losses * weights).sum() / weights.sum().clamp(min=1e-6), answer_loss.item()


def _tokenizer(recipe: Recipe, out: Path) -> PreTrainedTokenizerFast:
    if not (out / "tokenizer.json").exists():
        conversations = itertools.islice(generate_invented(recipe.seed + 1), _TOKENIZER_TEXTS)
        texts = (conversation_text(conversation) for conversation in conversations)
        train_tokenizer(texts, recipe.vocab_size, recipe.max_positions).save_pretrained(out)
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(out)
    return loaded


def corpus_hash(recipe: Recipe, conversations: int = 300) -> str:
    """First 16 hex digits of a SHA-256 over the first conversations of both phases: it changes with the generator."""
    digest = hashlib.sha256()
    for share in (0.0, recipe.disguised_share):
        stream = generate_invented(recipe.seed * 10, disguised_share=partial(float, share))
        for conversation in itertools.islice(stream, conversations):
            digest.update(conversation_text(conversation).encode())
    return digest.hexdigest()[:16]


def _rows(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rank: int, first: int
) -> Iterator[dict[str, torch.Tensor]]:
    rows = PackedRows(
        tokenizer,
        recipe.seed * 10 + rank,
        recipe.row_length_tokens,
        recipe.copy_only_steps,
        recipe.copy_share,
        (recipe.disguised_from_step - recipe.copy_only_steps, recipe.disguised_share),
        (recipe.drilled_from_step - recipe.copy_only_steps, recipe.drilled_share),
    )
    return itertools.islice(iter(DataLoader(rows, batch_size=1, num_workers=1, prefetch_factor=16)), first, None)


def worker(rank: int, recipe: Recipe, out: Path, rendezvous: str) -> None:
    """One process of the run."""
    world = recipe.processes
    torch.set_num_threads(1)
    device = (
        torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    tokenizer = _tokenizer(recipe, out)
    model = new_model(recipe, tokenizer).to(device)
    optimizers = Optimizers(model, recipe, rank, world)
    first = _resume(out, model, optimizers, rank)
    log = _Log(out / "pretrain_log.jsonl", recipe, first)
    for step, row in zip(range(first, recipe.steps), _rows(recipe, tokenizer, rank, first), strict=False):
        ids, weights = row["ids"].to(device), row["weights"].to(device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits
        loss, answer_loss = weighted_loss(logits, ids, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        _average_gradients(model, world)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(recipe.lr_scale(step))
        model.zero_grad(set_to_none=False)
        if rank == 0:
            log.record(step, answer_loss)
        if (step + 1) % _SAVE_EVERY_STEPS == 0 or step + 1 == recipe.steps:
            _save(out, step + 1, model, optimizers, rank)
    if rank == 0:
        model.to(torch.bfloat16).save_pretrained(out / "final")
        tokenizer.save_pretrained(out / "final")
        described = asdict(recipe) | {"corpus_hash": corpus_hash(recipe)}
        (out / "final" / "recipe.json").write_text(json.dumps(described, indent=2) + "\n")


class _Log:
    """Lines of pretrain_log.jsonl, with the answers' loss smoothed over about fifty steps."""

    def __init__(self, path: Path, recipe: Recipe, first: int) -> None:
        self.path, self.recipe, self.first = path, recipe, first
        self.started, self.answer = time.monotonic(), 0.0

    def record(self, step: int, answer_loss: float) -> None:
        """Take in one step; every fiftieth prints and writes a line."""
        self.answer = answer_loss if step == self.first else 0.98 * self.answer + 0.02 * answer_loss
        if (step + 1) % _LOG_EVERY_STEPS:
            return
        tokens = (step + 1 - self.first) * self.recipe.processes * self.recipe.row_length_tokens
        rate, lr = round(tokens / (time.monotonic() - self.started)), self.recipe.lr_scale(step)
        line = {"step": step + 1, "answer_loss": round(self.answer, 4), "tokens_per_s": rate, "lr": lr}
        with self.path.open("a") as file:
            print(json.dumps(line), file=file)
        print(f"step {step + 1}/{self.recipe.steps}  answer loss {self.answer:.4f}  {rate:,} tokens/s", flush=True)


def _save(out: Path, step: int, model: nn.Module, optimizers: Optimizers, rank: int) -> None:
    part = out / f"state-{rank}.pt.part"
    torch.save({"step": step, "model": model.state_dict(), "optimizers": optimizers.state()}, part)
    if optimizers.world > 1:
        dist.barrier()  # both parts are whole before either replaces the last pair
    part.replace(out / f"state-{rank}.pt")


def _resume(out: Path, model: nn.Module, optimizers: Optimizers, rank: int) -> int:
    path = out / f"state-{rank}.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizers.load(state["optimizers"])
    step: int = state["step"]
    return step


def main(argv: Sequence[str] | None = None) -> int:
    """Run or resume the training in `--out`; the model ends in `OUT/final`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the log, the state to resume from, and final/"
    )
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    arguments = parser.parse_args(argv)
    recipe = Recipe(steps=arguments.steps, processes=1 if torch.cuda.is_available() else Recipe.processes)
    arguments.out.mkdir(parents=True, exist_ok=True)
    _tokenizer(recipe, arguments.out)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as folder:
        arguments_of_worker = (recipe, arguments.out, f"{folder}/rendezvous")
        spawn(worker, arguments_of_worker, nprocs=recipe.processes, join=True)  # type: ignore[no-untyped-call]
    return 0


if __name__ == "__main__":
    sys.exit(main())
