"""Agent frameworks at their defaults against the server; each is skipped where it is missing (`.[clients]`).

A scripted model stands behind the real engine, grammar and HTTP server: it calls what was asked for, and says what came
of it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from tests.fixtures_server import MODEL, GatedRuntime, Running, running
from tinydispatch import formats
from tinydispatch.tools import ToolCall

pytestmark = pytest.mark.slow

ASKED, RESULT, SAID = "What's the weather in Oslo?", "7 degrees and rain", "It is 7 degrees and raining."
CALL = formats.render_calls([ToolCall("get_weather", {"location": "Oslo"})])
ANSWER = {"city": "Oslo"}


class City(BaseModel):
    """A city"""

    city: str


class ScriptedRuntime(GatedRuntime):
    """A reply in JSON where one is asked for; else a call, and words after its result."""

    script: tuple[tuple[str, str], ...] = (
        (f"{formats.RESULT_START}{RESULT}", SAID),
        ("get_weather(", CALL),
        ("final_result(", formats.render_calls([ToolCall("final_result", ANSWER)])),
        ("answer(", formats.render_calls([ToolCall("answer", ANSWER)])),
        ("City(", formats.render_calls([ToolCall("City", ANSWER)])),
    )

    @property
    def reply(self) -> str:
        prompt = self.detokenize(self.cached_ids)
        return next((reply for mark, reply in self.script if mark in prompt), SAID)

    @reply.setter
    def reply(self, value: str) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(runtime=ScriptedRuntime("")) as found:
        yield found


def weather(location: str) -> str:
    """The weather at a place."""
    assert location == "Oslo"
    return RESULT


def _named() -> Any:
    def get_weather(location: str) -> str:
        """The weather at a place."""
        return weather(location)

    return get_weather


# The official client.


def test_openai_calls_streams_goes_on_and_parses(server: Running) -> None:
    openai = pytest.importorskip("openai")
    tool = openai.pydantic_function_tool(type("get_weather", (BaseModel,), {"__annotations__": {"location": str}}))
    client = server.openai()
    messages: list[Any] = [{"role": "user", "content": ASKED}]
    message = client.chat.completions.create(model=MODEL, messages=messages, tools=[tool]).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": weather(**json.loads(call.function.arguments))}
        for call in message.tool_calls
    ]
    with client.chat.completions.stream(model=MODEL, messages=[*messages, message, *results], tools=[tool]) as stream:
        assert stream.get_final_completion().choices[0].message.content == SAID
    parsed = client.chat.completions.parse(model=MODEL, messages=messages, response_format=City)
    assert parsed.choices[0].message.parsed == City(city="Oslo")
    assert client.responses.parse(model=MODEL, input=ASKED, text_format=City).output_parsed == City(city="Oslo")


# LangChain.


def _langchain(server: Running, **options: Any) -> Any:
    chat = pytest.importorskip("langchain_openai")
    return chat.ChatOpenAI(base_url=f"{server.url}/v1", api_key="x", model=MODEL, max_retries=0, **options)


@pytest.mark.parametrize("is_responses", [False, True])
def test_langchain_calls_streams_and_goes_on(server: Running, is_responses: bool) -> None:
    model = _langchain(server, use_responses_api=is_responses)
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool

    bound = model.bind_tools([tool(_named())])
    found = bound.invoke(ASKED)
    assert [(call["name"], call["args"]) for call in found.tool_calls] == [("get_weather", {"location": "Oslo"})]
    whole: Any = None
    for chunk in bound.stream(ASKED):
        whole = chunk if whole is None else whole + chunk
    assert [call["args"] for call in whole.tool_calls] == [{"location": "Oslo"}]
    results = [ToolMessage(weather(**call["args"]), tool_call_id=call["id"]) for call in found.tool_calls]
    assert bound.invoke([HumanMessage(ASKED), found, *results]).text == SAID


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_langchain_reads_structured_output(server: Running, method: str) -> None:
    model = _langchain(server)
    assert model.with_structured_output(City).invoke(ASKED) == City(city="Oslo"), "the default"
    assert model.with_structured_output(City, method=method).invoke(f"{ASKED} As JSON.") == City(city="Oslo")


# pydantic-ai.


@pytest.mark.parametrize("kind", ["OpenAIChatModel", "OpenAIResponsesModel"])
def test_pydantic_ai_calls_goes_on_streams_and_reads_structured_output(server: Running, kind: str) -> None:
    ai = pytest.importorskip("pydantic_ai")
    models = pytest.importorskip("pydantic_ai.models.openai")
    providers = pytest.importorskip("pydantic_ai.providers.openai")
    model = getattr(models, kind)(MODEL, provider=providers.OpenAIProvider(base_url=f"{server.url}/v1", api_key="x"))
    agent = ai.Agent(model, tools=[_named()])
    assert agent.run_sync(ASKED).output == SAID
    assert ai.Agent(model, output_type=City).run_sync(ASKED).output == City(city="Oslo")
    assert ai.Agent(model, output_type=ai.NativeOutput(City)).run_sync(ASKED).output == City(city="Oslo")

    async def streamed() -> str:
        async with agent.run_stream(ASKED) as stream:
            text: str = await stream.get_output()
            return text

    assert asyncio.run(streamed()) == SAID


# The OpenAI Agents SDK.


@pytest.mark.parametrize("kind", ["OpenAIResponsesModel", "OpenAIChatCompletionsModel"])
def test_openai_agents_calls_goes_on_streams_and_reads_structured_output(server: Running, kind: str) -> None:
    agents = pytest.importorskip("agents")
    from openai import AsyncOpenAI

    agents.set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    model = getattr(agents, kind)(model=MODEL, openai_client=client)
    tools = [agents.function_tool(_named())]

    async def run() -> tuple[str, str, Any, Any]:
        agent = agents.Agent(name="a", instructions="Be brief.", tools=tools, model=model)
        whole = await agents.Runner.run(agent, ASKED, max_turns=4)
        stream = agents.Runner.run_streamed(agent, ASKED, max_turns=4)
        async for _ in stream.stream_events():
            pass
        structured = agents.Agent(name="a", model=model, output_type=City)
        found = await agents.Runner.run(structured, ASKED, max_turns=2)
        return whole.final_output, stream.final_output, found.final_output, whole.to_input_list()

    # The SDK names the form of a reply itself.
    server.runtime.script = (  # type: ignore[attr-defined]
        *ScriptedRuntime.script,
        ("final_output(", formats.render_calls([ToolCall("final_output", ANSWER)])),
    )
    whole, streamed, structured, history = asyncio.run(run())
    assert (whole, streamed, structured) == (SAID, SAID, City(city="Oslo"))
    assert RESULT in json.dumps(history)


# litellm.


def test_litellm_calls_streams_goes_on_and_reads_structured_output(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    parameters = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    common: Any = {"model": f"openai/{MODEL}", "api_base": f"{server.url}/v1", "api_key": "x"}
    asked: list[Any] = [{"role": "user", "content": ASKED}]
    message = litellm.completion(messages=asked, tools=[tool], **common).choices[0].message
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [{"location": "Oslo"}]
    results = [{"role": "tool", "tool_call_id": call.id, "content": RESULT} for call in message.tool_calls]
    chunks = litellm.completion(messages=[*asked, message, *results], tools=[tool], stream=True, **common)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SAID
    for form in ({"type": "json_object"}, City):
        found = litellm.completion(messages=asked, response_format=form, **common)
        assert json.loads(found.choices[0].message.content) == ANSWER
