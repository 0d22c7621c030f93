"""Packed conversations have the loss and the gradient of each alone; a model that cannot do that is found out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import trl.trainer.utils as trl_internals
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from training import attention, packing
from training.attention import ATTENTION
from training.errors import PackingError
from training.head import TokenLogProbs, trained_tokens_only
from training.packing import check_packing, make_packable, plain_attention

VOCABULARY = 97


def opt(*, pre_layer_norm: bool) -> PreTrainedModel:
    """OPT-125M's layer norms, or OPT-350M's and its narrower embedding; initialised wide, so that it attends."""
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32 if pre_layer_norm else 16,
        do_layer_norm_before=pre_layer_norm,
        max_position_embeddings=64,
        init_std=0.3,
    )
    torch.manual_seed(0)
    return OPTForCausalLM(config).eval()


def qwen3() -> PreTrainedModel:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config).eval()


MODELS = {
    "opt, norms before (125m)": opt(pre_layer_norm=True),
    "opt, norms after (350m)": opt(pre_layer_norm=False),
    "qwen3": qwen3(),
}


def rows(lengths: Sequence[int], seed: int = 0) -> list[dict[str, list[int]]]:
    """Conversations of these lengths, the latter part of each trained."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        ids = torch.randint(VOCABULARY, (length,), generator=generator).tolist()
        untrained = max(1, length // 3)
        made.append({"input_ids": ids, "labels": [-100] * untrained + ids[untrained:]})
    return made


def token_losses(model: PreTrainedModel, batch: dict[str, Any]) -> torch.Tensor:
    """Loss of each trained token of the batch, in order."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    return torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")


def losses_and_gradient(
    model: PreTrainedModel, batches: Sequence[list[dict[str, list[int]]]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of all trained tokens and the gradient of their sum; each batch is laid out by TRL's own collator."""
    collate = DataCollatorForLanguageModeling(pad_token_id=1, padding_free=True)
    model.zero_grad()
    losses = [token_losses(model, collate(batch)) for batch in batches]
    torch.cat(losses).sum().backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat(losses).detach(), torch.cat(gradients)


def differences(model: PreTrainedModel, lengths: Sequence[int], seed: int = 0) -> tuple[float, float]:
    """Largest difference between packed and alone: of a token's loss, and of the gradient over its largest entry."""
    conversations = rows(lengths, seed)
    packed, packed_gradient = losses_and_gradient(model, [conversations])
    with plain_attention(model):
        alone, gradient = losses_and_gradient(model, [[conversation] for conversation in conversations])
    assert len(packed) == len(alone) > 0
    worst = (packed_gradient - gradient).abs().max() / gradient.abs().max()
    return float((packed - alone).abs().max()), float(worst)


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    chosen = MODELS[request.param]
    chosen.set_attn_implementation("sdpa")
    return chosen


def test_packed_losses_and_gradients_are_those_of_each_conversation_alone(model: PreTrainedModel) -> None:
    make_packable(model)
    loss, gradient = differences(model, [9, 23, 2, 14])
    assert loss < 1e-5
    assert gradient < 1e-4


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=7), seed=st.integers(0, 999))
@pytest.mark.parametrize("name", list(MODELS))
def test_packing_is_exact_for_any_lengths(name: str, lengths: list[int], seed: int) -> None:
    MODELS[name].set_attn_implementation(ATTENTION)
    loss, gradient = differences(MODELS[name], lengths, seed)
    assert loss < 1e-5
    assert gradient < 1e-4


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("opt")])
def test_under_trls_own_packing_opt_reads_the_conversations_before(name: str) -> None:
    """What the attention of ours is for; should this fail, OPT builds its mask from positions and needs it no more."""
    MODELS[name].set_attn_implementation("sdpa")
    loss, gradient = differences(MODELS[name], [9, 23, 2, 14])
    assert loss > 1e-2
    assert gradient > 1e-2
    check = check_packing(MODELS[name])
    assert check.contamination > 1e-3
    assert not check.is_exact


def test_trls_own_packing_is_right_for_qwen3() -> None:
    MODELS["qwen3"].set_attn_implementation("sdpa")
    assert check_packing(MODELS["qwen3"]).is_exact
    loss, gradient = differences(MODELS["qwen3"], [9, 23, 2, 14])
    assert loss < 1e-5
    assert gradient < 1e-4


