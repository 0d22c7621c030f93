"""The weights in the repository belong to the recipe and the tokenizer beside them."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinydispatch.formats import SPECIAL_TOKENS, TURN_END, template_hash
from training.nano.pretrain import Recipe

WEIGHTS = Path(__file__).resolve().parents[3] / "training" / "nano" / "weights"


def test_the_shipped_recipe_is_the_default_recipe() -> None:
    recipe = json.loads((WEIGHTS / "recipe.json").read_text())
    recipe.pop("corpus_hash")
    assert recipe == asdict(Recipe())


def test_the_shipped_model_has_the_shape_of_its_recipe() -> None:
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS)
    assert model.config.hidden_size == Recipe.hidden_size
    assert model.config.vocab_size == Recipe.vocab_size
    assert sum(weight.numel() for weight in model.parameters()) < 10_000_000
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


# Of the chat template when nano was trained; it shows no descriptions of parameters.
TRAINED_WITH = "5ff169cfcb877031"


def test_the_shipped_tokenizer_ends_turns_with_one_token_and_carries_the_template_that_it_was_trained_with() -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    assert all(len(tokenizer.encode(token)) == 1 for token in SPECIAL_TOKENS)
    assert tokenizer.eos_token == TURN_END
    assert template_hash(tokenizer.chat_template) == TRAINED_WITH
