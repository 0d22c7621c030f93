"""A model file against its checkpoint at several lengths: `python -m scripts.check_logits CHECKPOINT FILE.gguf …`.

For each file and length, the largest difference of a logit: from transformers in 32 bits, with the prompt decoded at
once; between that and the prompt's last tokens decoded one by one; and between going on with and without saving and
restoring the state before.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tinydispatch.ggml import bindings
from tinydispatch.ggml.header import GgufError, GgufHeader
from tinydispatch.ggml.model import GgufModel
from tinydispatch.ggml.open import open_model
from tinydispatch.ggml.runtime import Logits

# Largest allowed differences from transformers, as a share of the largest logit where that is over 1: a float is as
# inexact as it is large. Of smaller formats the export's own verification judges.
_LIMITS = {bindings.GGML_TYPE_F32: 1e-4, bindings.GGML_TYPE_F16: 2e-2}
# Batches of other sizes add in another order: 32-bit weights and cache agree to rounding, 16-bit ones to theirs.
_STEP_LIMITS = {bindings.GGML_TYPE_F32: 1e-4}
_OTHER_STEP_LIMIT = 2e-2
_ONE_BY_ONE = 8


@dataclass(frozen=True)
class LengthCheck:
    """Largest differences of logits over a prompt; `stepwise` and `restored` are those of the file from itself.

    `largest` is the checkpoint's largest logit, whatever its sign.
    """

    length: int
    largest: float
    from_checkpoint: float
    stepwise: float
    restored: float


def main(argv: Sequence[str] | None = None) -> int:
    """0: all within the limits, 1: not, 2: a file that cannot be run."""
    arguments = _parser().parse_args(argv)
    lengths = sorted(set(arguments.lengths))
    is_good = True
    print(f"{'file':<32}{'tokens':>8}{'largest':>9}{'Δ checkpoint':>14}{'Δ one by one':>14}{'Δ restored':>12}")
    try:
        ids, expected = reference(arguments.checkpoint, lengths[-1])
        for path in arguments.models:
            with open_model(path, lengths[-1] + 1, arguments.threads) as model:
                for length in lengths:
                    found = check(model, ids[:length], expected[:length])
                    is_good &= is_within(model, found)
                    print(
                        f"{path.name:<32}{length:>8}{found.largest:>9.3g}{found.from_checkpoint:>14.2g}"
                        f"{found.stepwise:>14.2g}{found.restored:>12.2g}",
                        flush=True,
                    )
    except (ValueError, OSError) as error:
        print(f"check_logits: {error}", file=sys.stderr)
        return 2
    return 0 if is_good else 1


def reference(checkpoint: Path, length: int) -> tuple[list[int], Logits]:
    """Ids drawn by a fixed seed, and the checkpoint's logits after each of them in 32 bits.

    Raises:
        ValueError: the model has fewer positions.
    """
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True).eval()
    if length > model.config.max_position_embeddings:
        raise ValueError(f"{checkpoint}: has {model.config.max_position_embeddings} positions, {length} were asked for")
    ids = np.random.default_rng(0).integers(4, min(model.config.vocab_size, 50_000), length).tolist()
    with torch.no_grad():
        logits: Logits = model(torch.tensor([ids])).logits[0].numpy()
    return ids, logits


def check(model: GgufModel, ids: Sequence[int], expected: Logits) -> LengthCheck:
    """Run a prompt at once, with its end one by one, and restored before its end."""
    model.truncate(0)
    at_once = model.decode_all(ids)
    start = max(0, len(ids) - _ONE_BY_ONE)
    model.truncate(start)
    if rest := list(ids[len(model.cached_ids) : start]):
        model.decode(rest)  # a recurrent state cannot be cut, it begins anew
    state = model.save_state()
    continued = [model.decode([token]) for token in ids[start:]]
    model.truncate(0)
    model.load_state(state)
    restored = [model.decode([token]) for token in ids[start:]]
    return LengthCheck(
        length=len(ids),
        largest=float(np.abs(expected).max()),
        from_checkpoint=float(np.abs(at_once[:, : expected.shape[1]] - expected).max()),
        stepwise=float(np.abs(np.stack(continued) - at_once[start:]).max()),
        restored=float(np.abs(np.stack(restored) - np.stack(continued)).max()),
    )


def is_within(model: GgufModel, found: LengthCheck) -> bool:
    """Whether the differences lie within what the file's format allows; restored must equal continued exactly."""
    limit, kind = logit_limit(model.header), matrix_type(model.header)
    unit = max(1.0, found.largest)
    is_close = limit is None or found.from_checkpoint < limit * unit
    is_steady = found.stepwise < _STEP_LIMITS.get(kind, _OTHER_STEP_LIMIT) * unit
    return is_close and is_steady and found.restored == 0


def matrix_type(header: GgufHeader) -> int:
    """The ggml type of most of a model's matrices.

    Raises:
        GgufError: it has no feed-forward matrices.
    """
    kinds = Counter(tensor.type_id for tensor in header.tensors if "ffn_up.weight" in tensor.name)
    if not kinds:
        raise GgufError(header.path, "holds no tensor 'ffn_up.weight', by which its number format is told")
    return kinds.most_common(1)[0][0]


def logit_limit(header: GgufHeader) -> float | None:
    """How far a file's logits may lie from its checkpoint's; None where its format has no such limit."""
    return _LIMITS.get(matrix_type(header))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.check_logits", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("models", nargs="+", type=Path, metavar="FILE.gguf")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 7, 300, 2048])
    parser.add_argument("--threads", type=int)
    return parser


if __name__ == "__main__":
    sys.exit(main())
