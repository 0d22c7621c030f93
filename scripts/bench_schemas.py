"""`python -m scripts.bench_schemas FOLDER…`: which schemas compile, and which documents a grammar lets a model write.

The engines read the same files: ours (grammar, and grammar with check), llguidance's own JSON schema grammar, and
what llama.cpp's server of the pinned wheel makes of a `json_schema` (the GBNF that it reports, in its own sampler). A
folder holds JSON files: lists of tools (`tinydispatch tools --mcp SERVER > tools.json`), schemas, or groups of both,
`[{"schema": …, "tests": [{"data": …, "valid": true}]}]`, as JSON-Schema-Test-Suite and MaskBench have them.

Where a schema brings no documents, json-schema-faker makes some (`--faker`), and each of them is damaged at random to
get invalid ones. A document counts where `jsonschema` agrees that it is valid, with and without formats, or that it is
not. A schema that is not a tool's becomes a tool's one parameter, because its root may be anything.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import random
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, cast

import llguidance
from jsonschema.exceptions import SchemaError
from jsonschema.validators import Draft202012Validator, validator_for
from referencing.exceptions import Unresolvable

from scripts.bench_server import llama_server
from tinydispatch.decoding.reply import CallFormat, ReplyShape, ToolChoice, reply_grammar
from tinydispatch.ggml import bindings
from tinydispatch.ggml.library import load_library
from tinydispatch.patterns import byte_table
from tinydispatch.tools import Tool

ENGINES = ("tinydispatch", "llguidance", "llguidance lenient", "llama.cpp")
_DOCUMENT = "document"
_MOST_STEPS = 3_000
_MEMORY_BYTES = 4 << 30
_DATA_KEYS = ("enum", "const", "default", "examples", "example")
_FAKER = """
import {createGeneratorSync} from %s;
import readline from "readline";
const n = Number(process.argv[1]);
for await (const line of readline.createInterface({input: process.stdin})) {
  const schema = JSON.parse(line), found = [];
  const make = createGeneratorSync({seed: 1, optionalsProbability: 0.4, maxItems: 3, maxLength: 40, maxDepth: 6,
    refDepthMax: 3, failOnInvalidTypes: false, failOnInvalidFormat: false});
  for (let i = 0; i < n; i++) { try { found.push(make.generate(schema)); } catch (error) { } }
  console.log(JSON.stringify(found));
}
"""


@dataclass
class Case:
    """A schema of an object, and documents for it, each with whether it is valid."""

    folder: str
    name: str
    schema: dict[str, Any]
    documents: list[tuple[Any, bool]] = field(default_factory=list)


@dataclass
class Result:
    """What came of one case in one engine. `problem`: why it did not compile, or "timeout" or "crash"."""

    folder: str
    name: str
    seconds: float = 0.0
    problem: str = ""
    not_written: list[Any] = field(default_factory=list)
    wrongly_written: list[Any] = field(default_factory=list)
    wrongly_accepted: list[Any] = field(default_factory=list)


# Reading


def read_cases(folder: Path) -> Iterator[Case]:
    """The cases of a folder's JSON files.

    Raises:
        ValueError: a file is no JSON; names it.
    """
    for path in sorted(folder.rglob("*.json")):
        try:
            value = json.loads(path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
        name = str(path.relative_to(folder).with_suffix(""))
        if isinstance(value, dict) and isinstance(value.get("tools"), list):
            value = value["tools"]
        groups = value if isinstance(value, list) else [value]
        for index, group in enumerate(groups):
            if not isinstance(group, dict):
                continue
            if isinstance(group.get("tests"), list) and "schema" in group:
                documents = [({_DOCUMENT: test["data"]}, bool(test["valid"])) for test in group["tests"]]
                yield Case(folder.name, f"{name}#{index}", wrapped(group["schema"]), documents)
            elif isinstance(group.get("function", group).get("name"), str) and isinstance(value, list):
                yield _tool_case(folder.name, name, group)
            else:
                yield Case(folder.name, name, wrapped(group))


def _tool_case(folder: str, name: str, entry: dict[str, Any]) -> Case:
    inner = entry.get("function", entry)
    schema = next((inner[key] for key in ("parameters", "inputSchema", "input_schema") if inner.get(key)), None)
    return Case(folder, f"{name}/{inner['name']}", {"type": "object", "properties": {}} if schema is None else schema)


def wrapped(schema: Any) -> dict[str, Any]:
    """A tool's schema whose one parameter is a value of that schema."""
    outer: dict[str, Any] = {"type": "object"}
    if isinstance(schema, dict):
        identity = schema.get("$id", schema.get("id"))
        known = identity.rstrip("#") if isinstance(identity, str) else ""
        if isinstance(schema.get("$schema"), str):
            outer["$schema"] = schema["$schema"]
        schema = {
            key: _moved(value, known) if key not in _DATA_KEYS else value
            for key, value in schema.items()
            if key != "$schema" and not (key in ("$id", "id") and isinstance(value, str))
        }
    return {**outer, "properties": {_DOCUMENT: schema}, "required": [_DOCUMENT], "additionalProperties": False}


