"""Conversations for training: over the eight bundled tools, or over tools invented for each dialogue."""

from __future__ import annotations

import datetime as dt
import itertools
import random
from collections.abc import Iterator, Sequence

from data.synth.dialogue import Scene, calling, exchange, user
from data.synth.domains import Clause, ToolSpec, bundled_specs, invented_domains
from data.synth.grammar import Segment
from data.synth.lexicon import free_text, pseudo_ascii, tables
from data.synth.offer import Offer, bundled_offer, invented_offer, plain_offer, random_spec
from data.synth.phrasing import dress
from data.synth.values import Context, SlotSpec
from tinydispatch.bundled import bundled_tools
from tinydispatch.tools import Conversation, Message, Tool, ToolCall

_EARLIEST = dt.date(2024, 1, 1)
_DAYS = 365 * 6


def generate(count: int, seed: int, *, exchanges: tuple[int, int] = (1, 6)) -> Iterator[Conversation]:
    """Conversations over the eight bundled tools, reproducible by `seed` and independent of `count`.

    Args:
        exchanges: least and most exchanges in one conversation; several share one prompt, which makes a
            short training run see more calls per token.
    """
    for index in range(count):
        yield bundled_conversation(random.Random(f"bundled-{seed}-{index}"), f"synth-{seed}-{index}", exchanges)


def generate_invented(
    seed: int | str,
    *,
    exchanges: tuple[int, int] = (1, 3),
    disguised_share: float = 0.0,
    plain_share: float = 0.0,
) -> Iterator[Conversation]:
    """An endless stream of conversations over invented tools; no bundled tool occurs under its own name.

    Args:
        disguised_share: that share of them offers the bundled tools alone, under other names, with other
            parameters, in other company.
        plain_share: that share of the disguised ones have sensible names without ornament.
    """
    for index in itertools.count():
        dialogue_id = f"invented-{seed}-{index}"
        rng = random.Random(dialogue_id)
        if random.Random(f"disguised-{seed}-{index}").random() < disguised_share:
            is_plain = plain_share > 0 and random.Random(f"plain-{seed}-{index}").random() < plain_share
            yield disguised_conversation(rng, dialogue_id, exchanges, is_plain=is_plain)
        else:
            yield invented_conversation(rng, dialogue_id, exchanges)


def generate_lists(count: int, seed: int, *, per_list: int = 16) -> Iterator[Conversation]:
    """Conversations over invented tools, so many to one list and one date; no bundled tool is in it, by any name.

    What conversations begin with alike is computed once where they are trained as a tree.

    Args:
        per_list: conversations with the same tools and date.
    """
    for index in range(count):
        drawn = random.Random(f"list-{seed}-{index // per_list}")
        offers, absent = _invented_list(drawn, invented_domains())
        today = _EARLIEST + dt.timedelta(days=drawn.randrange(_DAYS))
        rng = random.Random(f"listed-{seed}-{index}")
        dialogue_id = f"listed-{seed}-{index}"
        yield _conversation(
            rng, dialogue_id, offers, absent, (1, 2), source="invented", is_simulated=False, today=today
        )


def bundled_conversation(rng: random.Random, dialogue_id: str, exchanges: tuple[int, int]) -> Conversation:
    """One conversation with all eight tools on offer, most often in their own order."""
    offers = [bundled_offer(spec, tool) for spec, tool in zip(bundled_specs(), bundled_tools(), strict=True)]
    if rng.random() < 0.15:
        rng.shuffle(offers)
    absent = [spec for spec in invented_domains() if spec.domain not in tables().near_bundled]
    return _conversation(rng, dialogue_id, offers, absent, exchanges, source="synth", is_simulated=True)


def invented_conversation(rng: random.Random, dialogue_id: str, exchanges: tuple[int, int]) -> Conversation:
    """One conversation over one to eight tools: a domain's confusable ones, strangers, and made-up ones."""
    offers, absent = _invented_list(rng, [*invented_domains(), *_disguised_bundled()])
    return _conversation(rng, dialogue_id, offers, absent, exchanges, source="invented", is_simulated=False)


def _invented_list(rng: random.Random, pool: Sequence[ToolSpec]) -> tuple[list[Offer], list[ToolSpec]]:
    """What is on offer, and the tools of the domains of which nothing is."""
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
    return offers, [spec for spec in invented_domains() if spec.domain not in domains]


def disguised_conversation(
    rng: random.Random, dialogue_id: str, exchanges: tuple[int, int] = (1, 3), *, is_plain: bool = False
) -> Conversation:
    """One conversation over three to eight of the bundled tools under invented names."""
    count = rng.choices(range(3, 9), [5, 10, 15, 20, 20, 30] if is_plain else [20, 20, 18, 15, 12, 15])[0]
    specs = rng.sample(bundled_specs(), count)
    offers = _distinct([plain_offer(spec, rng) if is_plain else _disguise(spec, rng) for spec in specs])
    absent = [spec for spec in invented_domains() if spec.domain not in tables().near_bundled]
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
    today: dt.date | None = None,
) -> Conversation:
    if today is None:
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


# What has to be worked out rather than copied, by how much practice it needs.
_DRILLED = {"date": 56, "datetime": 26, "timezone": 10, "duration_minutes": 2, "currency": 4, "amount": 2}
_DRILL_NAMES = ("when", "date", "at", "start", "day", "value", "remind_at", "until", "zone", "x")


def drill_conversation(rng: random.Random, dialogue_id: str) -> Conversation:
    """Many short requests for one tool with one parameter, whose value has to be worked out ("on Friday", "in Rome").

    An ordinary conversation resolves one or two dates in several hundred tokens; here every thirty tokens hold one.
    """
    today = _EARLIEST + dt.timedelta(days=rng.randrange(_DAYS))
    context = Context(rng, today)
    slot = SlotSpec(rng.choices(list(_DRILLED), list(_DRILLED.values()))[0])
    name = rng.choice(_DRILL_NAMES)
    parameters = {"type": "object", "properties": {name: slot.schema()}, "required": [name]}
    tool = Tool(f"{rng.choice(['set', 'get', 'note', 'plan'])}_{pseudo_ascii(rng)}", "", parameters)
    messages: list[Message] = []
    for _ in range(rng.randint(8, 16)):
        value = slot.sample(context)
        carrier = free_text(rng.choice(["task", "event"]), rng) if rng.random() < 0.6 else ""
        said = [Segment(f"{carrier} ", is_copied=True)] if carrier else []
        said.append(Segment(value.form("adv" if carrier else rng.choice(["", "adv"])), is_value=True))
        messages += [user(dress(said, Clause.NOUN, rng)), calling(ToolCall(tool.name, {name: value.value}))]
    return Conversation(tuple(messages), (tool,), "invented", "drill", dialogue_id, today)
