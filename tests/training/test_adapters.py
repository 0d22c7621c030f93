"""Adapters are saved apart from their base, over 4-bit weights too, and merge into the base's own number format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from export.merge import merge_adapter
from tests.training.samples import MakeRun
from training.config import Dtype, load_run_config
from training.errors import ConfigError
from training.model import load_model
from training.options import quantization_config, to_lora_config
from training.random_checkpoint import ARCHITECTURES, config_of
from training.sft import train

LORA = {
    "training__method": "lora",
    "training__optimizer": "adamw",
    "training__max_steps": 2,
    "training__learning_rate": 1e-2,
    "training__global_batch_size": 2,
}


def assert_merges_exactly(adapter: Path, base: Path, out: Path) -> None:
    report = merge_adapter(adapter, out, base)
    assert report.dtype == "float32"
    assert report.max_logit_difference < 1e-4
    assert report.max_logit_difference < 1e-3 * report.logit_std


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_qwen_adapter_learns_and_merges(
    make_run: MakeRun, train_path: Path, qwen_dir: Path, tmp_path: Path, method: str
) -> None:
    run = make_run(
        **LORA | {"training__method": method, "training__precision": "bf16" if method == "qlora" else "fp32"}
    )
    result = train(run, train_path, run.run_dir)
    assert result.adapter_dir is not None
    adapter = load_file(result.adapter_dir / "adapter_model.safetensors")
    assert all("lora_" in name for name in adapter)
    assert any(bool(value.abs().max() > 0) for name, value in adapter.items() if "lora_B" in name)
    assert_merges_exactly(result.adapter_dir, qwen_dir, tmp_path / "merged")


def adapter_gradients(model: PreTrainedModel) -> torch.Tensor:
    """Of the same adapters at the same place, in one vector; the model is first answered with, as training does."""
    torch.manual_seed(0)
    adapted = get_peft_model(model, to_lora_config(load_run_config("qwen3-4b-qlora", ["training.lora.dropout=0"])))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05
    ids_BT = torch.arange(5, 45)[None]
    with torch.no_grad():
        adapted.eval()(input_ids=ids_BT)
    adapted.train()(input_ids=ids_BT, labels=ids_BT).loss.backward()
    return torch.cat([value.grad.flatten() for name, value in adapted.named_parameters() if "lora_" in name])


def test_adapters_over_4_bit_weights_get_the_gradient_of_these_weights_unpacked(
    qwen_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """On CPUs with AVX-512 BF16 bitsandbytes repacks the weights for inference, and that kernel has no gradient."""
    settings = ARCHITECTURES["tiny-qwen3"].settings | {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64}
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**settings, initializer_range=0.1)).save_pretrained(tmp_path)
    gradients = []
    for is_packed in (True, False):
        model = load_model(tmp_path, qwen_tokenizer, Dtype.FLOAT32, quantization_config())
        gradients.append(adapter_gradients(model if is_packed else model.dequantize()))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.slow
def test_an_opt_that_has_our_template_takes_an_adapter(
    make_run: MakeRun, train_path: Path, opt_dir: Path, tmp_path: Path
) -> None:
    """A fresh OPT is refused, because its new tokens would stay untrained; one that was fine-tuned has them."""
    tuned = make_run(name="tuned", model__path=opt_dir, training__max_steps=1, training__global_batch_size=2)
    base = train(tuned, train_path, tuned.run_dir).checkpoint_dir
    run = make_run(model__path=base, **LORA | {"training__max_steps": 1})
    adapter = train(run, train_path, run.run_dir).adapter_dir
    assert adapter is not None
    assert_merges_exactly(adapter, base, tmp_path / "merged")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_two_layers_of_a_4b_model_take_a_step_on_a_cpu(
    make_run: MakeRun, train_path: Path, qwen_dir: Path, tmp_path: Path, method: str
) -> None:
    """The real widths with the tiny model's vocabulary and two layers."""
    config = config_of("qwen3-4b")
    config.num_hidden_layers, config.layer_types = 2, ["full_attention"] * 2
    config.vocab_size = ARCHITECTURES["tiny-qwen3"].settings["vocab_size"]
    config.bos_token_id = config.eos_token_id = None
    directory = tmp_path / "wide"
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    AutoTokenizer.from_pretrained(qwen_dir).save_pretrained(directory)
    settings = LORA | {"training__method": method, "training__max_steps": 1, "model__dtype": "bfloat16"}
    run = make_run(model__path=directory, **settings)
    result = train(run, train_path, run.run_dir)
    assert result.metrics["steps"] == 1
    assert result.adapter_dir is not None
    assert json.loads((result.adapter_dir / "adapter_config.json").read_text("utf-8"))["r"] == 16


def test_training_goes_on_from_an_earlier_adapter(make_run: MakeRun, train_path: Path) -> None:
    first = make_run(name="first", **LORA)
    earlier = train(first, train_path, first.run_dir).adapter_dir
    assert earlier is not None
    # A rate so small that the weights stay where they start.
    still = LORA | {"training__learning_rate": 1e-12, "training__max_steps": 1}
    run = make_run(name="second", training__lora__start_from=earlier, **still)
    later = train(run, train_path, run.run_dir).adapter_dir
    assert later is not None
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (earlier, later))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_an_adapter_of_another_rank_is_refused(make_run: MakeRun, train_path: Path) -> None:
    first = make_run(name="first", **LORA | {"training__max_steps": 1})
    earlier = train(first, train_path, first.run_dir).adapter_dir
    run = make_run(name="second", training__lora__start_from=earlier, training__lora__rank=2, **LORA)
    with pytest.raises(ConfigError, match=r"training.lora.start_from.*another rank or base"):
        train(run, train_path, run.run_dir)