def _moved(value: Any, identity: str) -> Any:
    """The value with its references to the old root leading to the new place."""
    if isinstance(value, list):
        return [_moved(item, identity) for item in value]
    if not isinstance(value, dict) or isinstance(value.get("$id", value.get("id")), str):
        return value
    moved = {key: item if key in _DATA_KEYS else _moved(item, identity) for key, item in value.items()}
    reference = value.get("$ref")
    if isinstance(reference, str):
        start, _, fragment = reference.partition("#")
        if start in ("", identity) and (not fragment or fragment.startswith("/")):
            moved["$ref"] = f"#/properties/{_DOCUMENT}{fragment}"
    return moved


# Documents


class Faker:
    """json-schema-faker in a process of node's, started anew where a schema holds it up.

    Args:
        modules: the folder node_modules in which it is installed.
        n: documents for each schema.
    """

    def __init__(self, modules: Path, n: int) -> None:
        script = _FAKER % json.dumps(str(modules.resolve() / "json-schema-faker" / "dist" / "index.js"))
        self._command = ["node", "--input-type=module", "-e", script, str(n)]
        self._process: subprocess.Popen[str] | None = None

    def documents(self, schema: dict[str, Any]) -> list[Any]:
        """What it makes of a schema, nothing where it fails or takes longer than twenty seconds."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        process = self._process
        assert process.stdin is not None, "the pipe was asked for"
        assert process.stdout is not None, "the pipe was asked for"
        watch = threading.Timer(20.0, process.kill)
        watch.start()
        try:
            process.stdin.write(json.dumps(schema) + "\n")
            process.stdin.flush()
            return list(json.loads(process.stdout.readline()))
        except (OSError, ValueError):
            self.close()
            return []
        finally:
            watch.cancel()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def add_documents(case: Case, faker: Faker | None, seed: int) -> None:
    """Let documents be made where there are none, and damage valid ones; keep what jsonschema confirms."""
    rng = random.Random(f"{seed}/{case.folder}/{case.name}")
    if not case.documents and faker is not None:
        for made in faker.documents(case.schema):
            case.documents.append((_listed_only(case.schema, made), True))
    kind = validator_for(case.schema, default=Draft202012Validator)
    plain, strict = kind(case.schema), kind(case.schema, format_checker=kind.FORMAT_CHECKER)
    if not any(not is_valid for _, is_valid in case.documents):
        case.documents += [(damaged(rng, value), False) for value, _ in case.documents for _ in range(2)]
    kept = []
    for value, is_valid in case.documents:
        try:
            if (strict.is_valid(value) if is_valid else not plain.is_valid(value)) and (value, is_valid) not in kept:
                kept.append((value, is_valid))
        except (Unresolvable, SchemaError, RecursionError, ValueError, TypeError, KeyError, AttributeError, re.error):
            continue  # a schema that jsonschema cannot read has no verdict
    case.documents = kept


def _listed_only(schema: dict[str, Any], value: Any) -> Any:
    """A tool's arguments without those that it does not list: those are no valid call, whatever JSON Schema says."""
    if not isinstance(value, dict) or schema.get("additionalProperties") or "properties" not in schema:
        return value
    return {key: item for key, item in value.items() if key in schema["properties"]}


