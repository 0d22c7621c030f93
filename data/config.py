"""The data section of a run: which sources, how they are cleaned, what is held out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

CATALOGUE = Path(__file__).parent / "catalogue"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FitStep(StrEnum):
    """What may be done to a conversation that is too long, in this order, each only if the ones before do not do."""

    DESCRIPTIONS = "descriptions"  # tool and parameter descriptions are shortened
    DISTRACTORS = "distractors"  # tools that no turn calls are taken off the list
    RESULTS = "results"  # tool results before the last one are cut


class _Source(_Section):
    """What every source has.

    `max_rows` takes so many rows of a file or folder, whole dialogues drawn by hash from all of it; more data later
    changes few of them. Of a generated source they are the first ones. `weight` says how often a conversation is
    trained in an epoch: 0.5 is every other one, drawn by hash, 3 is each three times. What is held out keeps its size.
    """

    max_rows: int | None = Field(default=None, ge=1)
    weight: float = Field(default=1.0, gt=0, le=100)
    licence: str | None = Field(default=None, description="as the data card shall state it")
    revision: str | None = Field(
        default=None, description="of a Hub data set: branch, tag or commit; of files: what the data card states"
    )


class SynthSource(_Source):
    """Generated conversations: for the eight bundled tools, or for invented ones, none of which is bundled."""

    kind: Literal["synth"]
    count: int = Field(ge=1)
    tools: Literal["bundled", "invented"] = "bundled"
    conversations_per_list: int = Field(
        default=16, ge=1, description="of invented tools: so many have one list and one date, which a tree shares"
    )


class PhrasesSource(_Source):
    """Generated conversations for one's own tools (`DataConfig.tools`) from a file of phrases; docs/data.md has it."""

    kind: Literal["phrases"]
    path: Path
    count: int = Field(ge=1)


class HardeningConfig(_Section):
    """Shares of the catalogue's lists that are changed, so that a model reads tools instead of remembering them."""

    masked: float = Field(default=0.08, ge=0, le=1, description="tools and parameters under names that mean nothing")
    restyled: float = Field(default=0.15, ge=0, le=1, description="names in camelCase, kebab-case or with dots")
    undescribed: float = Field(default=0.12, ge=0, le=1, description="no descriptions")
    reordered: float = Field(default=0.2, ge=0, le=1, description="parameters in another order")
    without_gold: float = Field(
        default=0.06, ge=0, le=1, description="requests asked again where the tool that would serve is not on offer"
    )
    system: float = Field(default=0.3, ge=0, le=1, description="a system message before the date")


class CatalogueSource(_Source):
    """The catalogue's requests, each `passes` times among other tools and on another day; data/catalogue/README.md.

    More than one pass wants `near_duplicate_threshold: null`: the passes ask the same in the same words.
    """

    kind: Literal["catalogue"]
    path: Path = Field(default=CATALOGUE, description="folder of catalogue files, or one of them")
    passes: int = Field(default=1, ge=1)
    requests_per_list: int = Field(default=12, ge=1, description="how many share one list of tools, at least")
    most_tools: int = Field(default=40, ge=8, description="on offer at once")
    whole: bool = Field(default=False, description="every list is a file's own tools, all of them in their order")
    hardening: HardeningConfig = HardeningConfig()
    licence: str | None = "Apache-2.0"


class IntentsSource(_Source):
    """Labelled intent data (MASSIVE, SNIPS, Rasa, …) through a mapping file; docs/intents.md.

    Requests share lists of tools and days as the catalogue's do. More than one pass wants
    `near_duplicate_threshold: null`.
    """

    kind: Literal["intents"]
    path: Path = Field(description="a file of the mapping's form, or a folder of them")
    mapping: Path = Field(description="a mapping file, or the name of one in configs/intents/")
    parts: tuple[str, ...] | None = Field(default=None, description="of the data set (train, dev); None: the mapping's")
    passes: int = Field(default=1, ge=1)
    requests_per_list: int = Field(default=12, ge=1, description="how many share one list of tools, at least")
    most_tools: int = Field(default=24, ge=8, description="on offer at once")
    hardening: HardeningConfig = HardeningConfig()


class _FileSource(_Source):
    """Local files (`path`: one file, or a folder of them) or a data set of the Hugging Face Hub (`hub`: "owner/name").

    Of a Hub data set `files` picks by name pattern; without it every JSON, JSONL and Parquet file is read.
    """

    path: Path | None = None
    hub: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    files: tuple[str, ...] = Field(default=("*.json", "*.jsonl", "*.parquet"), min_length=1)

    @model_validator(mode="after")
    def _has_one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either 'path' (a file or folder) or 'hub' (owner/name)")
        return self


class GroupConfig(_Section):
    """ToolBench's six held-out groups; shares are of tools, of categories and of dialogues, chosen by hash.

    `queries` is ToolBench's folder of query files (`instruction/G*_query.json`): the only place that says which
    category a tool belongs to.
    """

    queries: Path
    tool_share: float = Field(default=0.02, ge=0, lt=1)
    category_share: float = Field(default=0.04, ge=0, lt=1)
    instruction_share: float = Field(default=0.01, ge=0, lt=1)


class ToolBenchSource(_FileSource):
    """ToolBench: a file of train rows (JSON, JSONL, Parquet), one raw answer, or a folder of either.

    `keep_thoughts` trains the text before each call too; a dispatcher pays for every token, so it is off. `groups`
    holds out by unseen tool and category instead of by `DataConfig.eval_fraction`.
    """

    kind: Literal["toolbench"]
    keep_thoughts: bool = False
    groups: GroupConfig | None = None
    licence: str | None = "Apache-2.0"


