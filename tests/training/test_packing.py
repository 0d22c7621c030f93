"""Packed conversations have the loss and the gradient of each alone; a model that cannot do that is found out."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.trainer.utils as trl_internals
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tests.training.samples import MakeRun
from training import packing
from training.errors import PackingError
from training.packing import ATTENTION, check_packing, make_packable, plain_attention
from training.sft import train
from training.trainer import trained_tokens_only

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


def test_padded_rows_and_generation_are_as_under_sdpa(model: PreTrainedModel) -> None:
    ids_BT = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, :4] = 0
    found = []
    for attention in ("sdpa", ATTENTION):
        model.set_attn_implementation(attention)
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
    compute = trl_internals._ChunkedLogProbFunction.apply

    def counting(hidden: torch.Tensor, *arguments: Any) -> Any:
        scored.append(len(hidden))
        return compute(hidden, *arguments)

    monkeypatch.setattr(trl_internals._ChunkedLogProbFunction, "apply", counting)
    trl_internals.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    batch = DataCollatorForLanguageModeling(pad_token_id=1, padding_free=True)(rows([30, 12]))
    everything = model(**batch, fused_lm_head=True).loss
    with trained_tokens_only():
        trained = model(**batch, fused_lm_head=True).loss
    assert trained.item() == pytest.approx(everything.item(), abs=1e-6)
    assert scored == [41, 20 + 8]


def logged_losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "train_log.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture
def still_opt_dir(opt_dir: Path, tmp_path: Path) -> Path:
    """The tiny OPT without dropout, whose random numbers fall otherwise for another layout."""
    directory = tmp_path / "still-opt"
    shutil.copytree(opt_dir, directory)
    config = json.loads((directory / "config.json").read_text("utf-8")) | {"dropout": 0.0}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    return directory


@pytest.mark.parametrize("family", ["opt", "qwen3"])
def test_a_run_without_padding_has_the_losses_of_the_padded_one(
    make_run: MakeRun, train_path: Path, still_opt_dir: Path, qwen_dir: Path, family: str
) -> None:
    losses = {}
    for layout in ("off", "batch"):
        run = make_run(
            name=layout,
            model__path=still_opt_dir if family == "opt" else qwen_dir,
            training__packing=layout,
            training__per_device_batch_size=2,
            training__gradient_accumulation_steps=1,
            training__max_steps=1 if family == "opt" else 3,
            training__optimizer="adamw",
        )
        train(run, train_path, run.run_dir)
        losses[layout] = logged_losses(run.run_dir)
    assert losses["off"] == pytest.approx(losses["batch"], abs=2e-5)


def test_rows_are_filled_with_whole_conversations(make_run: MakeRun, train_path: Path) -> None:
    run = make_run(training__packing="rows", training__per_device_batch_size=1)
    result = train(run, train_path, run.run_dir)
    rows_of_2048 = -(-result.metrics["tokens_per_epoch"] // 2048)
    assert result.metrics["sequences"] == 8
    assert result.metrics["steps"] < 8 / 2  # two a step, were they not packed
    assert result.metrics["steps"] >= rows_of_2048 / 2


def test_a_model_that_cannot_be_packed_is_padded_with_a_warning_or_refused(
    make_run: MakeRun,
    train_path: Path,
    opt_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(packing, "_has_full_attention_only", lambda _: False)
    run = make_run(model__path=opt_dir, training__max_steps=1, training__gradient_accumulation_steps=1)
    with caplog.at_level(logging.WARNING):
        train(run, train_path, run.run_dir)
    assert "batches are padded instead" in caplog.text
    filled = make_run(name="filled", model__path=opt_dir, training__packing="rows")
    with pytest.raises(PackingError, match=r"training.packing is 'rows', but conversations of opt"):
        train(filled, train_path, filled.run_dir)