def test_contamination_is_seen_in_half_precision_too() -> None:
    model = MODELS["opt, norms after (350m)"]
    model.set_attn_implementation("sdpa")
    assert not check_packing(model, torch.bfloat16).is_exact
    model.set_attn_implementation(ATTENTION)
    assert check_packing(model, torch.bfloat16).is_exact


def varlen(
    query_THW: torch.Tensor,
    key_THW: torch.Tensor,
    value_THW: torch.Tensor,
    ends: torch.Tensor,
    _key_ends: torch.Tensor,
    longest: int,
    _longest_key: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What the kernel of GPUs is documented to compute, for causal attention."""
    assert window_size == (-1, 0)
    assert longest == int((ends[1:] - ends[:-1]).max())
    parts = []
    for start, end in itertools.pairwise(ends.tolist()):
        query, key, value = (tensor[start:end].transpose(0, 1) for tensor in (query_THW, key_THW, value_THW))
        attended = torch.nn.functional.scaled_dot_product_attention(
            query[None], key[None], value[None], is_causal=True, scale=scale, enable_gqa=enable_gqa
        )
        parts.append(attended[0].transpose(0, 1))
    return torch.cat(parts)


def test_one_call_for_all_conversations_is_laid_out_as_the_gpus_kernel_wants_it(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself needs a GPU; here something of the same signature stands for it."""
    monkeypatch.setattr(attention, "varlen_attn", varlen)
    monkeypatch.setattr(attention, "_has_varlen_kernel", lambda _query, _dropout: True)
    model.set_attn_implementation(ATTENTION)
    loss, gradient = differences(model, [9, 23, 2, 14])
    assert loss < 1e-5
    assert gradient < 1e-4


@pytest.mark.parametrize("name", list(MODELS))
def test_attention_gets_the_format_of_autocast(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in fp32: Qwen3's norms give queries and keys in fp32 and values in bf16, which no kernel takes."""
    seen = set()
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **keywords: Any) -> torch.Tensor:
        seen.update((query.dtype, key.dtype, value.dtype))
        return attend(query, key, value, **keywords)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    MODELS[name].set_attn_implementation(ATTENTION)
    assert check_packing(MODELS[name], torch.bfloat16).is_exact
    assert seen == {torch.bfloat16}


def test_padded_rows_and_generation_are_as_under_sdpa(model: PreTrainedModel) -> None:
    ids_BT = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, :4] = 0
    found = []
    for name in ("sdpa", ATTENTION):
        model.set_attn_implementation(name)
        logits = model(input_ids=ids_BT, attention_mask=mask_BT).logits
        replies = model.generate(input_ids=ids_BT, attention_mask=mask_BT, max_new_tokens=6, do_sample=False)
        found.append((logits[mask_BT.bool()], replies))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert torch.equal(found[0][1], found[1][1])


def test_a_model_that_ignores_the_boundaries_is_refused_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["opt, norms before (125m)"]
    model.set_attn_implementation("sdpa")
    monkeypatch.setattr(packing, "_has_full_attention_only", lambda _: False)
    with pytest.raises(PackingError, match="opt would not stay apart"):
        make_packable(model)
    assert model.config._attn_implementation == "sdpa"


def test_the_loss_over_trained_tokens_alone_is_the_loss_over_all_with_the_rest_masked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = qwen3()
    scored: list[int] = []
    for function in (trl_internals._ChunkedLogProbFunction, TokenLogProbs):

        def counting(hidden: torch.Tensor, *arguments: Any, compute: Any = function.apply) -> Any:
            scored.append(len(hidden))
            return compute(hidden, *arguments)

        monkeypatch.setattr(function, "apply", counting)
    trl_internals.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    batch = DataCollatorForLanguageModeling(pad_token_id=1, padding_free=True)(rows([30, 12]))
    everything = model(**batch, fused_lm_head=True).loss
    with trained_tokens_only():
        trained = model(**batch, fused_lm_head=True).loss
    assert trained.item() == pytest.approx(everything.item(), abs=1e-6)
    assert scored == [41, 20 + 8]