class OpenAIJsonlSource(_FileSource):
    """One's own examples: chat JSONL with `messages` and, where they differ from `DataConfig.tools`, `tools`."""

    kind: Literal["openai_jsonl"]


class XlamSource(_FileSource):
    """xLAM's shape: `query`, `tools` and `answers` (Salesforce/xlam-function-calling-60k)."""

    kind: Literal["xlam"]
    licence: str | None = "CC-BY-4.0"


class HermesSource(_FileSource):
    """Hermes' shape: `conversations` with `<tool_call>` tags (NousResearch/hermes-function-calling-v1).

    That data set's other files (JSON mode) call no tools.
    """

    kind: Literal["hermes"]
    files: tuple[str, ...] = Field(default=("func-calling*.json", "glaive-function-calling-5k.json"), min_length=1)
    licence: str | None = "Apache-2.0"


class ShareGptSource(_FileSource):
    """ShareGPT with `function_call` and `observation` turns, or Glaive's `system` and `chat` texts."""

    kind: Literal["sharegpt"]


class When2CallSource(_FileSource):
    """When2Call's training rows (nvidia/When2Call): when to call, to ask back, and to say that no tool fits."""

    kind: Literal["when2call"]
    files: tuple[str, ...] = Field(default=("train/when2call_train_sft.jsonl",), min_length=1)
    licence: str | None = "CC-BY-4.0"


class DispatchLogSource(_FileSource):
    """What our own server wrote about the calls that it dispatched; data/sources/dispatch_log.py has the format.

    `only_corrected` keeps the entries that somebody corrected, and leaves out what the model merely said.
    """

    kind: Literal["dispatch_log"]
    only_corrected: bool = False


FileSource = (
    ToolBenchSource
    | OpenAIJsonlSource
    | XlamSource
    | HermesSource
    | ShareGptSource
    | When2CallSource
    | DispatchLogSource
)
# Made here, a row after the other, and never shortened.
GENERATED = (SynthSource, PhrasesSource, CatalogueSource, IntentsSource)
SourceConfig = Annotated[
    SynthSource | PhrasesSource | CatalogueSource | IntentsSource | FileSource, Field(discriminator="kind")
]


class AugmentConfig(_Section):
    """Changes to training conversations, each to a share of them drawn by the run's seed; all off by default.

    Held-out conversations are never changed.
    """

    no_call: float = Field(default=0, ge=0, le=1, description="first calls whose tool is taken off the list")
    distractors: float = Field(default=0, ge=0, le=1, description="conversations that get similar tools added")
    max_distractors: int = Field(default=3, ge=1, le=16)
    mask_names: float = Field(default=0, ge=0, le=1, description="conversations with made-up tool and parameter names")
    shuffle_tools: float = Field(default=0, ge=0, le=1, description="conversations whose tools change order")


class PersonalData(StrEnum):
    """What becomes of rows with personal data or secrets; the data card counts them by class in any case."""

    KEEP = "keep"
    MASK = "mask"  # made-up values of the same form take their place, in request and call alike
    DROP = "drop"


class GuardConfig(_Section):
    """What is not trained on because of what other records say; None sets no limit (data/guards.py has the rules).

    Floods are those of a dispatch log, and so are addresses that only their sender says: nobody made those by hand.
    """

    reject_contradictions: bool = Field(
        default=True, description="of different answers to one request the most trusted stays, of equals none does"
    )
    require_grounded_addresses: bool = Field(
        default=True, description="a trained call sends to no link or mail address that nobody mentioned"
    )
    min_sessions_per_address: int = Field(
        default=2, ge=1, description="use an address before it is trained, where only senders' own words hold it"
    )
    max_per_session: int | None = Field(default=50, ge=1, description="records of one session; none of more is trained")
    max_per_client: int | None = Field(
        default=None, ge=1, description="the same of one client's key (client_id), where a server has several"
    )
    max_similar: int | None = Field(
        default=50, ge=1, description="records with the same answer to nearly the same words, whoever sent them"
    )


class DataConfig(_Section):
    """Everything that decides what ends up in train.jsonl, apart from the run's seed."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    tools: Path | None = Field(
        default=None, description="JSON file of tools for rows without any, and for phrases; None: the eight bundled"
    )
    eval_fraction: float = Field(default=0.02, ge=0, lt=1, description="share of dialogues held out from training")
    max_length_tokens: int = Field(default=2048, ge=16, description="a longer conversation is rejected, never cut")
    # Generated conversations are never shortened: they are made to measure.
    fit: tuple[FitStep, ...] = Field(default=tuple(FitStep), description="how longer ones are made to fit first")
    join_prefixes: bool = Field(
        default=True, description="rows that are beginnings of a longer one become one conversation, each turn trained"
    )
    personal_data: PersonalData | dict[str, PersonalData] | None = Field(
        default=None,
        description="keep, mask or drop; or by class ({email: mask, card: drop}). None: dispatch logs are masked",
    )
    guards: GuardConfig = GuardConfig()
    augment: AugmentConfig = AugmentConfig()
    # Below 0.8 the search for candidates (data/near_duplicates.py) would start to miss pairs.
    near_duplicate_threshold: float | None = Field(
        default=0.9, ge=0.8, le=1, description="Jaccard similarity; None: keep all"
    )
    workers: int | None = Field(
        default=None, ge=1, description="processes; None: one for each core. The result does not depend on it"
    )
