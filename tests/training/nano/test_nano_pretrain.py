from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from training.nano import pretrain
from training.nano.corpus import NOT_ASKED
from training.nano.network import Network, Outputs
from training.nano.optimizers import Optimizers
from training.nano.pretrain import Recipe, losses, new_network, worker

TINY = Recipe(steps=4, layers=2, intermediate_size=32, processes=1, warmup_steps=1, lookup_layer=2)


class StoppedError(Exception):
    """Stands in for a process that is killed."""


@pytest.fixture(autouse=True)
def _without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "_can_compile", lambda: False)


@pytest.fixture
def make_out(tmp_path: Path, nano_tokenizer: PreTrainedTokenizerFast) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        nano_tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_weights(
    make_out: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "_SAVE_EVERY_STEPS", 2)
    monkeypatch.setattr(pretrain, "_LOG_EVERY_STEPS", 2)
    whole, stopped = make_out("whole"), make_out("stopped")
    worker(0, TINY, whole, "")
    take_step, taken = Optimizers.step, []

    def step(self: Optimizers, scale: float) -> None:
        if len(taken) == 3:
            raise StoppedError
        taken.append(scale)
        take_step(self, scale)

    with monkeypatch.context() as patch:
        patch.setattr(Optimizers, "step", step)
        with pytest.raises(StoppedError):
            worker(0, TINY, stopped, "")
    assert torch.load(stopped / "state-0.pt", weights_only=True)["step"] == 2
    worker(0, TINY, stopped, "")
    expected = torch.load(whole / "state-0.pt", weights_only=True)
    resumed = torch.load(stopped / "state-0.pt", weights_only=True)
    assert expected["step"] == resumed["step"] == 4
    assert all(torch.equal(weight, resumed["model"][name]) for name, weight in expected["model"].items())
    lines = [json.loads(line) for line in (whole / "pretrain_log.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    _check_final(whole / "final")


def _check_final(final: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(final)
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert model.config.model_type == "qwen3"
    assert model.config.vocab_size == len(tokenizer)
    assert json.loads((final / "recipe.json").read_text("utf-8"))["steps"] == TINY.steps
    weights = new_network(TINY, tokenizer).state_dict()
    assert not torch.equal(model.state_dict()["model.embed_tokens.weight"], weights["model.embed_tokens.weight"])


def test_the_rate_warms_up_stays_level_and_falls_to_zero() -> None:
    recipe = Recipe(steps=1_000, warmup_steps=50, decay_share=0.25)
    scales = [recipe.lr_scale(step) for step in range(1_001)]
    assert scales[0] == pytest.approx(1 / 50)
    assert set(scales[49:751]) == {1.0}
    assert scales[875] == pytest.approx(0.5)
    assert scales[1_000] == 0.0
    assert all(later < earlier for earlier, later in itertools.pairwise(scales[751:]))


class Fixed(Network):
    """Gives the same logits whatever it reads; the residual stream is read as logits too."""

    def __init__(self, logits: torch.Tensor, residual: torch.Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.logits, self.residual = logits, residual

    def forward(self, ids_BT: torch.Tensor) -> Outputs:
        del ids_BT
        return Outputs(self.logits, self.residual)

    def head(self, stream: torch.Tensor) -> torch.Tensor:
        return stream


def test_a_target_of_weight_zero_costs_nothing_and_the_log_counts_answers_only() -> None:
    torch.manual_seed(0)
    logits, ids, residual = torch.randn(1, 5, 7), torch.randint(0, 7, (1, 5)), torch.randn(1, 5, 7)
    each = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
    nothing = torch.full((1, 5), NOT_ASKED)
    found = losses(Fixed(logits, residual), ids, torch.tensor([[1.0, 0.0, 1.0, 0.1, 0.1]]), nothing, 0.5)
    assert found.total.item() == pytest.approx((each[1] + 0.1 * each[2] + 0.1 * each[3]).item() / 1.2, rel=1e-5)
    assert found.answer.item() == pytest.approx(each[1].item(), rel=1e-5)
    assert found.lookup.item() == 0.0


def test_what_should_be_known_half_way_is_added_with_its_weight() -> None:
    torch.manual_seed(0)
    logits, ids, residual = torch.randn(1, 5, 7), torch.randint(0, 7, (1, 5)), torch.randn(1, 5, 7)
    known = torch.tensor([[NOT_ASKED, 3, NOT_ASKED, 6, NOT_ASKED]])
    asked = torch.nn.functional.cross_entropy(residual[0, [1, 3]], torch.tensor([3, 6])).item()
    found = losses(Fixed(logits, residual), ids, torch.zeros(1, 5), known, 0.5)
    assert found.lookup.item() == pytest.approx(asked, rel=1e-5)
    assert found.total.item() == pytest.approx(0.5 * asked, rel=1e-5)
    assert found.answer.item() == 0.0


def test_muon_moves_the_hidden_matrices_and_adamw_everything_else_once(
    nano_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = new_network(TINY, nano_tokenizer)
    optimizers = Optimizers(model, TINY.muon_lr, TINY.adamw_lr, rank=0, world=1)
    groups = [group["params"] for optimizer, _ in optimizers.all for group in optimizer.param_groups]
    assert {id(p) for p in optimizers.matrices} == {id(p) for p in groups[0]}
    assert all(p.ndim == 2 for p in groups[0])
    embedding = model.get_parameter("model.embed_tokens.weight")
    assert any(p is embedding for p in groups[1])
    assert sorted(id(p) for group in groups for p in group) == sorted(id(p) for p in model.parameters())


def test_the_weights_at_the_start_depend_on_the_seed(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    first, again = new_network(TINY, nano_tokenizer), new_network(TINY, nano_tokenizer)
    other = new_network(replace(TINY, seed=1), nano_tokenizer)
    name = "model.embed_tokens.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


@pytest.mark.parametrize(("asked", "threads"), [(None, 1), ("3", 3), ("", 1), ("many", 1), ("0", 1)])
def test_processes_take_the_threads_that_they_are_given(
    asked: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert pretrain.threads_each() == threads
