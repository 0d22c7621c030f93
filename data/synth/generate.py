"""Conversations for training: over the eight bundled tools, or over tools invented for each dialogue."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator, Sequence

from data.synth.dialogue import Scene, exchange
from data.synth.domains import ToolSpec, bundled_specs, invented_domains
from data.synth.offer import Offer, bundled_offer, invented_offer, random_spec
from data.synth.slots import Context
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Conversation, Message

_EARLIEST = dt.date(2024, 1, 1)
_DAYS = 365 * 6


def generate(count: int, seed: int, *, exchanges: tuple[int, int] = (1, 4)) -> Iterator[Conversation]:
    """Conversations over the eight bundled tools, reproducible by `seed` and independent of `count`.

    Args:
        exchanges: least and most exchanges in one conversation; several share one prompt, which makes a
            short training run see more calls per token.
    """
    for index in range(count):
        yield bundled_conversation(random.Random(f"bundled-{seed}-{index}"), f"synth-{seed}-{index}", exchanges)


def generate_invented(seed: int, start: int = 0, *, exchanges: tuple[int, int] = (1, 5)) -> Iterator[Conversation]:
    """An endless stream of conversations over invented tools, from number `start` on; no bundled tool occurs."""
    index = start
    while True:
        yield invented_conversation(random.Random(f"invented-{seed}-{index}"), f"invented-{seed}-{index}", exchanges)
        index += 1


def bundled_conversation(rng: random.Random, dialogue_id: str, exchanges: tuple[int, int]) -> Conversation:
    """One conversation with all eight tools on offer, most often in their own order."""
    offers = [bundled_offer(spec, tool) for spec, tool in zip(bundled_specs(), bundled_tools(), strict=True)]
    if rng.random() < 0.15:
        rng.shuffle(offers)
    absent = [spec for spec in invented_domains() if spec.domain not in _NEAR_BUNDLED]
    return _conversation(rng, dialogue_id, offers, absent, exchanges, source="synth", is_simulated=True)


# Domains whose wishes a bundled tool might serve after all ("wake me at seven" is nearly a reminder).
_NEAR_BUNDLED = frozenset({"timers_alarms", "todo_lists", "notes", "news", "meeting_rooms", "messaging", "medication_health",
                           "recipes", "sports", "stocks", "crypto_prices", "dictionary", "phone_calls", "restaurants", "fitness",
                           "hotels", "flights", "public_transport", "navigation", "contacts"})  # fmt: skip


def invented_conversation(rng: random.Random, dialogue_id: str, exchanges: tuple[int, int]) -> Conversation:
    """One conversation over one to eight tools: a domain's confusable ones, strangers, and made-up ones."""
    pool = [*invented_domains(), *_disguised_bundled()]
    count = rng.choices(range(1, 9), [8, 18, 22, 18, 13, 10, 6, 5])[0]
    first = random_spec(rng) if rng.random() < 0.25 else rng.choice(pool)
    specs = [first]
    kin = [spec for spec in pool if spec.domain == first.domain and spec is not first]
    rng.shuffle(kin)
    while len(specs) < count:
        roll = rng.random()
        spec = kin.pop() if kin and roll < 0.45 else random_spec(rng) if roll > 0.9 else rng.choice(pool)
        if spec not in specs:
            specs.append(spec)
    rng.shuffle(specs)
    offers = _distinct([_disguise(spec, rng) for spec in specs])
    domains = {spec.domain for spec in specs}
    absent = [spec for spec in invented_domains() if spec.domain not in domains]
    return _conversation(rng, dialogue_id, offers, absent, exchanges, source="invented", is_simulated=False)


def _disguised_bundled() -> Sequence[ToolSpec]:
    # Their wordings serve twice: the pool holds each double, as these are the richest.
    return [*bundled_specs(), *bundled_specs()]


def _disguise(spec: ToolSpec, rng: random.Random) -> Offer:
    return invented_offer(spec, rng, skip_first_name=spec in bundled_specs())


def _distinct(offers: list[Offer]) -> list[Offer]:
    return list({offer.tool.name: offer for offer in offers}.values())


def _conversation(
    rng: random.Random,
    dialogue_id: str,
    offers: list[Offer],
    absent: list[ToolSpec],
    exchanges: tuple[int, int],
    *,
    source: str,
    is_simulated: bool,
) -> Conversation:
    today = _EARLIEST + dt.timedelta(days=rng.randrange(_DAYS))
    scene = Scene(Context(rng, today), offers, absent, is_simulated=is_simulated)
    messages: list[Message] = []
    categories = []
    for _ in range(rng.randint(*exchanges)):
        category, turns = exchange(scene)
        messages += turns
        categories.append(category)
    category = categories[0] if len(set(categories)) == 1 else "mixed"
    tools = tuple(offer.tool for offer in offers)
    metadata = {"exchanges": categories}
    return Conversation(tuple(messages), tools, source, category, dialogue_id, today, metadata)
