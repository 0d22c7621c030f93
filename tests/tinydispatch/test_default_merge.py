"""Merging without torch computes what PEFT computes, and gives the same bytes everywhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from export.config import ExportConfig
from export.export import export_gguf
from tests.fixtures_default import (
    FEED_FORWARD,
    MATRICES,
    N_HEADS,
    N_KEY_HEADS,
    N_LAYERS,
    WIDTH,
    base_weights,
    make_default,
    numbers,
    vocabulary,
    write_adapter,
    write_base,
)
from tests.fixtures_gguf import tiny_llama_export
from tinydispatch import formats
from tinydispatch.default.merge import AdapterError, Pair, add_product, merge
from tinydispatch.default.safetensors import SafetensorsError, read_safetensors, safetensors_bytes
from tinydispatch.ggml import bindings
from tinydispatch.ggml.header import GgufError, read_header
from tinydispatch.ggml.mixtures import Quantization
from tinydispatch.ggml.open import open_model

_TARGETS = [name.split(".")[1] for name in MATRICES]
IDS = [5, 90, 17, 200, 41, 66, 12, 3, 250, 9]


def _merge(base: Path, adapter: Path, out: Path, form: Quantization = Quantization.F32, scale: float = 2.0) -> str:
    return merge(base, read_safetensors(adapter), adapter, scale, out, "tiny", form).sha256


def _transformers_model() -> LlamaForCausalLM:
    """The base's weights, queries' and keys' rows in transformers' order."""
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_KEY_HEADS,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    names = {gguf: f"{name}.weight" for name, (gguf, _) in MATRICES.items()}
    names |= {"attn_norm": "input_layernorm.weight", "ffn_norm": "post_attention_layernorm.weight"}
    state = {"model.embed_tokens.weight": torch.empty(0), "lm_head.weight": torch.empty(0)}
    for name, values in base_weights():
        parts = name.split(".")
        if parts[1] == "attn_q" or (len(parts) > 2 and parts[2] in ("attn_q", "attn_k")):
            values = values.reshape(-1, WIDTH // N_HEADS // 2, 2, WIDTH).swapaxes(1, 2).reshape(values.shape)
        tensor = torch.from_numpy(values.copy())
        if name == "token_embd.weight":
            state["model.embed_tokens.weight"] = state["lm_head.weight"] = tensor
        elif name == "output_norm.weight":
            state["model.norm.weight"] = tensor
        else:
            state[f"model.layers.{parts[1]}.{names[parts[2]]}"] = tensor
    model.load_state_dict(state)
    return model.eval()


def test_a_merged_file_computes_what_peft_computes(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf", bindings.GGML_TYPE_F32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=_TARGETS)
    adapted = get_peft_model(_transformers_model(), config)
    adapted.save_pretrained(tmp_path / "empty")
    weights = write_adapter(tmp_path / "adapter") / "adapter_model.safetensors"
    (tmp_path / "adapter/adapter_config.json").write_bytes((tmp_path / "empty/adapter_config.json").read_bytes())
    loaded = PeftModel.from_pretrained(_transformers_model(), tmp_path / "adapter").eval()
    with torch.no_grad():
        plain = _transformers_model()(torch.tensor([IDS])).logits[0].numpy()
        expected = loaded(torch.tensor([IDS])).logits[0].numpy()
    _merge(base, weights, tmp_path / "merged.gguf")
    with open_model(tmp_path / "merged.gguf", 64, 1) as model:
        found = model.decode_all(IDS)
    assert np.abs(expected - plain).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_the_bytes_are_the_same_on_every_processor(tmp_path: Path) -> None:
    """These hashes come from an AVX2 machine; every input is whole numbers and exact fractions."""
    adapter = write_adapter(tmp_path / "adapter") / "adapter_model.safetensors"
    base = write_base(tmp_path / "base.gguf")
    made = merge(base, read_safetensors(adapter), adapter, 2.0, tmp_path / "q8_0.gguf", "tiny", Quantization.Q8_0)
    assert made.weights_digest == "c2c2122491b5763c58ec3e88fd2b4d5e"
    again = merge(base, read_safetensors(adapter), adapter, 2.0, tmp_path / "again", "tiny", Quantization.Q8_0)
    assert again == made
    assert made.n_bytes == (tmp_path / "q8_0.gguf").stat().st_size


def test_the_product_is_summed_in_the_order_of_the_ranks() -> None:
    a, b = numbers(1, 7, 300).astype(np.float32), numbers(2, 500, 7)
    rows, expected = numbers(3, 500, 300), numbers(3, 500, 300)
    add_product(rows, Pair(a, b), np.float32(0.7))
    total = np.zeros_like(expected)
    for rank in range(7):
        total += b[:, rank, None] * a[rank]
    assert np.array_equal(rows, expected + total * np.float32(0.7))
    np.testing.assert_allclose(rows, expected + np.float32(0.7) * (b.astype(float) @ a.astype(float)), atol=1e-6)


def test_without_a_change_the_weights_stay_what_they_were(tmp_path: Path) -> None:
    """A zero product: the matrices are the base's, whose own numbers an F32 file then shows."""
    base = write_base(tmp_path / "base.gguf")
    adapter = write_adapter(tmp_path / "adapter") / "adapter_model.safetensors"
    _merge(base, adapter, tmp_path / "zero.gguf", scale=0.0)
    with open_model(base, 64, 1) as before, open_model(tmp_path / "zero.gguf", 64, 1) as after:
        np.testing.assert_allclose(after.decode_all(IDS), before.decode_all(IDS), atol=0.1)
    # In order of layers, as exported files have them, and the token table as it was.
    header = read_header(tmp_path / "zero.gguf")
    assert [tensor.name for tensor in header.tensors][:3] == [
        "token_embd.weight",
        "blk.0.attn_norm.weight",
        "blk.0.attn_q.weight",
    ]
    assert header.tensors[-1].name == "output_norm.weight"


