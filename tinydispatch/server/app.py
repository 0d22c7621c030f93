"""The routes: `/v1/chat/completions`, `/v1/responses`, `/v1/completions`, `/v1/models`, `/health`, `/metrics`
and `/openapi.json`; `/ui` stands in `ui.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from weakref import WeakSet

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tinydispatch.decoding.child import StrangeSchemaError, no_trials, shared_child
from tinydispatch.decoding.rules import GrammarError
from tinydispatch.dispatch_log import DispatchLog
from tinydispatch.dispatcher import ModelChangedError
from tinydispatch.server import errors
from tinydispatch.server.body import ClientGoneError, read_json_body
from tinydispatch.server.completions import CompletionWriter, read_completion
from tinydispatch.server.errors import ApiError
from tinydispatch.server.flight import Flight
from tinydispatch.server.guard import Guard, RequestLog, given_key
from tinydispatch.server.holder import ModelHolder, QueueFullError, StoppingError
from tinydispatch.server.job import Answer, ChatJob, bad_schema
from tinydispatch.server.keys import owner_of
from tinydispatch.server.logs import log
from tinydispatch.server.metrics import CONTENT_TYPE, Metrics
from tinydispatch.server.openapi import document
from tinydispatch.server.reply import ChatWriter, MakeWriter, Writer, json_bytes
from tinydispatch.server.request import ChatRequest, read_request
from tinydispatch.server.responses import ResponseWriter, read_response_request
from tinydispatch.server.rollout import Rollout, log_answer, read_feedback
from tinydispatch.server.settings import ServerSettings
from tinydispatch.server.stacks import StackModels
from tinydispatch.server.ui import UiRoutes

# Bodies that are being read, besides the requests that wait: more connections than that are answered 429 unread.
_MAX_READING = 32
# Requests with schemas that are tried out first (`decoding/child.py`), which one thread sees to; more are answered 429.
_MAX_STRANGE = 8
CHAT_PATH = "/v1/chat/completions"
WARNING_HEADER = "x-tinydispatch-warning"
_MAX_WARNING_CHARS = 1_000
# After an abort; a reply ends at its next token, but the reading of a long prompt cannot be interrupted.
_ABORT_S = 5.0


class Server:
    """The routes' common state.

    Args:
        dispatch_log: gets every answer; None writes none.
        rollout: what is done with a challenger; None has none.
        stacks: more names that may be asked for, on the chat route alone.
    """

    def __init__(
        self,
        holder: ModelHolder,
        settings: ServerSettings,
        dispatch_log: DispatchLog | None = None,
        rollout: Rollout | None = None,
        stacks: StackModels | None = None,
    ) -> None:
        self.holder, self.settings, self.stacks = holder, settings, stacks
        self.metrics = Metrics(holder)
        self.dispatch_log = dispatch_log
        self.rollout = rollout or Rollout(dispatch_log)
        self.rollout.bind(holder, self.metrics.registry)
        self._created = int(time.time())
        self._n_open = 0
        self._flights: WeakSet[Flight] = WeakSet()
        self._is_aborted = False
        self._n_strange = 0
        self._strange = ThreadPoolExecutor(1, "strange-schemas")
        self._mean_s = 0.1  # of a request in the model, the newest counting most

    def abort(self) -> None:
        """Answer 503 to all that is under way and whatever comes; may be called from a signal's handler."""
        self._is_aborted = True
        shared_child().abandon()
        for flight in list(self._flights):
            flight.abort(errors.stopping())

    def close(self) -> bool:
        """Finish what was taken and close the model; False when it was aborted and the model does not stop in time."""
        if self.stacks is not None:
            self.stacks.close()
        self._strange.shutdown(wait=False, cancel_futures=True)
        is_closed = self.holder.close(_ABORT_S if self._is_aborted else None)
        self.rollout.close()
        return is_closed

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._post(request, lambda body: (read_request(body, self.settings), ChatWriter))

    async def responses(self, request: Request) -> Response:
        """POST /v1/responses."""

        def read(body: bytes) -> tuple[ChatRequest, MakeWriter]:
            wanted, told = read_response_request(body, self.settings)
            return wanted, lambda job, model: ResponseWriter(job, model, told)

        return await self._post(request, read)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._post(request, lambda body: (read_completion(body, self.settings), CompletionWriter))

    async def _post(self, request: Request, read: Callable[[bytes], tuple[ChatRequest, MakeWriter]]) -> Response:
        limits = self.settings.limits
        if self._n_open >= limits.max_waiting + _MAX_READING:
            raise self._queue_full()
        self._n_open += 1
        try:
            body = await read_json_body(request, limits)
            if self.stacks is not None and request.url.path == CHAT_PATH:
                wanted_run = await asyncio.to_thread(self.stacks.wanted, body)
                if wanted_run is not None:
                    return await self.stacks.chat(request, wanted_run)
            wanted, make_writer = await self._read(body, self._owner(request), read)
            response = await self._answer(request, wanted, make_writer)
            if wanted.warnings:
                response.headers[WARNING_HEADER] = "; ".join(wanted.warnings)[:_MAX_WARNING_CHARS]
            return response
        finally:
            self._n_open -= 1

    def _owner(self, request: Request) -> str:
        return owner_of(given_key(request.headers)) if self.settings.keys else ""

    async def _read(
        self, body: bytes, owner: str, read: Callable[[bytes], tuple[ChatRequest, MakeWriter]]
    ) -> tuple[ChatRequest, MakeWriter]:
        """The request with its grammar compiled: in an ordinary thread, or where few are let in at a time."""

        def go() -> tuple[ChatRequest, MakeWriter]:
            wanted, make_writer = read(body)
            wanted = replace(wanted, owner=owner)
            if wanted.prompt is None:
                self._prepare(wanted)
            return wanted, make_writer

        def go_without_trials() -> tuple[ChatRequest, MakeWriter]:
            with no_trials():
                return go()

        try:
            # Not in the event loop: schemas take milliseconds to check.
            return await asyncio.to_thread(go_without_trials)
        except StrangeSchemaError:
            if self._n_strange >= _MAX_STRANGE:
                raise self._queue_full() from None
        self._n_strange += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._strange, go)
        except ApiError:
            if self._is_aborted:
                raise errors.stopping() from None
            raise
        finally:
            self._n_strange -= 1

    def _prepare(self, wanted: ChatRequest) -> None:
        child = shared_child()
        try:
            self.holder.serving.dispatcher.prepare(
                wanted.tools, wanted.choice, is_parallel=wanted.is_parallel, make=child.grammar
            )
        except GrammarError as error:
            raise bad_schema(error, wanted) from error
        except ValueError as error:
            raise errors.invalid(str(error)) from error

    async def _answer(self, request: Request, wanted: ChatRequest, make_writer: MakeWriter) -> Response:
        timeout_s = self.settings.limits.request_timeout_s
        if self._is_aborted:
            raise errors.stopping()
        try:
            holder, fallback = self.rollout.route(wanted)
            flight = Flight(
                holder,
                wanted,
                timeout_s,
                request.receive,
                self._finished,
                fallback=fallback,
                broken=self.rollout.failed,
            )
        except QueueFullError:
            raise self._queue_full() from None
        except StoppingError:
            raise errors.stopping() from None
        self._flights.add(flight)
        writer = make_writer(flight.job, self.settings.model_name)
        fields = request.state.fields
        fields["reply"] = writer.id
        if wanted.is_stream:
            stream = self._stream(flight, writer, fields)
            # Its first event decides the status: what goes wrong before it is a plain error.
            first = await anext(stream)
            return EventStream(first, stream)
        async with aclosing(flight.parts()) as parts:
            async for part in parts:
                if isinstance(part, Answer):
                    fields |= _fields(part)
                    return _json(writer.whole(part))
        raise AssertionError("a flight ends in an answer or an error")

    async def _stream(self, flight: Flight, writer: Writer, fields: dict[str, object]) -> AsyncGenerator[bytes, None]:
        is_begun = False
        async with aclosing(flight.parts()) as parts:
            try:
                async for part in parts:
                    if not is_begun:
                        is_begun = True
                        yield writer.first()
                    if isinstance(part, Answer):
                        fields |= _fields(part)
                        yield writer.last(part)
                    else:
                        yield writer.part(part)
            except Exception as error:
                if not is_begun:
                    raise
                # The status is sent; the official client raises what an event says.
                shown = self._as_api_error(error)
                if shown is not None:
                    yield writer.error(shown)

    async def feedback(self, request: Request) -> Response:
        """POST /v1/feedback: what became of an answer."""
        reply_id, labels = read_feedback(await read_json_body(request, self.settings.limits))
        if not await asyncio.to_thread(self.rollout.feedback, reply_id, labels):
            raise errors.unknown_reply(reply_id)
        return _json({"id": reply_id, "object": "feedback", "recorded": sorted(labels)})

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        del request
        return _json({"object": "list", "data": [self._model(name) for name in self.names]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        name = request.path_params["name"]
        if name not in self.names:
            raise errors.unknown_model(name, "`, `".join(self.names))
        return _json(self._model(name))

    @property
    def names(self) -> tuple[str, ...]:
        """The model names that may be asked for."""
        return (self.settings.model_name, *(self.stacks.names if self.stacks is not None else ()))

    def _model(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "tinydispatch"}

    async def health(self, request: Request) -> Response:
        """GET /health: 200 as long as requests are taken; answers while the model computes."""
        del request
        is_ok = self.holder.is_working
        body = {
            "status": "ok" if is_ok else "stopping",
            "model": self.settings.model_name,
            "serving": self.holder.serving.id,
            "busy": self.holder.is_busy,
            "waiting": self.holder.n_waiting + self._n_strange,
            **self.rollout.health(),
        }
        return _json(body, 200 if is_ok else 503)

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        del request
        return _json(document(self.settings, is_keyed=bool(self.settings.keys)))

    async def prometheus(self, request: Request) -> Response:
        """GET /metrics."""
        del request
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def refuse(self, request: Request, error: Exception) -> Response:
        """What went wrong, as the OpenAI API would say it."""
        shown = self._as_api_error(error) or ApiError(499, "The client closed the connection.")
        if isinstance(error, HTTPException) and error.status_code == 404:
            told = f"Invalid URL ({request.method} {request.url.path}). A client's base URL ends in /v1, and there are "
            told += "/v1/chat/completions, /v1/responses, /v1/completions and /v1/models."
            shown = ApiError(404, told)
        elif isinstance(error, HTTPException) and error.status_code == 405:
            message = f"Not allowed to {request.method} on {request.url.path}."
            shown = ApiError(405, message, code="method_not_allowed", headers=error.headers or {})
        request.state.fields["error"] = shown.code or shown.type
        return Response(json_bytes(shown.body()), shown.status, dict(shown.headers), "application/json")

    def _as_api_error(self, error: BaseException) -> ApiError | None:
        """None for a client that has gone."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, ClientGoneError):
            self.metrics.gone()
            return None
        if isinstance(error, ModelChangedError):
            log("model changed", logging.ERROR, reason=str(error))
            return ApiError(
                503, "The model's file was changed under the server.", errors.SERVER_ERROR, code="model_changed"
            )
        if not isinstance(error, HTTPException):
            log("error", logging.ERROR, exception=error)
        return errors.internal()

    def _queue_full(self) -> ApiError:
        return errors.queue_full(min(30.0, max(0.1, self._mean_s * self.holder.n_waiting / 2)))

    def _finished(self, job: ChatJob, answer: Answer) -> None:
        """In the model's thread, before the answer is sent."""
        request = job.request
        self._mean_s += 0.1 * (answer.model_s - self._mean_s)
        self.metrics.answer(answer)
        if self.dispatch_log is not None and request.may_log:
            log_answer(self.dispatch_log, request, answer, job.id)
        self.rollout.finished(request, answer, job.id)


class EventStream(Response):
    """Sends events as they come. Starlette's own would listen for the client's leaving a second time."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._first, self._rest = first, rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            async for chunk in self._rest:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            await self._rest.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def create_app(server: Server) -> FastAPI:
    """The application; when it is shut down it finishes what was taken and closes the model."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        yield
        await asyncio.to_thread(server.close)

    telemetry = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
    # redirect_slashes: another path is another path; a redirect would lose the body in most clients.
    app = FastAPI(
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        telemetry=telemetry,  # type: ignore[arg-type]
    )
    app.add_route(CHAT_PATH, server.chat, ["POST"])
    app.add_route("/v1/responses", server.responses, ["POST"])
    app.add_route("/v1/completions", server.completions, ["POST"])
    app.add_route("/v1/feedback", server.feedback, ["POST"])
    app.add_route("/v1/models", server.models, ["GET"])
    app.add_route("/v1/models/{name:path}", server.model, ["GET"])
    app.add_route("/health", server.health, ["GET"])
    app.add_route("/metrics", server.prometheus, ["GET"])
    app.add_route("/openapi.json", server.openapi, ["GET"])
    if server.settings.has_ui:
        UiRoutes(server.settings, server.dispatch_log, lambda: server.holder.serving.id).add_to(app)
    for kind in (ApiError, HTTPException, ClientGoneError):
        app.add_exception_handler(kind, server.refuse)
    app.add_middleware(Guard, settings=server.settings, refuse=server.refuse)
    if server.settings.cors_origins:
        # Before the keys are checked: a browser asks without them whether it may ask.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=server.settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", WARNING_HEADER, "retry-after", "retry-after-ms"],
        )
    app.add_middleware(RequestLog, metrics=server.metrics)
    return app


def _json(value: object, status: int = 200) -> Response:
    return Response(json_bytes(value), status, media_type="application/json")


def _fields(answer: Answer) -> dict[str, object]:
    """What a log line says about an answer: numbers, no words."""
    dispatch = answer.dispatch
    return {
        "serving": answer.serving_id,
        "finish": answer.finish_reason,
        "calls": len(answer.calls),
        "queue_ms": round(1000 * answer.queue_s, 2),
        "model_ms": round(1000 * answer.model_s, 2),
        "prompt_tokens": dispatch.tokens.prompt,
        "cached_tokens": dispatch.tokens.cached,
        "generated_tokens": dispatch.tokens.generated,
        "confidence": round(dispatch.confidence, 4),
    }
