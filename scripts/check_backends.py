"""`python -m scripts.check_backends --gguf FILE --checkpoint DIR`: one model by every backend, case by case.

The bare model: the checkpoint by transformers (fp32), the GGUF file in this process without grammar, and llama.cpp's
server with prompts that are rendered here. As in service: the GGUF file in this process, `tinydispatch serve`, and
llama.cpp's server by its chat interface, which has a grammar and a parser of its own. For each pair it prints how many
cases got the same reply, and lists the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from eval.backends import Backend, open_backend
from eval.cases import Suite
from eval.comparison import reply_lines
from eval.config import EvalConfig
from eval.evaluate import evaluate
from eval.results import EvalResult
from eval.suites import load_suite
from scripts.bench_server import llama_server
from scripts.server_process import ServerProcess

_N_CTX = 2048
_CHECKPOINT, _BARE, _GRAMMAR = "transformers fp32", "GGUF, bare", "GGUF, as in service"
_PROMPTS, _CHAT, _SERVE = "llama.cpp's server, prompts", "llama.cpp's server, chat", "tinydispatch serve"
# What is compared with what; the first two of each kind should reply the same.
_PAIRS = ((_CHECKPOINT, _BARE), (_BARE, _PROMPTS), (_GRAMMAR, _SERVE), (_GRAMMAR, _CHAT), (_BARE, _CHAT))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison; 1 when a case was not scored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True, help="F32 or F16 to compare with a checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="what the file was made from")
    parser.add_argument("--suite", action="append", help="repeatable; default: core")
    parser.add_argument("--max-new-tokens", type=int, default=384)
    arguments = parser.parse_args(argv)
    suites = [load_suite(name) for name in arguments.suite or ["core"]]
    config = EvalConfig(max_new_tokens=arguments.max_new_tokens, n_ctx=_N_CTX, device="cpu", endpoint_concurrency=1)
    results: dict[str, list[EvalResult]] = {}
    for name, opened in _ways(arguments, config):
        with opened as backend:
            results[name] = [evaluate(backend, suite, model_name=name) for suite in suites]
    print("\n".join(report(results, suites)))
    return int(any(result.overall.unscored for found in results.values() for result in found))


def report(results: Mapping[str, Sequence[EvalResult]], suites: Sequence[Suite]) -> list[str]:
    """Passed cases of each way, then each pair's replies."""
    lines = []
    for index, suite in enumerate(suites):
        lines += ["", f"suite {suite.name}, {len(suite.cases)} cases"]
        for name, found in results.items():
            lines.append(f"  {name}: {found[index].overall.hits} passed, {found[index].overall.unscored} unscored")
        for one, other in _PAIRS:
            if one in results and other in results:
                lines += ["", f"{one} (A), {other} (B)", *reply_lines(results[one][index], results[other][index])]
    return lines


def _ways(arguments: argparse.Namespace, config: EvalConfig) -> Iterator[tuple[str, AbstractContextManager[Backend]]]:
    if arguments.checkpoint is not None:
        yield _CHECKPOINT, open_backend(arguments.checkpoint, config)
    yield _BARE, open_backend(arguments.gguf, config.model_copy(update={"constrained": False}))
    yield _GRAMMAR, open_backend(arguments.gguf, config)
    yield _PROMPTS, _llama(arguments.gguf, config.model_copy(update={"endpoint_api": "completions"}))
    yield _CHAT, _llama(arguments.gguf, config)
    yield _SERVE, _serve(arguments.gguf, config)


@contextmanager
def _llama(path: Path, config: EvalConfig) -> Iterator[Backend]:
    with llama_server(path, _N_CTX, 1, is_exact=True) as server, open_backend(server.url, config) as backend:
        yield backend


@contextmanager
def _serve(path: Path, config: EvalConfig) -> Iterator[Backend]:
    server = ServerProcess([str(path), "--context", str(_N_CTX), "--no-cache"])
    with server.running(), open_backend(f"{server.url}/v1#{path.stem}", config) as backend:
        yield backend


if __name__ == "__main__":
    sys.exit(main())