def damaged(rng: random.Random, value: Any) -> Any:
    """A copy of a document with one thing changed somewhere."""
    if isinstance(value, dict) and value and rng.random() < 0.75:
        key = rng.choice(sorted(value))
        match rng.randrange(6):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, "unheard_of": 1}
        return {**value, key: damaged(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.75:
        index = rng.randrange(len(value))
        return [*value[:index], damaged(rng, value[index]), *value[index + 1 :]]
    if isinstance(value, str) and rng.random() < 0.5:
        return rng.choice(("", value + "~", value[:-1], value * 30))
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice((-value - 1, value * 1_000_000 + 7, value + 0.5))
    return rng.choice((None, True, -1, 0.25, "no such value", [], {}, [[]], {"unheard_of": 1}))


# Engines


class Matcher(Protocol):
    """A grammar somewhere within a text."""

    def copy(self) -> Matcher:
        """Another one at the same place."""
        ...

    def feed(self, text: str) -> bool:
        """Whether the text may come next; then it has."""
        ...

    def can_end(self) -> bool:
        """Whether the text may be over."""
        ...


class Guidance:
    """A matcher of llguidance, byte by byte; `closing` follows the document."""

    def __init__(self, matcher: llguidance.LLMatcher, closing: str) -> None:
        self._matcher, self._closing = matcher, closing

    def copy(self) -> Guidance:
        """Another one at the same place."""
        return Guidance(self._matcher.deep_copy(), self._closing)

    def feed(self, text: str) -> bool:
        """Whether the text may come next; then it has."""
        ids = list(text.encode())
        return self._matcher.try_consume_tokens(ids) == len(ids)

    def can_end(self) -> bool:
        """Whether the text may be over."""
        return self.feed(self._closing) and self._matcher.is_accepting()


def _begun(grammar: str, opening: str, closing: str) -> Guidance:
    matcher = llguidance.LLMatcher(byte_table(), grammar, log_level=0)
    if problem := matcher.get_error():
        raise ValueError(problem)
    matcher.compute_bitmask()
    if problem := matcher.get_error():
        raise ValueError(problem)
    found = Guidance(matcher, closing)
    if not found.feed(opening):
        raise ValueError("no call can begin")
    matcher.compute_bitmask()
    if problem := matcher.get_error():
        raise ValueError(problem)
    return found


@dataclass(frozen=True)
class Compiled:
    """A grammar before its document, the check of what is written, and the processor's seconds that it took."""

    matcher: Matcher
    check: Callable[[Any], bool]
    seconds: float


def ours(schema: dict[str, Any]) -> Compiled:
    """The grammar of a required call, and the check of a finished one."""
    started = time.process_time()
    tool = Tool("t", "", schema)
    grammar = reply_grammar([tool], ReplyShape(ToolChoice.REQUIRED, is_parallel=False), CallFormat())
    found = _begun(grammar, '<tool_call>{"name": "t", "arguments": ', "}</tool_call>")
    return Compiled(found, lambda value: not tool.violations(value), time.process_time() - started)


def guidance(schema: dict[str, Any], *, is_lenient: bool = False) -> Compiled:
    """llguidance's own reading of JSON schemas, spaced as calls are; lenient: what it does not know it leaves out."""
    started = time.process_time()
    defaults: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    defaults |= {"lenient": True, "coerce_one_of": True} if is_lenient else {}
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=cast(Any, defaults))
    return Compiled(_begun(grammar, "", ""), lambda _: True, time.process_time() - started)


class Llama:
    """A grammar sampler of llama.cpp."""

    def __init__(self, c: Any, vocabulary: int, sampler: int) -> None:
        self._c, self._vocabulary, self._sampler = c, vocabulary, sampler

    def __del__(self) -> None:
        self._c.llama_sampler_free(self._sampler)

    def copy(self) -> Llama:
        """Another one at the same place."""
        return Llama(self._c, self._vocabulary, self._c.llama_sampler_clone(self._sampler))

    def feed(self, text: str) -> bool:
        """Whether the text may come next; then it has."""
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        n = self._c.llama_tokenize(self._vocabulary, data, len(data), ids, len(ids), False, False)
        for token in ids[:n]:
            if not self._allows(token):
                return False
            self._c.llama_sampler_accept(self._sampler, token)
        return True

    def can_end(self) -> bool:
        """Whether the text may be over."""
        return self._allows(self._c.llama_vocab_eos(self._vocabulary))

    def _allows(self, token: int) -> bool:
        one = (_Candidate * 1)(_Candidate(token, 0.0, 0.0))
        array = _Candidates(one, 1, -1, False)
        self._c.llama_sampler_apply(self._sampler, ctypes.byref(array))
        return bool(one[0].logit == 0.0)


class _Candidate(ctypes.Structure):
    """`llama_token_data`."""

    _fields_ = (("id", ctypes.c_int32), ("logit", ctypes.c_float), ("p", ctypes.c_float))


class _Candidates(ctypes.Structure):
    """`llama_token_data_array`."""

    _fields_ = (
        ("data", ctypes.POINTER(_Candidate)),
        ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64),
        ("sorted", ctypes.c_bool),
    )


