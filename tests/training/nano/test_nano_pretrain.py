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
from training.nano.optimizers import Optimizers
from training.nano.pretrain import Recipe, lookup_loss, new_model, weighted_loss, worker

TINY = Recipe(
    steps=4,
    hidden_size=32,
    layers=1,
    intermediate_size=32,
    heads=2,
    kv_heads=2,
    head_dim=16,
    row_length_tokens=64,
    processes=1,
    warmup_steps=1,
    exercise_steps=2,
    plain_from_step=3,
    lookup_layer=0,
)


class StoppedError(Exception):
    """Stands in for a process that is killed."""


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
    weights = new_model(TINY, tokenizer).state_dict()
    assert not torch.equal(model.state_dict()["model.embed_tokens.weight"], weights["model.embed_tokens.weight"])


def test_the_rate_warms_up_stays_level_and_falls_to_zero() -> None:
    recipe = Recipe(steps=1_000, warmup_steps=50, decay_share=0.25)
    scales = [recipe.lr_scale(step) for step in range(1_001)]
    assert scales[0] == pytest.approx(1 / 50)
    assert set(scales[49:751]) == {1.0}
    assert scales[875] == pytest.approx(0.5)
    assert scales[1_000] == 0.0
    assert all(later < earlier for earlier, later in itertools.pairwise(scales[751:]))


def test_a_target_of_weight_zero_costs_nothing_and_the_log_counts_answers_only() -> None:
    torch.manual_seed(0)
    logits_BTV, ids_BT = torch.randn(1, 5, 7), torch.randint(0, 7, (1, 5))
    losses = torch.nn.functional.cross_entropy(logits_BTV[0, :-1], ids_BT[0, 1:], reduction="none")
    loss, answer = weighted_loss(logits_BTV, ids_BT, torch.tensor([[1.0, 0.0, 1.0, 0.1, 0.1]]))
    assert loss.item() == pytest.approx((losses[1] + 0.1 * losses[2] + 0.1 * losses[3]).item() / 1.2, rel=1e-5)
    assert answer == pytest.approx(losses[1].item(), rel=1e-5)


def test_a_row_without_targets_has_no_loss() -> None:
    loss, answer = weighted_loss(torch.randn(1, 3, 4), torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3))
    assert (loss.item(), answer) == (0.0, 0.0)


def test_muon_moves_the_hidden_matrices_and_adamw_everything_else_once(
    nano_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = new_model(TINY, nano_tokenizer)
    optimizers = Optimizers(model, TINY.muon_lr, TINY.adamw_lr, rank=0, world=1)
    groups = [group["params"] for optimizer, _ in optimizers.all for group in optimizer.param_groups]
    assert {id(p) for p in optimizers.matrices} == {id(p) for p in groups[0]}
    assert all(p.ndim == 2 for p in groups[0])
    embedding = model.get_input_embeddings().weight
    assert any(p is embedding for p in groups[1])
    assert sorted(id(p) for group in groups for p in group) == sorted(id(p) for p in model.parameters())


def test_the_weights_at_the_start_depend_on_the_seed(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    first, again = new_model(TINY, nano_tokenizer), new_model(TINY, nano_tokenizer)
    other = new_model(replace(TINY, seed=1), nano_tokenizer)
    name = "model.embed_tokens.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_hidden_states_that_say_the_right_token_have_the_smaller_lookup_loss(
    nano_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = new_model(TINY, nano_tokenizer)
    right, wrong = 70, 71
    hidden = model.lm_head.weight.detach()[[right, wrong, 5]][None] * 100
    at_right, at_wrong = (lookup_loss(model, hidden, torch.tensor([[place, right]])).item() for place in (0, 1))
    assert at_right < at_wrong
    assert lookup_loss(model, hidden, torch.zeros(0, 2, dtype=torch.long)).item() == 0.0


def test_the_day_that_a_word_stands_for_is_learned_from_its_step_on(
    make_out: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "_LOG_EVERY_STEPS", 2)
    recipe = replace(TINY, exercise_steps=0, row_length_tokens=512, drill_share=1.0)
    without, with_it = make_out("without"), make_out("with")
    worker(0, replace(recipe, lookup_from_step=99), without, "")
    worker(0, replace(recipe, lookup_from_step=0), with_it, "")
    weights = [torch.load(out / "state-0.pt", weights_only=True)["model"] for out in (without, with_it)]
    assert any(not torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    lines = [json.loads(line) for line in (with_it / "pretrain_log.jsonl").read_text("utf-8").splitlines()]
    assert lines[-1]["lookup_loss"] > 0
