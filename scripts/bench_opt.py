"""Ours against llama.cpp at the size of OPT-350M: `python -m scripts.bench_opt`, or `make bench-gguf`.

For Q8_0 and Q4_K_M each, on random files. With `--patched`, the library that `export.llama_cpp.build` made, llama.cpp's
own graph of `opt` takes turns with our graph on the same library's ggml, and with what a user has: the wheel, and for
Q8_0 the native decoder. Without it, llama.cpp runs `gpt2` with 24 layers of 1,024, ours `opt` with exactly the same
matrices and OPT-350M itself, whose embedding is half as wide. The speed of a model does not depend on its weights, so a
few rows are quantized and repeated.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import torch

from export.config import Quantization
from export.quantize import encode
from scripts.bench_gguf import Bench, Contestant, compare
from tinydispatch.ggml.architectures import ARCHITECTURES, Activation, Shape
from tinydispatch.ggml.header import TENSOR_BLOCKS
from tinydispatch.ggml.mixtures import tensor_types
from tinydispatch.ggml.model import default_threads

_N_VOCAB, _REPEATED_ROWS = 50_272, 64
_SAME_SIZE = Shape(
    architecture=ARCHITECTURES["opt"],
    n_layers=24,
    width=1024,
    embedding_width=1024,
    feed_forward_width=4096,
    n_heads=16,
    n_key_heads=16,
    head_width=64,
    n_positions=2048,
    n_vocab=_N_VOCAB,
    epsilon=1e-5,
    activation=Activation.RELU,
    is_pre_norm=True,
    has_final_norm=True,
)
_OPT_350M = Shape(
    architecture=ARCHITECTURES["opt"],
    n_layers=24,
    width=1024,
    embedding_width=512,
    feed_forward_width=4096,
    n_heads=16,
    n_key_heads=16,
    head_width=64,
    n_positions=2048,
    n_vocab=_N_VOCAB,
    epsilon=1e-5,
    activation=Activation.RELU,
    is_pre_norm=False,
    has_final_norm=False,
)
_MODELS = {"gpt2-same-size": ("gpt2", _SAME_SIZE), "opt-same-size": ("opt", _SAME_SIZE), "opt-350m": ("opt", _OPT_350M)}


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 where a file cannot be made or run."""
    arguments = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="bench-opt-") as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for quantization in (Quantization.Q8_0, Quantization.Q4_K_M):
            contestants = _contestants(folder, quantization, arguments.patched)
            threads = arguments.threads or default_threads(contestants[0].path.stat().st_size)
            bench = Bench(arguments.prompt, arguments.generate, arguments.repeats, threads)
            print(f"\n{quantization}", flush=True)
            try:
                print(compare(contestants, bench), flush=True)
            except (ValueError, OSError) as error:
                print(f"bench_opt: {error}", file=sys.stderr)
                return 2
    return 0


def _contestants(folder: Path, quantization: Quantization, patched: Path | None) -> list[Contestant]:
    """Llama.cpp first: the patched one on OPT-350M itself, else the wheel's on a gpt2 model with as large matrices."""
    opt = _model_file(folder, "opt-350m", quantization)
    ours = Contestant("opt-350m, ours", opt)
    if patched is not None:
        return [
            Contestant("opt-350m, patched llama.cpp", opt, is_llama_cpp=True, library=patched),
            Contestant("opt-350m, patched llama.cpp, flash", opt, is_llama_cpp=True, has_flash=True, library=patched),
            Contestant("opt-350m, our graph on that library", opt, library=patched, is_native=False),
            ours,
        ]
    return [
        Contestant("gpt2 of the same size, llama.cpp", _model_file(folder, "gpt2-same-size", quantization)),
        Contestant("opt of the same size, ours", _model_file(folder, "opt-same-size", quantization)),
        ours,
    ]


def _model_file(folder: Path, name: str, quantization: Quantization) -> Path:
    path = folder / f"{name}-{quantization}.gguf"
    if not path.is_file():
        write_model(path, *_MODELS[name], quantization)
    return path


def write_model(path: Path, architecture: str, shape: Shape, quantization: Quantization) -> None:
    """A file of random weights, whole or not at all; `gpt2` takes a shape with norms before attention."""
    shapes = _shapes(architecture, shape)
    types = tensor_types(shapes, quantization, shape.n_layers)
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, architecture)
    writer.add_name(path.stem)
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(shape.n_positions)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward_width)
    writer.add_head_count(shape.n_heads)
    writer.add_layer_norm_eps(shape.epsilon)
    _add_vocabulary(writer, shape.n_vocab)
    for name, lengths in shapes.items():
        block, block_bytes = TENSOR_BLOCKS[types[name]]
        n_bytes = int(np.prod(lengths)) // block * block_bytes
        # The numpy type is only looked at where no ggml type is given.
        writer.add_tensor_info(name, lengths, np.dtype(np.float32), n_bytes, gguf.GGMLQuantizationType(types[name]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = torch.Generator().manual_seed(0)
    for name, lengths in shapes.items():
        rows = lengths[0] if len(lengths) > 1 else 1
        some = torch.randn(min(rows, _REPEATED_ROWS), lengths[-1], generator=generator) * 0.02
        if name.endswith("norm.weight"):
            some += 1
        encoded = encode(name, some, types[name])
        writer.write_tensor_data(np.resize(encoded, (rows, encoded.shape[-1])))
    writer.close()
    partial.replace(path)


def _shapes(architecture: str, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The tensors' shapes, row length last, without a head of its own."""
    shapes = {rule.name: rule.shape[::-1] for rule in shape.rules() if rule.shape and rule.name != "output.weight"}
    if architecture == "opt":
        return shapes
    joined: dict[str, tuple[int, ...]] = {}
    for name, lengths in shapes.items():
        if ".attn_q." in name:
            joined[name.replace("attn_q", "attn_qkv")] = (3 * lengths[0], *lengths[1:])
        elif ".attn_k." not in name and ".attn_v." not in name:
            joined[name] = lengths
    return joined


def _add_vocabulary(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"token{index}" for index in range(n_vocab)])
    writer.add_token_types([1] * n_vocab)
    writer.add_token_merges(["t o"])
    writer.add_eos_token_id(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_opt", description=__doc__)
    parser.add_argument("--patched", type=Path, metavar="libllama.so", help="what export.llama_cpp.build made")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: as many as suit the files")
    parser.add_argument("--folder", type=Path, help="keep the files there (1.9 GB), and take those that are there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
