"""Requests as prompts that are rendered here, for a server's plain completion: without its parser and its grammar.

A chat request leaves to the server how tools are shown, what a reply may look like, and how calls are read out of it.
A prompt that is rendered by the model's own template reaches the bare model, as a checkpoint or a GGUF file is asked.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import httpx

from eval.backends.base import BackendError, Generation, Request
from eval.backends.chat_api import GarbageError, sampling_settings, tokens_of
from eval.config import EvalConfig
from tinydispatch.formats import CALL_END, CALL_START, render_prompt, with_reference_date


class CompletionsApi:
    """OpenAI's older interface, `/completions`, with the chat template that llama.cpp's server tells at `/props`."""

    path = "/completions"

    def __init__(self, model: str, config: EvalConfig, template: str, special_tokens: dict[str, str]) -> None:
        self._model, self._config = model, config
        self._template, self._special_tokens = template, special_tokens

    @classmethod
    def ask(cls, url: str, model: str, config: EvalConfig, client: httpx.Client) -> CompletionsApi:
        """Learn the template from the server.

        Raises:
            BackendError: it does not tell.
        """
        parts = urlsplit(url)
        address = f"{parts.scheme}://{parts.netloc}/props"
        try:
            response = client.get(address)
            if response.status_code != 200:
                raise ValueError(f"HTTP {response.status_code}")
            props = response.json()
            template = props["chat_template"]
            special = {name: props[name] for name in ("bos_token", "eos_token") if props.get(name)}
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise BackendError(
                f"{address}: does not tell the model's chat template, as llama.cpp's server does "
                f"({type(error).__name__}: {error}); set eval.endpoint_api=chat"
            ) from error
        return cls(model, config, template, special)

    def body(self, request: Request) -> dict[str, Any]:
        """The body of a completion.

        Raises:
            ValueError: the template refuses the conversation.
        """
        messages = with_reference_date(request.messages, request.reference_date)
        prompt = render_prompt(messages, request.tools, self._template, special_tokens=self._special_tokens)
        # Without it llama.cpp's server leaves the markers out of its text, as it does with all control tokens.
        kept = {"preserved_tokens": [CALL_START, CALL_END]}
        return {"model": self._model, "prompt": prompt, **kept, **sampling_settings(request, self._config)}

    def generation(self, value: Any, latency_s: float) -> Generation:
        """The text as the model wrote it.

        Raises:
            GarbageError: not a completion.
        """
        try:
            choice = value["choices"][0]
            text = choice["text"]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise GarbageError(f"{type(error).__name__} {error}") from error
        if not isinstance(text, str):
            raise GarbageError("'text' is no text")
        return Generation(text, latency_s, tokens_of(value), is_complete=choice.get("finish_reason") != "length")
