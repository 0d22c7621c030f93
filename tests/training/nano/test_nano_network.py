from __future__ import annotations

import random

import torch
from transformers import PreTrainedTokenizerFast

from training.nano.corpus import copy_document
from training.nano.network import as_transformers
from training.nano.pretrain import Recipe, new_network

SMALL = Recipe(layers=4, intermediate_size=64, lookup_layer=2)


def test_the_network_computes_what_transformers_computes(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    network = new_network(SMALL, nano_tokenizer)
    network.dtype = torch.float32
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("norm.weight"):
                parameter.mul_(torch.rand_like(parameter) + 0.5)
        ids = torch.randint(0, len(nano_tokenizer), (2, 70))
        ours = network(ids)
        theirs = as_transformers(network)(ids, output_hidden_states=True)
    assert ours.logits.std() > 0.1
    assert (ours.logits - theirs.logits).abs().max() < 1e-4
    assert (ours.residual - theirs.hidden_states[2]).abs().max() < 1e-3


def test_nothing_of_a_later_position_reaches_an_earlier_one(nano_tokenizer: PreTrainedTokenizerFast) -> None:
    network = new_network(SMALL, nano_tokenizer)
    ids = torch.randint(0, len(nano_tokenizer), (1, 40))
    changed = ids.clone()
    changed[0, 25:] = torch.randint(0, len(nano_tokenizer), (15,))
    with torch.no_grad():
        assert torch.equal(network(ids).logits[0, :25], network(changed).logits[0, :25])


def test_before_any_training_the_second_saying_of_random_tokens_is_foretold_far_better_than_chance(
    nano_tokenizer: PreTrainedTokenizerFast,
) -> None:
    network = new_network(SMALL, nano_tokenizer)
    rng = random.Random(1)
    right = total = 0
    for document in (copy_document(rng, len(nano_tokenizer)) for _ in range(12)):
        half = len(document.ids) // 2
        with torch.no_grad():
            foretold = network(torch.tensor([document.ids])).logits[0, half:-1].argmax(-1)
        right += int((foretold == torch.tensor(document.ids[half + 1 :])).sum())
        total += len(foretold)
    assert right / total > 0.3


def test_the_same_word_in_another_spelling_starts_with_a_similar_embedding(
    nano_tokenizer: PreTrainedTokenizerFast,
) -> None:
    ids_of: dict[str, list[int]] = {}
    for token_id in range(len(nano_tokenizer)):
        ids_of.setdefault(nano_tokenizer.decode([token_id]).strip().lower(), []).append(token_id)
    pairs = [ids[:2] for word, ids in ids_of.items() if len(ids) > 1 and len(word) > 1]
    assert pairs
    embeddings = new_network(SMALL, nano_tokenizer).get_parameter("model.embed_tokens.weight")[:, :96]
    cosine = torch.nn.functional.cosine_similarity
    alike = [cosine(embeddings[one], embeddings[other], dim=0).item() for one, other in pairs]
    strangers = [cosine(embeddings[one], embeddings[one + 1], dim=0).item() for one, _ in pairs]
    assert min(alike) > max(strangers)