def llama(model: Path) -> Callable[[dict[str, Any]], Compiled]:
    """The grammar that llama.cpp's server makes for a `response_format`, in llama.cpp's sampler."""
    c = load_library().c
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, (result, arguments) in {
        "llama_sampler_init_grammar": (pointer, (pointer, text, text)),
        "llama_sampler_clone": (pointer, (pointer,)),
        "llama_sampler_free": (None, (pointer,)),
        "llama_sampler_accept": (None, (pointer, ctypes.c_int32)),
        "llama_sampler_apply": (None, (pointer, pointer)),
        "llama_vocab_eos": (ctypes.c_int32, (pointer,)),
    }.items():
        getattr(c, name).restype, getattr(c, name).argtypes = result, arguments
    parameters: bindings.ModelParams = c.llama_model_default_params()
    parameters.vocab_only = True
    loaded = c.llama_model_load_from_file(str(model).encode(), parameters)
    if not loaded:
        raise ValueError(f"{model}: llama.cpp cannot read its vocabulary")
    vocabulary = c.llama_model_get_vocab(loaded)
    stack = ExitStack()
    server = stack.enter_context(llama_server(model, 512, 1))

    def asked(schema: dict[str, Any]) -> tuple[str, float]:
        before = server.cpu_seconds()
        answer = server.post("/v1/chat/completions", {
            "messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "verbose": True,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        })  # fmt: skip
        if "__verbose" not in answer:
            raise ValueError(str(answer.get("error", answer))[:300])
        return str(answer["__verbose"]["generation_settings"]["grammar"]), server.cpu_seconds() - before

    # What a request costs whatever its schema.
    base = min(asked({"type": "object", "properties": {}})[1] for _ in range(3))

    def compiled(schema: dict[str, Any]) -> Compiled:
        grammar, seconds = asked(schema)
        assert stack, "which ends the server when nothing refers to it"
        started = time.process_time()
        start = re.search(r"^response-format ::= (\S+)$", grammar, re.MULTILINE)
        sampler = start and c.llama_sampler_init_grammar(vocabulary, grammar.encode(), start[1].encode())
        if not sampler:
            raise ValueError("llama.cpp does not read the grammar that it made")
        found = Llama(c, vocabulary, sampler)
        found.copy().can_end()
        return Compiled(found, lambda _: True, time.process_time() - started + max(0.0, seconds - base))

    return compiled


# Writing


class _TooLong(Exception):  # noqa: N818 (never leaves this file)
    pass


def can_write(matcher: Matcher, value: Any) -> bool:
    """Whether the grammar lets a document be written, its keys in one order or another."""
    whole = matcher.copy()
    if whole.feed(_spelled(value)) and whole.can_end():
        return True
    steps = [0]
    try:
        return any(end.copy().can_end() for end in _ways(matcher.copy(), value, steps))
    except _TooLong:
        return False


def _spelled(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _ways(matcher: Matcher, value: Any, steps: list[int]) -> Iterator[Matcher]:
    steps[0] += 1
    if steps[0] > _MOST_STEPS:
        raise _TooLong
    if isinstance(value, dict) and value:
        if matcher.feed("{"):
            yield from _members(matcher, dict(value), "", steps)
    elif isinstance(value, list) and value:
        if matcher.feed("["):
            yield from _items(matcher, value, 0, steps)
    else:
        spellings = [_spelled(value)]
        if isinstance(value, float) and value.is_integer():
            spellings.append(str(int(value)))
        for text in spellings:
            after = matcher.copy()
            if after.feed(text):
                yield after


def _members(matcher: Matcher, rest: dict[str, Any], before: str, steps: list[int]) -> Iterator[Matcher]:
    if not rest:
        if matcher.feed("}"):
            yield matcher
        return
    for key, item in rest.items():
        steps[0] += 1
        if steps[0] > _MOST_STEPS:
            raise _TooLong
        after = matcher.copy()
        if after.feed(f"{before}{_spelled(key)}: "):
            others = {name: value for name, value in rest.items() if name != key}
            for end in _ways(after, item, steps):
                yield from _members(end, others, ", ", steps)


def _items(matcher: Matcher, items: list[Any], index: int, steps: list[int]) -> Iterator[Matcher]:
    if index == len(items):
        if matcher.feed("]"):
            yield matcher
        return
    after = matcher.copy()
    if index == 0 or after.feed(", "):
        for end in _ways(after, items[index], steps):
            yield from _items(end, items, index + 1, steps)


def measure(case: Case, engine: Callable[[dict[str, Any]], Compiled]) -> Result:
    """One case in one engine."""
    result = Result(case.folder, case.name)
    started = time.process_time()
    try:
        compiled = engine(case.schema)
    except (ValueError, RuntimeError, RecursionError) as error:
        result.problem = (str(error).splitlines() or [type(error).__name__])[0][:300]
        result.not_written = [value for value, is_valid in case.documents if is_valid]
        result.seconds = time.process_time() - started
        return result
    result.seconds = compiled.seconds
    for value, is_valid in case.documents:
        is_written = can_write(compiled.matcher, value)
        if is_valid and not (is_written and compiled.check(value)):
            result.not_written.append(value)
        elif not is_valid and is_written:
            result.wrongly_written.append(value)
            if compiled.check(value):
                result.wrongly_accepted.append(value)
    return result


# Processes


def _serve(connection: Connection, engine: str, model: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    compilers: dict[str, Callable[[], Callable[[dict[str, Any]], Compiled]]] = {
        "tinydispatch": lambda: ours,
        "llguidance": lambda: guidance,
        "llguidance lenient": lambda: partial(guidance, is_lenient=True),
        "llama.cpp": lambda: llama(model),
    }
    compiler = compilers[engine]()
    while True:
        connection.send(measure(connection.recv(), compiler))


class Engine:
    """An engine in a process of its own, started anew after a crash or a timeout."""

    def __init__(self, name: str, model: Path, timeout_s: float) -> None:
        self.name, self._model, self._timeout_s = name, model, timeout_s
        self._process: multiprocessing.Process | None = None

    def run(self, case: Case) -> Result:
        """What comes of a case, whatever it does to the process."""
        if self._process is None:
            self._connection, inner = multiprocessing.Pipe()
            self._process = multiprocessing.Process(target=_serve, args=(inner, self.name, self._model), daemon=True)
            self._process.start()
            inner.close()
        try:
            self._connection.send(case)
            if self._connection.poll(self._timeout_s):
                found: Result = self._connection.recv()
                return found
            problem = "timeout"
        except (EOFError, OSError):
            problem = "crash"
        self.close()
        valid = [value for value, is_valid in case.documents if is_valid]
        return Result(case.folder, case.name, self._timeout_s if problem == "timeout" else 0.0, problem, valid)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """0: ours loses at most one valid document in a hundred and never crashes; 1: not so; 2: bad input."""
    arguments = _parser().parse_args(argv)
    try:
        cases = [case for folder in arguments.folders for case in _sample(list(read_cases(folder)), arguments)]
        if not cases:
            raise ValueError("no JSON files in the folders")
    except (ValueError, OSError) as error:
        print(f"bench_schemas: {error}", file=sys.stderr)
        return 2
    faker = Faker(arguments.faker, arguments.documents) if arguments.faker else None
    for index, case in enumerate(cases):
        add_documents(case, faker, arguments.seed)
        _say(index, len(cases), "documents")
    if faker is not None:
        faker.close()
    results: dict[str, list[Result]] = {}
    for name in arguments.engines.split(","):
        engine = Engine(name, arguments.model, arguments.timeout)
        results[name] = []
        for index, case in enumerate(cases):
            results[name].append(engine.run(case))
            _say(index, len(cases), name)
        engine.close()
    print(report(cases, results))
    if arguments.failures:
        with arguments.failures.open("w", encoding="utf-8") as stream:
            for case, found in zip(cases, results["tinydispatch"], strict=True):
                if found.problem or found.not_written or found.wrongly_accepted:
                    stream.write(json.dumps({**asdict(found), "schema": case.schema}) + "\n")
    mine = results.get("tinydispatch", [])
    n_valid = sum(is_valid for case in cases for _, is_valid in case.documents)
    n_lost = sum(len(found.not_written) for found in mine)
    return 1 if n_lost > 0.01 * n_valid or any(found.problem == "crash" for found in mine) else 0


def _sample(cases: list[Case], arguments: argparse.Namespace) -> list[Case]:
    if arguments.most is None or len(cases) <= arguments.most:
        return cases
    return random.Random(arguments.seed).sample(cases, arguments.most)


def _say(index: int, n: int, what: str) -> None:
    if index % 50 == 49:
        print(f"{what}: {index + 1} of {n}", file=sys.stderr)


def report(cases: Sequence[Case], results: dict[str, list[Result]]) -> str:
    """One table: engines within folders, and over all of them."""
    head = ("set", "engine", "schemas", "compiled", "valid written", "invalid written", "accepted", "p50 ms", "p95 ms",
            "timeouts", "crashes")  # fmt: skip
    rows = [head, ("---",) * len(head)]
    folders = list(dict.fromkeys(case.folder for case in cases))
    for folder in [*folders, "all"] if len(folders) > 1 else folders:
        chosen = [case for case in cases if folder in (case.folder, "all")]
        n_valid = sum(is_valid for case in chosen for _, is_valid in case.documents)
        n_invalid = sum(not is_valid for case in chosen for _, is_valid in case.documents)
        for name, found in results.items():
            mine = [result for result in found if folder in (result.folder, "all")]
            n_built = sum(not result.problem for result in mine)
            times = sorted(1_000 * result.seconds for result in mine)
            rows.append((
                folder, name, str(len(mine)), _share(n_built, len(mine)),
                _share(n_valid - sum(len(result.not_written) for result in mine), n_valid),
                _share(sum(len(result.wrongly_written) for result in mine), n_invalid),
                _share(sum(len(result.wrongly_accepted) for result in mine), n_invalid),
                f"{statistics.median(times):.1f}", f"{times[int(0.95 * (len(times) - 1))]:.0f}",
                str(sum(result.problem == "timeout" for result in mine)),
                str(sum(result.problem == "crash" for result in mine)),
            ))  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _share(n: int, of: int) -> str:
    return f"{n}/{of} ({100 * n / of:.1f} %)" if of else "none"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench_schemas",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--engines", default=",".join(ENGINES), help=f"which (default: {','.join(ENGINES)})")
    parser.add_argument("--model", type=Path, help="a GGUF file, for the vocabulary that llama.cpp samples from")
    parser.add_argument("--faker", type=Path, metavar="NODE_MODULES", help="where json-schema-faker is installed")
    parser.add_argument("--documents", type=int, default=5, help="to be made for each schema (default: 5)")
    parser.add_argument("--most", type=int, help="a random sample of so many schemas of each folder")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds for a schema in an engine (default: 20)")
    parser.add_argument("--failures", type=Path, help="a file for what tinydispatch got wrong, one JSON object a line")
    parser.add_argument("--seed", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
