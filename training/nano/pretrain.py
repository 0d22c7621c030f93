"""Train nano from scratch: `python -m training.nano.pretrain --out runs/nano-base`.

A Qwen3-shaped decoder of 3.3 M parameters reads conversations over invented tools. Muon moves the matrices and AdamW
the rest, in small batches (2,560 tokens); the rate stays level and falls to zero over the second half. On a CPU
two processes of one thread each are used, because an operation of this size gains nothing from a second thread;
OMP_NUM_THREADS gives each of them as many as it says.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, Qwen3Config

from data.synth.generate import generate_invented
from data.synth.temporal import MONTHS, WEEKDAYS
from tinydispatch.tools import Conversation
from training.nano.corpus import NOT_ASKED, SHAPES, Batch, Batches, Mixture, conversation_text
from training.nano.initial import initialise
from training.nano.network import Network, as_transformers
from training.nano.optimizers import Optimizers, average_gradients
from training.nano.tokenizer import train_tokenizer

_TOKENIZER_TEXTS = 4_000
_LOG_EVERY_STEPS = 50
_SAVE_EVERY_STEPS = 500


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the generator's own source."""

    steps: int = 18_000
    seed: int = 20_261_124
    vocab_size: int = 1_152
    hidden_size: int = 192
    layers: int = 6
    intermediate_size: int = 512
    heads: int = 4
    head_dim: int = 64
    rope_theta: float = 1e6  # with fewer slow pairs of dimensions a word is not matched sharply at any distance
    max_positions: int = 2_048
    processes: int = 2  # batches per step, one each; the seeds depend on it
    muon_lr: float = 0.02
    adamw_lr: float = 3e-3
    warmup_steps: int = 50
    decay_share: float = 0.5
    exercise_share: float = 0.03
    disguised_share: float = 0.9
    plain_share: float = 0.85
    drill_share: float = 0.3
    long_share: float = 0.15
    lookup_weight: float = 0.3
    lookup_layer: int = 3  # blocks before the loss on what a day's name stands for

    def lr_scale(self, step: int) -> float:
        """Warm-up, level, then a straight line to zero."""
        decay_steps = max(1, int(self.steps * self.decay_share))
        return min(1.0, (step + 1) / self.warmup_steps, max(0.0, (self.steps - step) / decay_steps))


