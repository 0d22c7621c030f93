"""Several conversations in one row that never see each other, checked on the model at hand before it trains.

TRL lays conversations end to end, restarts their positions and hands the model their boundaries. Whether a model obeys
is the model's affair: Qwen3 builds its mask from the positions; OPT builds it without them, so under TRL each of its
conversations reads all that stand before it in the row. `training.attention` takes the boundaries themselves, needs no
mask, and computes nothing between conversations; with it rows may also be a tree (`training.tree`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from training.attention import ATTENTION
from training.config import Packing, RunConfig
from training.dataset import IGNORED
from training.errors import PackingError
from training.tree import measure_sharing, tree_batch, tree_nodes

# Lengths of the two conversations of the check: unequal, and long enough that attention across them shows.
_PROBE_LENGTHS = (11, 7)


@dataclass(frozen=True)
class PackingCheck:
    """How far a packed conversation's logits move, relative to their standard deviation.

    `contamination`: when the tokens of the conversation before it change; nothing but 0 is right.
    `difference`: from the same conversation alone; rounding is all that is right.
    """

    contamination: float
    difference: float
    tolerance: float

    @property
    def is_exact(self) -> bool:
        """Whether packed conversations are computed as if each were alone."""
        return self.contamination <= 1e-6 and self.difference <= self.tolerance


def check_packing(model: PreTrainedModel, autocast: torch.dtype | None = None) -> PackingCheck:
    """Run two short conversations packed as TRL packs them, with two different first ones, and the second one alone.

    Args:
        autocast: the number format of the matrix products in training, where it is not that of the weights.
    """
    first, length = _PROBE_LENGTHS
    vocabulary = min(model.get_input_embeddings().num_embeddings, 1_000)
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(vocabulary, (2, first + length), generator=generator)
    ids_BT[1, first:] = ids_BT[0, first:]
    packed = [_logits(model, _end_to_end(ids_T, [first, length]), autocast)[first:] for ids_T in ids_BT]
    alone = _logits(model, _end_to_end(ids_BT[0, first:], [length]), autocast)
    spread = float(alone.std()) or 1.0
    return PackingCheck(
        contamination=float((packed[0] - packed[1]).abs().max()) / spread,
        difference=float((packed[0] - alone).abs().max()) / spread,
        tolerance=_tolerance(model, autocast),
    )


def _end_to_end(ids_T: torch.Tensor, lengths: list[int]) -> dict[str, Any]:
    """The inputs that TRL's collator makes of conversations of these lengths."""
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    return {
        "input_ids": ids_T[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "seq_idx": torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None].int(),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def _tolerance(model: PreTrainedModel, autocast: torch.dtype | None) -> float:
    return 0.2 if autocast is not None or model.dtype != torch.float32 else 1e-3


@dataclass(frozen=True)
class TreeCheck:
    """How a model treats a small tree of three rows; states after the last layer, relative to their standard deviation.

    `contamination`: how far a row's states move when its siblings' own tokens change; nothing but 0 is right.
    `influence`: how far they move when a shared token changes; 0 says that the branches do not see their beginning.
    `difference`: from the same row alone. `gradient_difference`: of the gradient at the embedding through two layers,
    from the sum of the rows' gradients, relative to its largest entry. Rounding is all that is right of these.
    """

    contamination: float
    influence: float
    difference: float
    gradient_difference: float
    tolerance: float

    @property
    def is_exact(self) -> bool:
        """Whether rows in a tree are computed, and learned from, as if each were alone."""
        return (
            self.contamination <= 1e-6
            and self.influence > 1e-5
            and max(self.difference, self.gradient_difference) <= self.tolerance
        )


def check_tree(model: PreTrainedModel, autocast: torch.dtype | None = None) -> TreeCheck:
    """Run three short rows as a tree of two levels, with changed tokens, and each row alone.

    Args:
        autocast: the number format of the matrix products in training, where it is not that of the weights.
    """
    vocabulary = min(model.get_input_embeddings().num_embeddings, 1_000)
    rows = _probe_rows(vocabulary)
    tree = _without_labels(tree_batch(rows))
    states = _states(model, tree, autocast)
    alone = [_states(model, _without_labels(tree_batch([row])), autocast) for row in rows]
    nodes, ends = tree_nodes(rows), tree["cu_seq_lens_q"].tolist()
    leaves = [number for number, node in enumerate(nodes) if (node.labels != IGNORED).any()]
    own = [slice(ends[leaf], ends[leaf + 1]) for leaf in leaves]
    parts = [row[nodes[leaf].start :] for row, leaf in zip(alone, leaves, strict=True)]
    spread = float(torch.cat(alone).std()) or 1.0

    def moved(changed: slice, *seen: slice) -> list[float]:
        ids_1T = tree["input_ids"].clone()
        ids_1T[0, changed] = (ids_1T[0, changed] + 1) % vocabulary
        after = _states(model, tree | {"input_ids": ids_1T}, autocast)
        return [float((after[place] - states[place]).abs().max()) / spread for place in seen]

    return TreeCheck(
        contamination=max(moved(own[0], own[1], own[2]) + moved(own[2], own[0], own[1])),
        influence=min(moved(slice(0, 1), *own)),
        difference=max(
            float((states[place] - part).abs().max()) / spread for place, part in zip(own, parts, strict=True)
        ),
        gradient_difference=_gradient_difference(model, rows, autocast),
        tolerance=_tolerance(model, autocast),
    )


def _probe_rows(vocabulary: int) -> list[dict[str, list[int]]]:
    """Three rows that begin alike, of which two go on alike for a while."""
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        return torch.randint(vocabulary, (length,), generator=generator).tolist()

    root, middle = draw(12), draw(18)
    parts = [root + middle + draw(7), root + middle + draw(5), root + draw(6)]
    rows = [{"input_ids": ids, "labels": [IGNORED] * (len(ids) - 3) + ids[-3:]} for ids in parts]
    assert len(tree_nodes(rows)) == 5
    return rows


def _without_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if "labels" not in key}


