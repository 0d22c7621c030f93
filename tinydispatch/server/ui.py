"""`serve --ui`: a page to try the model, and its answers' corrections on their way into the dispatch log.

The page itself holds nothing, so it is sent without a key; what it asks the server wants one, where keys are set.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import re
from collections.abc import Awaitable, Callable
from pathlib import PurePosixPath
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tinydispatch.bundled import bundled_tools, tools_from_json
from tinydispatch.dispatch_log import DispatchLog, LoggedAnswer
from tinydispatch.pages import HEADERS, is_foreign, page_file
from tinydispatch.pages.forms import Answer, read_answer, tool_form
from tinydispatch.server.body import read_json_body
from tinydispatch.server.errors import SERVER_ERROR, ApiError, invalid
from tinydispatch.server.messages import read_messages
from tinydispatch.server.reply import json_bytes
from tinydispatch.server.request import read_json, read_tools
from tinydispatch.server.settings import ServerSettings
from tinydispatch.tools import Tool, ToolError

UI_PAGES = ("/ui", "/ui/calls.js", "/ui/style.css", "/ui/try.js")
_ANSWER_ID = re.compile(r"chatcmpl-([0-9a-f]{32})")


class UiRoutes:
    """The page's routes. `serving_id` says which model a correction is about."""

    def __init__(self, settings: ServerSettings, log: DispatchLog | None, serving_id: Callable[[], str]) -> None:
        self._settings, self._log, self._serving_id = settings, log, serving_id

    def add_to(self, app: FastAPI) -> None:
        """Add the routes."""
        for path in UI_PAGES:
            app.add_route(path, self.page, ["GET"])
        app.add_route("/ui/tools", _own_page_only(self.tools), ["GET", "POST"])
        app.add_route("/ui/corrections", _own_page_only(self.correct), ["POST"])

    async def page(self, request: Request) -> Response:
        """GET /ui and what it loads."""
        name = PurePosixPath(request.url.path).name
        found = page_file("try.html" if name == "ui" else name)
        if found is None:
            raise HTTPException(404)
        return Response(found[0], headers=HEADERS, media_type=found[1])

    async def tools(self, request: Request) -> Response:
        """GET /ui/tools: the server's own tools. POST: `{"tools": …}` in any shape that `--tools` reads."""
        if request.method == "GET":
            tools = self._settings.tools or bundled_tools()
        else:
            body = read_json(await read_json_body(request, self._settings.limits))
            tools = await asyncio.to_thread(self._read_any_tools, body.get("tools"))
        forms = await asyncio.to_thread(lambda: [tool_form(tool) for tool in tools])
        return _json(
            {
                "tools": [tool.to_openai() for tool in tools],
                "forms": forms,
                "model": self._settings.model_name,
                "can_correct": self._log is not None,
            }
        )

    def _read_any_tools(self, value: Any) -> tuple[Tool, ...]:
        try:
            tools = tools_from_json(value)
        except ToolError as error:
            raise invalid(str(error), "tools", "invalid_function_parameters") from error
        return read_tools([tool.to_openai() for tool in tools], self._settings.limits.max_tools)

    async def correct(self, request: Request) -> Response:
        """POST /ui/corrections: what an answer was asked, what it was, and what it should have been."""
        body = read_json(await read_json_body(request, self._settings.limits))
        return await asyncio.to_thread(self._correct, body)

    def _correct(self, body: dict[str, Any]) -> Response:
        if self._log is None:
            raise ApiError(409, "There is no dispatch log: start the server with --dispatch-log DIR.")
        answer = _ANSWER_ID.fullmatch(str(body.get("answer")))
        if answer is None:
            raise invalid("'answer' must be the id of a chat completion.", "answer")
        tools = read_tools(body.get("tools"), self._settings.limits.max_tools)
        messages = read_messages(body.get("messages"))
        right = read_answer(body.get("correction"), tools)
        if not isinstance(right, Answer):
            problems = [problem.to_json() for problem in right]
            refused = ApiError(422, "; ".join(problem.message for problem in right), param="correction")
            return _json({**refused.body(), "problems": problems}, 422)
        calls = body.get("calls")
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise invalid("'calls' must be the calls that were answered.", "calls")
        confidence = body.get("confidence")
        written = LoggedAnswer(
            calls=calls,
            reply=str(body.get("reply") or ""),
            confidence=float(confidence) if isinstance(confidence, int | float) else None,
        )
        try:
            self._log.correct(
                answer[1],
                right.to_json(),
                messages=messages,
                tools=tools,
                answer=written,
                reference_date=_day(body.get("reference_date")),
                model=self._serving_id(),
            )
        except OSError as error:
            message = f"The correction could not be written to the dispatch log: {error.strerror}. Nothing was kept."
            raise ApiError(507, message, SERVER_ERROR) from error
        return _json({"is_kept": True})


def _own_page_only(
    handler: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    async def guarded(request: Request) -> Response:
        if is_foreign(request.headers):
            raise ApiError(403, "Pages of other origins may not use this route.")
        return await handler(request)

    return guarded


def _day(value: Any) -> dt.date:
    try:
        return dt.date.today() if value is None else dt.date.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise invalid("'reference_date' must be a day, YYYY-MM-DD.", "reference_date") from error


def _json(value: object, status: int = 200) -> Response:
    return Response(json_bytes(value), status, HEADERS, "application/json")