def new_network(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Network:
    """A decoder with tied embeddings at its starting weights."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        intermediate_size=recipe.intermediate_size,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.head_dim,
        max_position_embeddings=recipe.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    network = Network(config, recipe.lookup_layer)
    initialise(network, tokenizer, recipe.seed)
    return network


class Losses(NamedTuple):
    """`total` is what is minimised: targets by weight, plus lookups; the others are for the log (nats a token)."""

    total: torch.Tensor
    answer: torch.Tensor
    lookup: torch.Tensor


def losses(
    network: Network, ids_BT: torch.Tensor, weights_BT: torch.Tensor, known_BT: torch.Tensor, lookup_weight: float
) -> Losses:
    """One step's losses.

    `known_BT` holds the token id that the residual stream half-way up should foretell, through the model's own head,
    and -100 where nothing is asked.
    """
    logits_BTV, residual_BTD = network(ids_BT)
    targets, weights = ids_BT[:, 1:].flatten(), weights_BT[:, 1:].flatten()
    each = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), targets, reduction="none")
    is_answer = weights == 1.0
    answer = (each.detach() * is_answer).sum() / is_answer.sum().clamp(min=1)
    asked = (known_BT.flatten() != NOT_ASKED).sum().clamp(min=1)
    foretold = network.head(residual_BTD).flatten(0, 1)
    lookup = F.cross_entropy(foretold, known_BT.flatten(), ignore_index=NOT_ASKED, reduction="sum") / asked
    total = (each * weights).sum() / weights.sum().clamp(min=1e-6) + lookup_weight * lookup
    return Losses(total, answer, lookup.detach())


def _conversations(recipe: Recipe, seed: int) -> Iterator[Conversation]:
    return generate_invented(seed, disguised_share=recipe.disguised_share, plain_share=recipe.plain_share)


def _tokenizer(recipe: Recipe, out: Path) -> PreTrainedTokenizerFast:
    if not (out / "tokenizer.json").exists():
        stream = generate_invented(
            recipe.seed + 1, disguised_share=recipe.disguised_share, plain_share=recipe.plain_share
        )
        texts = (conversation_text(conversation) for conversation in itertools.islice(stream, _TOKENIZER_TEXTS))
        words = [*WEEKDAYS, *(day.lower() for day in WEEKDAYS), *MONTHS, "today", "tomorrow"]
        train_tokenizer(texts, recipe.vocab_size, recipe.max_positions, words).save_pretrained(out)
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(out)
    return loaded


def corpus_hash(recipe: Recipe, conversations: int = 300) -> str:
    """First 16 hex digits of a SHA-256 over the first conversations: it changes with the generator."""
    stream = _conversations(recipe, recipe.seed * 10)
    digest = hashlib.sha256()
    for conversation in itertools.islice(stream, conversations):
        digest.update(conversation_text(conversation).encode())
    return digest.hexdigest()[:16]


def _batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rank: int, first: int) -> Iterator[Batch]:
    mixture = Mixture(
        recipe.exercise_share, recipe.disguised_share, recipe.drill_share, recipe.plain_share, recipe.long_share
    )
    stream = Batches(tokenizer, recipe.seed * 10 + rank, mixture)
    loader = DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=16)
    return itertools.islice(iter(loader), first, None)


def _can_compile() -> bool:
    return torch.cuda.is_available() or shutil.which("g++") is not None


def threads_each() -> int:
    """Threads of each process: OMP_NUM_THREADS where it is set; else one, beyond which nothing is gained."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else 1


def worker(rank: int, recipe: Recipe, out: Path, rendezvous: str) -> None:
    """One process of the run."""
    world = recipe.processes
    torch.set_num_threads(threads_each())
    device = (
        torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    tokenizer = _tokenizer(recipe, out)
    network = new_network(recipe, tokenizer).to(device)
    optimizers = Optimizers(network, recipe.muon_lr, recipe.adamw_lr, rank, world)
    first = _resume(out, network, optimizers, rank)
    log = _Log(out / "pretrain_log.jsonl", recipe, first)
    compute = torch.compile(losses, dynamic=False) if _can_compile() else losses
    for step, batch in zip(range(first, recipe.steps), _batches(recipe, tokenizer, rank, first), strict=False):
        ids, weights, known = (batch[key].to(device) for key in ("ids", "weights", "known"))
        found = compute(network, ids, weights, known, recipe.lookup_weight)
        found.total.backward()  # type: ignore[no-untyped-call]
        average_gradients(network, world)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizers.step(recipe.lr_scale(step))
        network.zero_grad(set_to_none=False)
        if rank == 0:
            log.record(step, found.answer.item(), found.lookup.item())
        if (step + 1) % _SAVE_EVERY_STEPS == 0 or step + 1 == recipe.steps:
            _save(out, step + 1, network, optimizers, rank)
    if rank == 0:
        as_transformers(network.cpu()).to(torch.bfloat16).save_pretrained(out / "final")
        tokenizer.save_pretrained(out / "final")
        described = asdict(recipe) | {"corpus_hash": corpus_hash(recipe)}
        (out / "final" / "recipe.json").write_text(json.dumps(described, indent=2) + "\n")


class _Log:
    """Lines of pretrain_log.jsonl, with the answers' loss smoothed over about fifty steps."""

    def __init__(self, path: Path, recipe: Recipe, first: int) -> None:
        self.path, self.recipe, self.first = path, recipe, first
        self.started, self.answer, self.lookup = time.monotonic(), 0.0, 0.0

    def record(self, step: int, answer_loss: float, lookup_loss: float) -> None:
        """Take in one step; every fiftieth prints and writes a line."""
        self.answer = answer_loss if step == self.first else 0.98 * self.answer + 0.02 * answer_loss
        self.lookup = lookup_loss if step == self.first else 0.98 * self.lookup + 0.02 * lookup_loss
        if (step + 1) % _LOG_EVERY_STEPS:
            return
        tokens = (step + 1 - self.first) * self.recipe.processes * SHAPES[0].rows * SHAPES[0].length
        rate, lr = round(tokens / (time.monotonic() - self.started)), self.recipe.lr_scale(step)
        losses = {"answer_loss": round(self.answer, 4), "lookup_loss": round(self.lookup, 4)}
        line = {"step": step + 1, **losses, "tokens_per_s": rate, "lr": lr}
        with self.path.open("a") as file:
            print(json.dumps(line), file=file)
        seen = f"answer loss {self.answer:.4f}  lookup {self.lookup:.3f}  {rate:,} tokens/s"
        print(f"step {step + 1}/{self.recipe.steps}  {seen}", flush=True)


def _save(out: Path, step: int, network: nn.Module, optimizers: Optimizers, rank: int) -> None:
    part = out / f"state-{rank}.pt.part"
    torch.save({"step": step, "model": network.state_dict(), "optimizers": optimizers.state()}, part)
    if optimizers.world > 1:
        dist.barrier()  # both parts are whole before either replaces the last pair
    part.replace(out / f"state-{rank}.pt")


def _resume(out: Path, network: nn.Module, optimizers: Optimizers, rank: int) -> int:
    path = out / f"state-{rank}.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state["model"])
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
