"""Rows trained as a tree have the loss and the gradient of each alone, and a model that breaks that is found out."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import trl.trainer.utils as trl_internals
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from training import attention
from training.attention import ATTENTION
from training.config import Packing, load_run_config
from training.errors import PackingError
from training.head import trained_tokens_only
from training.packing import check_tree, choose_packing, make_tree_packable, plain_attention
from training.tree import SharedBeginnings, measure_sharing, tree_batch, tree_nodes

VOCABULARY = 97
Row = dict[str, list[int]]


def llama() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config)


def qwen3() -> PreTrainedModel:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=0.2,
    )
    return Qwen3ForCausalLM(config)


def opt() -> PreTrainedModel:
    """OPT-350M's norms after and narrower embedding."""
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        word_embed_proj_dim=16,
        activation_function="gelu",  # relu has a kink, at which a rounding of 1e-8 changes gradients by 1e-3
        do_layer_norm_before=False,
        max_position_embeddings=512,
        dropout=0.0,
        init_std=0.2,
    )
    return OPTForCausalLM(config)


def made(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    model = make()
    trl_internals.add_fused_lm_head(model)
    return model.train()


MODELS = {name: made(make) for name, make in {"opt": opt, "qwen3": qwen3, "llama": llama}.items()}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    MODELS[request.param].set_attn_implementation(ATTENTION)
    return MODELS[request.param]


def random_rows(seed: int) -> list[Row]:
    """Up to 12 rows that begin alike in up to three levels; some twice, some alone, some with two trained turns."""
    rng = random.Random(seed)

    def draw(longest: int) -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, longest))]

    rows: list[Row] = []
    for _ in range(rng.randint(1, 2)):
        tools = draw(120)
        for _ in range(rng.randint(1, 2)):
            date = tools + draw(40)
            for _ in range(rng.randint(1, 3)):
                ids = date + draw(20)
                labels = [-100] * len(ids)
                for _ in range(rng.randint(1, 2)):
                    reply, between = draw(9), draw(5)
                    ids, labels = ids + reply + between, labels + reply + [-100] * len(between)
                rows.append({"input_ids": ids, "labels": labels})
    if rng.random() < 0.3:
        rows.append(rows[0])
    rng.shuffle(rows)
    return rows