def test_the_file_says_what_it_is_and_ends_turns_with_our_token(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter") / "adapter_model.safetensors"
    _merge(write_base(tmp_path / "base.gguf"), adapter, tmp_path / "out.gguf", Quantization.Q8_0)
    metadata = read_header(tmp_path / "out.gguf").metadata
    assert metadata["general.name"] == "tiny"
    assert metadata["general.base_model.0.name"] == "Tiny Base"
    assert metadata["general.base_model.0.organization"] == "Tiny Org"
    assert "general.organization" not in metadata
    assert metadata["general.license"] == "apache-2.0"
    assert metadata["general.file_type"] == 7
    assert metadata["tokenizer.chat_template"] == formats.default_chat_template()
    ends = metadata["tokenizer.ggml.eos_token_id"]
    assert metadata["tokenizer.ggml.tokens"][ends] == formats.TURN_END
    with open_model(tmp_path / "out.gguf", 64, 1) as model:
        assert ends in model.eog_ids
        assert model.tokenize("tool <|im_end|>", parse_special=True)[-1] == ends


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.attention.head_count": 0}, "'llama.attention.head_count' is 0"),
        ({"llama.block_count": None}, "'llama.block_count' is None"),
        ({"general.architecture": "qwen3"}, "a base of architecture 'qwen3', expected 'llama'"),
        ({"tokenizer.ggml.tokens": ("a", "b")}, "has no token <|im_end|>"),
    ],
)
def test_a_base_that_is_none_is_refused_by_name(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    base = write_base(tmp_path / "base.gguf", **changes)
    adapter = write_adapter(tmp_path / "adapter") / "adapter_model.safetensors"
    with pytest.raises(GgufError) as caught:
        _merge(base, adapter, tmp_path / "out.gguf")
    assert message in str(caught.value)
    assert str(base) in str(caught.value)


def test_a_number_format_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf", bindings.GGML_TYPE_Q5_0)
    adapter = write_adapter(tmp_path / "adapter") / "adapter_model.safetensors"
    with pytest.raises(GgufError, match=r"tensor 'blk.0.attn_q.weight' has the ggml type 6; readable are 0, 1, 3, 8"):
        _merge(base, adapter, tmp_path / "out.gguf", Quantization.Q8_0)


_KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model.model.lm_head.weight": np.zeros((2, 2))}, "'base_model.model.lm_head.weight': only LoRA factors"),
        ({_KEY.replace("layers.0", "layers.7") + "A.weight": np.zeros((4, 64))}, "has no 'blk.7.attn_q.weight'"),
        ({_KEY + "A.weight": np.zeros((4, 32))}, r"factors \(64, 4\) and \(4, 32\) do not fit a matrix of \(64, 64\)"),
        ({_KEY + "A.weight": np.full((4, 64), np.inf)}, "a matrix of finite numbers"),
        ({_KEY + "A.weight": None}, "of 'blk.0.attn_q.weight' only lora_B is there"),
    ],
)
def test_an_adapter_for_something_else_is_refused_by_key(
    tmp_path: Path, changes: dict[str, np.ndarray | None], message: str
) -> None:
    path = write_adapter(tmp_path / "adapter") / "adapter_model.safetensors"
    tensors = {key: values.astype(np.float16) for key, values in read_safetensors(path).tensors.items()}
    tensors |= {key: values.astype(np.float16) for key, values in changes.items() if values is not None}
    kept = {key: values for key, values in tensors.items() if key not in changes or changes[key] is not None}
    path.write_bytes(safetensors_bytes(kept, {}))
    with pytest.raises(AdapterError, match=message):
        _merge(write_base(tmp_path / "base.gguf"), path, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("key", ["use_dora", "bias", "modules_to_save", "rank_pattern"])
def test_what_a_merge_cannot_express_is_refused_before_a_card_is_written(tmp_path: Path, key: str) -> None:
    from scripts.ship_adapter import release

    used = {"use_dora": True, "bias": "all", "modules_to_save": ["lm_head"], "rank_pattern": {"q_proj": 8}}[key]
    adapter = write_adapter(tmp_path / "adapter", **{key: used})
    with pytest.raises(ValueError, match=f"'{key}' is"):
        release(adapter, write_base(tmp_path / "base.gguf"), tmp_path / "out", name="tiny")
    assert not (tmp_path / "out").exists()


def test_rank_stabilized_adapters_have_their_own_scale(tmp_path: Path) -> None:
    tiny = make_default(tmp_path)
    assert tiny.card.scale == 2.0
    from dataclasses import replace

    assert replace(tiny.card, uses_rslora=True).scale == 4.0


def test_safetensors_are_read_as_the_library_reads_them(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(7).bfloat16(),
        "single": torch.randn(2, 2, 2),
        "empty": torch.zeros(0, 4),
    }
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    found = read_safetensors(tmp_path / "theirs.safetensors")
    assert found.metadata == {"format": "pt"}
    assert {name: values.shape for name, values in found.tensors.items()} == {
        name: tuple(values.shape) for name, values in tensors.items()
    }
    for name, values in tensors.items():
        assert np.array_equal(found.tensors[name], values.float().numpy())
    ours = {"b": np.ones((2, 3), np.float16), "a": np.zeros(5, np.float16)}
    (tmp_path / "ours.safetensors").write_bytes(safetensors_bytes(ours, {"x": "y"}))
    assert {name: values.numpy().tolist() for name, values in load_file(tmp_path / "ours.safetensors").items()} == {
        name: values.tolist() for name, values in ours.items()
    }


def test_a_cut_or_altered_safetensors_file_is_never_read_as_another(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    whole = safetensors_bytes({"a": np.ones((4, 4), np.float16), "b": np.ones(3, np.float16)}, {})
    damaged = [whole[:length] for length in range(0, len(whole), 3)]
    damaged += [
        whole + b"x",
        b"\xff" * 8 + whole[8:],
        whole.replace(b"F16", b"F64", 1),
        whole.replace(b"[4,4]", b"[4,5]"),
    ]
    damaged += [whole.replace(b'"b"', b'"a"').replace(b"dtype", b"dtyqe"), whole.replace(b"[0,32]", b"[2,34]")]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(SafetensorsError, match=r"x\.safetensors"):
            read_safetensors(path)
    with pytest.raises(SafetensorsError, match="absent: cannot be read"):
        read_safetensors(tmp_path / "absent")


@pytest.mark.parametrize("form", [Quantization.F32, Quantization.Q8_0, Quantization.Q4_K_M])
def test_a_merged_file_is_what_the_exporter_writes_of_the_merged_checkpoint(tmp_path: Path, form: Quantization) -> None:
    """Same tensors, order, types and tokenizer; bytes differ only where the last bit of a sum rounds otherwise."""
    exported = tiny_llama_export()
    base = next(file.path for file in exported.files if file.quantization is Quantization.F32)
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(exported.checkpoint, dtype=torch.float32),
        LoraConfig(
            r=4, lora_alpha=8, target_modules=[name.split(".")[1] for name in MATRICES], init_lora_weights=False
        ),
    )
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(exported.checkpoint / name, tmp_path / "merged")
    config = ExportConfig(quantizations=(form,))
    expected = export_gguf(tmp_path / "merged", tmp_path / "gguf", "tiny", config).files[0].path
    _merge(base, tmp_path / "adapter/adapter_model.safetensors", tmp_path / "ours.gguf", form)
    ours, theirs = read_header(tmp_path / "ours.gguf"), read_header(expected)
    assert [(tensor.name, tensor.shape, tensor.type_id) for tensor in ours.tensors] == [
        (tensor.name, tensor.shape, tensor.type_id) for tensor in theirs.tensors
    ]
    differing = {key for key, value in theirs.metadata.items() if ours.metadata.get(key) != value}
    assert differing == set()
    data = [np.frombuffer(header.path.read_bytes()[header.data_offset :], dtype=np.uint8) for header in (ours, theirs)]
    if form is Quantization.F32:
        np.testing.assert_allclose(data[0].view(np.float32), data[1].view(np.float32), atol=1e-6)
    else:
        assert float(np.mean(data[0] != data[1])) < 0.001
