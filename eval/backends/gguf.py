"""GGUF files, run by the product's own engine: what is measured is what will be served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from eval.backends.base import BackendError, ClosesOnExit, Failure, Generation, Request
from eval.config import EvalConfig
from tinydispatch.engine import Engine, EngineOptions
from tinydispatch.formats import with_reference_date
from tinydispatch.ggml.header import GgufError
from tinydispatch.ggml.library import LlamaLibraryError
from tinydispatch.ggml.open import open_model
from tinydispatch.ggml.runtime import Runtime


class GgufBackend(ClosesOnExit):
    """One request at a time; latencies include the reuse of the tool prompt, as in service.

    Args:
        options: of the engine; the product's own unless said otherwise, so replies are constrained to the tools.
    """

    batch_size = 1

    def __init__(self, runtime: Runtime, max_new_tokens: int, options: EngineOptions | None = None) -> None:
        self._runtime = runtime
        self._engine = Engine(runtime, options)
        self._max_new_tokens = max_new_tokens

    @classmethod
    def load(cls, path: Path, config: EvalConfig) -> Self:
        """Open the file.

        Raises:
            BackendError: no such file, or llama.cpp cannot run it.
        """
        if not path.is_file():
            raise BackendError(f"{path}: no such file")
        try:
            options = EngineOptions(is_constrained=config.constrained)
            return cls(open_model(path, config.n_ctx), config.max_new_tokens, options)
        except (GgufError, LlamaLibraryError) as error:
            raise BackendError(str(error)) from error

    def generate(self, requests: Sequence[Request]) -> list[Generation | Failure]:
        """One reply per request, greedily."""
        return [complete(self._engine, request, self._max_new_tokens) for request in requests]

    def close(self) -> None:
        """Free the native memory."""
        self._runtime.close()


def complete(engine: Engine, request: Request, max_new_tokens: int) -> Generation | Failure:
    """One reply by the product's engine."""
    messages = with_reference_date(request.messages, request.reference_date)
    try:
        completion = engine.complete(messages, request.tools, max_new_tokens)
    # ValueError: the prompt does not fit or cannot be rendered; RuntimeError: llama.cpp refused to decode.
    except (ValueError, RuntimeError) as error:
        return Failure(str(error))
    return Generation(
        completion.text, completion.timings.total_ms / 1000, completion.tokens.generated, completion.is_complete
    )