def losses_and_gradient(
    model: PreTrainedModel, batches: Sequence[Mapping[str, Any]]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses of the trained tokens, sorted, and the gradient of their mean; only trained tokens reach the head."""
    model.zero_grad()
    losses = []
    with trained_tokens_only():
        for batch in batches:
            found = model(**batch, fused_lm_head=True)
            losses.append(-found.log_probs[found.label_mask])
    torch.cat(losses).mean().backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return torch.cat(losses).detach().sort().values, gradients


def alone(rows: Sequence[Row]) -> list[dict[str, torch.Tensor]]:
    return [{name: torch.tensor([row[name]]) for name in row} for row in rows]


def differences(model: PreTrainedModel, rows: Sequence[Row]) -> tuple[float, float]:
    """Largest difference between tree and rows alone: of a token's loss, and of a gradient over the largest."""
    tree_losses, tree_gradients = losses_and_gradient(model, [tree_batch(rows)])
    with plain_attention(model):
        losses, gradients = losses_and_gradient(model, alone(rows))
    assert len(tree_losses) == len(losses) > 0
    largest = max(float(value.abs().max()) for value in gradients.values())
    worst = max(float((tree_gradients[name] - value).abs().max()) for name, value in gradients.items())
    return float((tree_losses - losses).abs().max()), worst / largest


@pytest.mark.parametrize("name", list(MODELS))
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_losses_and_gradients_of_any_tree_are_those_of_its_rows(name: str, seed: int) -> None:
    MODELS[name].set_attn_implementation(ATTENTION)
    loss, gradient = differences(MODELS[name], random_rows(seed))
    assert loss < 1e-5
    assert gradient < 1e-4


def test_every_token_stands_once_and_every_row_is_read_back_from_its_keys() -> None:
    for seed in range(50):
        rows = random_rows(seed)
        batch = tree_batch(rows)
        q, k = batch["cu_seq_lens_q"].tolist(), batch["cu_seq_lens_k"].tolist()
        assert batch["input_ids"].shape[1] == q[-1] <= sum(len(row["input_ids"]) for row in rows)
        found = []
        for (first, end), (key_first, key_end) in zip(itertools.pairwise(q), itertools.pairwise(k), strict=True):
            places = batch["key_index"][key_first:key_end]
            assert places[first - end :].tolist() == list(range(first, end))
            assert batch["position_ids"][0, places].tolist() == list(range(key_end - key_first))
            if (batch["labels"][0, first:end] != -100).any():
                found.append((batch["input_ids"][0, places].tolist(), batch["labels"][0, places].tolist()))
        assert sorted(found) == sorted((row["input_ids"], row["labels"]) for row in rows)
        n_trained = sum(label != -100 for row in rows for label in row["labels"][1:])
        assert int((batch["shift_labels"] != -100).sum()) == n_trained


def test_a_beginning_of_many_rows_is_computed_once() -> None:
    tools = list(range(90)) * 5
    rows = [{"input_ids": [*tools, n, 1, 2, 3], "labels": [-100] * 452 + [2, 3]} for n in range(24)]
    assert tree_batch(rows)["input_ids"].shape[1] == 450 + 24 * 4


def test_gradient_checkpointing_changes_nothing(model: PreTrainedModel) -> None:
    rows = random_rows(3)
    kept, kept_gradients = losses_and_gradient(model, [tree_batch(rows)])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        recomputed, gradients = losses_and_gradient(model, [tree_batch(rows)])
    finally:
        model.gradient_checkpointing_disable()
    assert torch.equal(kept, recomputed)
    assert all(torch.allclose(value, kept_gradients[name], atol=1e-7) for name, value in gradients.items())


def varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    key_ends: torch.Tensor,
    longest: int,
    longest_key: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What the kernel of GPUs is documented to compute: causal, a node's queries aligned with its last keys."""
    assert window_size == (-1, 0)
    assert longest == int((ends[1:] - ends[:-1]).max())
    assert longest_key == int((key_ends[1:] - key_ends[:-1]).max())
    parts = []
    for (q0, q1), (k0, k1) in zip(
        itertools.pairwise(ends.tolist()), itertools.pairwise(key_ends.tolist()), strict=True
    ):
        sees = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(k1 - k0 - (q1 - q0))
        heads = (tensor.transpose(0, 1)[None] for tensor in (query[q0:q1], key[k0:k1], value[k0:k1]))
        attended = torch.nn.functional.scaled_dot_product_attention(
            *heads, attn_mask=sees, scale=scale, enable_gqa=enable_gqa
        )
        parts.append(attended[0].transpose(0, 1))
    return torch.cat(parts)


def test_a_gpus_single_call_gets_each_nodes_keys(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself needs a GPU; here something of the same signature stands for it."""
    monkeypatch.setattr(attention, "varlen_attn", varlen)
    monkeypatch.setattr(attention, "_has_varlen_kernel", lambda _query, _dropout: True)
    loss, gradient = differences(model, random_rows(5))
    assert loss < 1e-5
    assert gradient < 1e-4


def test_pytorchs_own_kernel_node_by_node_computes_the_same(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of half precision on CPUs."""
    by_blocks = losses_and_gradient(model, [tree_batch(random_rows(7))])[1]

    def by_kernel(*_: Any) -> torch.Tensor:
        raise AssertionError("the other way was taken")

    with monkeypatch.context() as patch:
        patch.setattr(attention._InBlocks, "apply", by_kernel)
        with pytest.raises(AssertionError):
            losses_and_gradient(model, [tree_batch(random_rows(7))])
        patch.setattr(attention, "_runs_in_blocks", lambda _query, _dropout: False)
        gradients = losses_and_gradient(model, [tree_batch(random_rows(7))])[1]
    assert all(torch.allclose(value, gradients[name], atol=1e-5) for name, value in by_blocks.items())


def test_products_in_bf16_round_a_tree_and_change_nothing_else(model: PreTrainedModel) -> None:
    whole = losses_and_gradient(model, [tree_batch(random_rows(7))])[1]
    rounding = copy.deepcopy(model)
    for module in rounding.modules():
        module.multiplies_in_bf16 = True  # what `speed_up_adapters` leaves
    rounded = losses_and_gradient(rounding, [tree_batch(random_rows(7))])[1]
    errors = {name: float((value - rounded[name]).norm()) for name, value in whole.items()}
    assert 0 < sum(errors.values()) < 0.03 * sum(float(value.norm()) for value in whole.values())


def test_the_check_passes_what_is_exact(model: PreTrainedModel) -> None:
    check = check_tree(model)
    assert check.is_exact, check
    assert check.contamination == 0
    assert check.influence > 1e-3
    assert check_tree(model, torch.bfloat16).is_exact


def siblings_see_each_other(nodes: Sequence[Any]) -> list[Any]:
    """Every node after the first reads all that stands before it in the row."""
    return [attention.NodePlace(node.first, node.end, node.first) for node in nodes]


def nobody_sees_the_beginning(nodes: Sequence[Any]) -> list[Any]:
    return [attention.NodePlace(node.first, node.end, 0) for node in nodes]


@pytest.mark.parametrize("fault", [siblings_see_each_other, nobody_sees_the_beginning])
def test_a_model_whose_branches_see_too_much_or_too_little_is_refused(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Sequence[Any]], list[Any]]
) -> None:
    nodes_of = attention.nodes_of
    monkeypatch.setattr(attention, "nodes_of", lambda *ends: fault(nodes_of(*ends)))
    assert not check_tree(model).is_exact
    model.set_attn_implementation("sdpa")
    with pytest.raises(PackingError, match="would not stay what they are in a tree"):
        make_tree_packable(model)
    assert model.config._attn_implementation == "sdpa"