def _gradient_difference(
    model: PreTrainedModel, rows: Sequence[Mapping[str, Any]], autocast: torch.dtype | None
) -> float:
    """Between a tree's gradient at its embedded tokens, after two layers, and the sum of the rows' gradients."""
    weights = torch.randn(1, model.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(0))
    tree = tree_batch(rows)
    found = _embedding_gradient(model, tree, weights, autocast)
    expected = torch.zeros_like(found)
    ends = tree["cu_seq_lens_q"].tolist()
    key_ends, key_index = tree["cu_seq_lens_k"].tolist(), tree["key_index"]
    leaf = iter([n for n in range(len(ends) - 1) if (tree["labels"][0, ends[n] : ends[n + 1]] != IGNORED).any()])
    for row in rows:
        number = next(leaf)
        places = key_index[key_ends[number] : key_ends[number + 1]]  # of the row's tokens within the tree
        expected[places] += _embedding_gradient(model, tree_batch([row]), weights, autocast)
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def _embedding_gradient(
    model: PreTrainedModel, batch: Mapping[str, Any], weights: torch.Tensor, autocast: torch.dtype | None
) -> torch.Tensor:
    """Gradient (T, width) at the embedded tokens of a weighted sum of the trained tokens' states after two layers."""
    decoder, device = model.get_decoder(), model.get_input_embeddings().weight.device
    layers, was_training, embedded = decoder.layers, model.training, []

    def keep(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = model.get_input_embeddings().register_forward_hook(keep)
    inputs = _on(_without_labels(batch), device)
    decoder.layers = layers[:2]
    model.eval()
    try:
        with torch.enable_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            states = decoder(**inputs, use_cache=False).last_hidden_state[0].float()
            scored = states[(batch["shift_labels"][0] != IGNORED).to(device)]
            (gradient,) = torch.autograd.grad(
                (scored.tanh() @ weights[0, : scored.shape[1]].to(device)).sum(), embedded
            )
    finally:
        hook.remove()
        decoder.layers = layers
        model.train(was_training)
    return gradient[0].float().cpu()


def _on(inputs: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}


def _logits(model: PreTrainedModel, inputs: Mapping[str, Any], autocast: torch.dtype | None) -> torch.Tensor:
    """Logits (T, vocabulary) of one packed row."""
    logits: torch.Tensor = _computed(model, model, inputs, autocast).logits
    return logits[0].float().cpu()


def _states(model: PreTrainedModel, inputs: Mapping[str, Any], autocast: torch.dtype | None) -> torch.Tensor:
    """States (T, width) after the last layer; the head, which looks at one token at a time, is left out."""
    states: torch.Tensor = _computed(model, model.get_decoder(), inputs, autocast).last_hidden_state
    return states[0].float().cpu()


def _computed(
    model: PreTrainedModel, part: torch.nn.Module, inputs: Mapping[str, Any], autocast: torch.dtype | None
) -> Any:
    """A part's outputs, without dropout and gradient."""
    device = model.get_input_embeddings().weight.device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            return part(**_on(inputs, device), use_cache=False)
    finally:
        model.train(was_training)


def make_tree_packable(model: PreTrainedModel, autocast: torch.dtype | None = None) -> None:
    """Give the model the attention for trees, and see that it is exact.

    Raises:
        PackingError: it has layers of another kind than full attention (a recurrent state or a sliding window has no
            branches), or fails the check; the model's own attention is in place again.
    """
    own = str(model.config._attn_implementation)
    kind = model.config.model_type
    if not _has_full_attention_only(model):
        raise PackingError(f"{kind} has layers of another kind than full attention, whose state cannot branch")
    model.set_attn_implementation(ATTENTION)
    try:
        check = check_tree(model, autocast)
        reason = (
            f"a sibling moves a row's states by {check.contamination:.2g} of their spread, its beginning by "
            f"{check.influence:.2g}; from the row alone they differ by {check.difference:.2g}, the gradient by "
            f"{check.gradient_difference:.2g}"
        )
    except (ValueError, RuntimeError, AttributeError) as error:  # no two layers to look at, or inputs refused
        check, reason = None, (str(error).strip() or type(error).__name__).splitlines()[0]
    if check is None or not check.is_exact:
        model.set_attn_implementation(own)
        raise PackingError(f"conversations of {kind} would not stay what they are in a tree ({reason})")


def make_packable(model: PreTrainedModel, autocast: torch.dtype | None = None) -> str:
    """Give the model an attention under which packing is exact, and return the attention's name.

    First choice is the one of this module; a model that does not take it, or has other kinds of layers beside full
    attention, keeps its own if that passes the check.

    Raises:
        PackingError: under neither do conversations stay apart; the model's own attention is in place again.
    """
    own = str(model.config._attn_implementation)
    reason = ""
    for attention in ([ATTENTION] if _has_full_attention_only(model) else []) + [own]:
        model.set_attn_implementation(attention)
        try:
            check = check_packing(model, autocast)
        except (ValueError, RuntimeError) as error:  # how a model says that a kernel for packed rows is missing
            reason = str(error).strip().splitlines()[0]
            continue
        if check.is_exact:
            return attention
        reason = (
            f"changing the first of two moves the second's logits by {check.contamination:.2g} of their spread, "
            f"packing at all by {check.difference:.2g}"
        )
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    if "linear_attention" in kinds and (missing := missing_kernels()):
        reason = f"layers of linear attention keep them apart only with {' and '.join(missing)}, not installed here"
    raise PackingError(f"conversations of {model.config.model_type} would not stay apart when packed ({reason})")


def missing_kernels() -> list[str]:
    """The packages that are not there of those whose kernels take a packed row's boundaries (CUDA)."""
    packages = {"causal_conv1d": "causal-conv1d", "fla": "flash-linear-attention"}
    return [package for module, package in packages.items() if find_spec(module) is None]


def _has_full_attention_only(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and bool(model._supports_sdpa)


# Below this share of tokens saved, shuffling all conversations alike is worth more than the time.
_MIN_SAVED = 0.1


def choose_packing(run: RunConfig, dataset: Dataset) -> Packing:
    """The run's packing, with `auto` decided by what its batches share; off where a batch is one conversation."""
    training = run.training
    if training.packing in (Packing.OFF, Packing.ROWS):
        return training.packing
    if training.per_device_batch_size == 1:
        return Packing.OFF
    if training.packing is not Packing.AUTO:
        return training.packing
    saved = measure_sharing(dataset, training.per_device_batch_size, run.seed).saved
    return Packing.TREE if saved >= _MIN_SAVED else Packing.BATCH


@contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model attends by sdpa, as it will wherever it is loaded; for generating during training."""
    before = str(model.config._attn_implementation)
    if before != ATTENTION:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