def test_a_gradient_that_does_not_reach_the_beginning_is_noticed(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is right then; only the comparison of gradients can tell."""
    backward = attention._InBlocks.backward

    def without_ancestors(ctx: Any, grad: torch.Tensor) -> Any:
        dq, dk, dv, *rest = backward(ctx, grad)
        first = ctx.nodes[0]
        dk[:, :, first.first : first.end], dv[:, :, first.first : first.end] = 0, 0
        return dq, dk, dv, *rest

    monkeypatch.setattr(attention._InBlocks, "backward", staticmethod(without_ancestors))
    check = check_tree(model)
    assert check.difference < 1e-4
    assert check.gradient_difference > 1e-2
    assert not check.is_exact


def test_layers_with_a_state_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["qwen3"]
    monkeypatch.setattr(model.config, "layer_types", ["linear_attention", "full_attention", "full_attention"])
    with pytest.raises(PackingError, match="whose state cannot branch"):
        make_tree_packable(model)


# ------------------------------------------------------------------------------------------------ batches


def listed(n_lists: int, n_dates: int, n_requests: int, seed: int = 0) -> Dataset:
    """Rows of some tool lists on some dates, shuffled."""
    rng = random.Random(seed)

    def draw(length: int) -> list[int]:
        return [rng.randrange(5, 1000) for _ in range(length)]

    rows = []
    for _ in range(n_lists):
        tools = [1, 2, 3, *draw(100)]
        for _ in range(n_dates):
            date = tools + draw(40)
            rows += [date + draw(12) + draw(6) for _ in range(n_requests)]
    rng.shuffle(rows)
    labels = [[-100] * (len(row) - 6) + row[-6:] for row in rows]
    return Dataset.from_dict({"input_ids": rows, "labels": labels})


def test_an_epoch_has_every_row_once_in_whole_batches() -> None:
    data = listed(3, 4, 7)
    sampler = SharedBeginnings(data, 8, seed=0)
    assert sorted(sampler) == list(range(84))
    assert [len(batch) for batch in sampler.batches()] == [8] * 10 + [4]


def test_rows_with_one_beginning_come_together_and_batches_in_random_order() -> None:
    data = listed(6, 2, 8)
    sampler = SharedBeginnings(data, 8, seed=0)
    batches = sampler.batches()
    for batch in batches:
        assert len({tuple(data[row]["input_ids"][:143]) for row in batch}) == 1  # tools and date
    lists = [data[batch[0]]["input_ids"][3] for batch in batches]
    assert len(list(itertools.groupby(lists))) > 8  # 6 if the lists came one after another


def test_what_is_left_of_a_date_shares_a_batch_with_the_same_tools() -> None:
    data = listed(5, 4, 6)
    for batch in SharedBeginnings(data, 8, seed=0).batches():
        assert len({tuple(data[row]["input_ids"][:103]) for row in batch}) == 1
    assert measure_sharing(data, 8, seed=0).saved > 0.6


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    data = listed(4, 3, 9)

    def order(seed: int, epoch: int) -> list[int]:
        sampler = SharedBeginnings(data, 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    first, second = SharedBeginnings(data, 8, 0), SharedBeginnings(data, 8, 0)
    second.set_epoch(1)
    assert {frozenset(batch) for batch in first.batches()} != {frozenset(batch) for batch in second.batches()}


def test_rows_that_share_nothing_are_one_shuffled_group() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(5, 1000, (40, 60)).tolist()
    data = Dataset.from_dict({"input_ids": rows, "labels": [[-100] * 50 + row[50:] for row in rows]})
    assert sorted(SharedBeginnings(data, 8, 0)) == list(range(40))
    sharing = measure_sharing(data, 8, 0)
    assert sharing.tokens == sharing.computed == 40 * 60
    assert all(len(tree_nodes([row])) == 1 for row in data)


@pytest.mark.parametrize("places", [range(1, 48, 2), range(5, 29)])
def test_a_data_set_of_selected_rows_is_grouped_by_those_rows(places: range) -> None:
    chosen = listed(2, 1, 24).select(places)
    beginnings = [
        {tuple(chosen[row]["input_ids"][:143]) for row in batch} for batch in SharedBeginnings(chosen, 4, 0).batches()
    ]
    assert len(beginnings) == 6
    assert sum(len(found) == 1 for found in beginnings) >= 5


def test_which_packing_auto_means() -> None:
    shared, own = listed(2, 1, 12), listed(24, 1, 1)

    def chosen(data: Dataset, asked: str, batch: int = 8) -> Packing:
        overrides = [f"training.packing={asked}", f"training.per_device_batch_size={batch}"]
        return choose_packing(load_run_config("nano", overrides), data)

    assert chosen(shared, "auto") is Packing.TREE
    assert chosen(own, "auto") is Packing.BATCH
    assert chosen(own, "tree") is Packing.TREE
    assert chosen(shared, "batch") is Packing.BATCH
    assert chosen(shared, "auto", batch=1) is Packing.OFF
    assert chosen(shared, "rows", batch=1) is Packing.ROWS
