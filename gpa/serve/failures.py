"""What went wrong, as clients of OpenAI's interface read it: {"error": {message, type, param, code}}.

The codes of HTTP tell them whether asking again may help; `x-should-retry` says so in so many words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from gpa.errors import AudioError, GenerationError, GPAError, MissingExtraError, PromptError, UsageError

KINDS = {  # status -> type, as OpenAI names them; any other below 500 is an invalid request
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}


MEANINGS = {  # status -> what it tells, in the OpenAPI schema
    400: "A value cannot be; `param` names it.",
    401: "One of the server's API keys is needed.",
    403: "It may not be changed.",
    404: "There is no such thing.",
    408: "It took too long.",
    409: "Something else rests on it.",
    413: "The body is too large.",
    422: "The body cannot be read, or a field has another type.",
    429: "Too many requests are on their way: ask again after `Retry-After`.",
    500: "The server failed.",
    501: "The server has no model or package for it.",
    503: "The server loads its model, or stops.",
}
POSTED = (400, 408, 413, 422, 429)  # how any request with a body may fail


class ErrorDetail(BaseModel):
    """What went wrong, whose fault it is, and a code for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """The answer that every failure has."""

    error: ErrorDetail


class Failure(Exception):
    """An answer that is an error: its status, whose fault it is (`param`), and a `code` for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    @classmethod
    def of(cls, error: Exception, param: str | None = None) -> Failure:
        """The answer for whatever was raised. What we did not expect is not told to strangers."""
        if isinstance(error, Failure):
            return error
        if isinstance(error, GenerationError):
            return cls(500, str(error), param, "generation_failed")
        if isinstance(error, MissingExtraError):
            return cls(501, str(error), param, "not_installed")
        if isinstance(error, AudioError | PromptError | UsageError):
            return cls(400, str(error), param, "invalid_value")
        if isinstance(error, GPAError):
            return cls(500, str(error), param, "internal_error")
        return cls(500, "the server failed; its log says why", param, "internal_error")

    @classmethod
    def invalid(cls, kind: str, where: Sequence[str | int], what: str) -> Failure:
        """The answer for a field as pydantic refuses it: 422 for another type, 400 for a value."""
        param = ".".join(map(str, where)) or None
        status = 422 if kind.endswith(("_type", "_parsing", "_invalid")) else 400
        what = what.removeprefix("Value error, ")  # raised by a validator of ours
        return cls(status, f"{param or 'the body'}: {what}", param, "invalid_value")

    @property
    def body(self) -> dict[str, Any]:
        """The answer, or an event of a stream that has begun."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer to a request."""
        retry = "true" if self.status in (408, 409, 429, 503) else "false"
        return JSONResponse(self.body, self.status, {"x-should-retry": retry, **self.headers})


def documented(good: dict[str, Any] | None, *failures: int) -> dict[int | str, dict[str, Any]]:
    """Answers that a route may give, for the OpenAPI schema: a `good` one, and how it may fail."""
    found: dict[int | str, dict[str, Any]] = {200: good} if good else {}
    return found | {status: {"model": Error, "description": MEANINGS[status]} for status in failures}


def busy(message: str, seconds: float = 1.0) -> Failure:
    """Too many requests, and when to ask again."""
    headers = {"Retry-After": str(max(1, round(seconds))), "retry-after-ms": str(round(1000 * seconds))}
    return Failure(429, message, None, "rate_limit_exceeded", headers)


def install(app: FastAPI) -> None:
    """Answer every error of an application in this shape, the framework's own included."""

    async def failed(request: Request, error: Exception) -> JSONResponse:
        return Failure.of(error).response()

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        what, code = str(error.detail), None
        asked = f"{request.method} {request.url.path:.200}"
        if error.status_code == 404:
            code = "not_found"
            what = f"there is no {asked}: /openapi.json has every route, and most begin with /v1"
        elif error.status_code == 405:
            what = f"{asked}: the route takes {(error.headers or {}).get('Allow')} alone"
        return Failure(error.status_code, what, None, code, dict(error.headers or {})).response()

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where, what = list(first["loc"][1:]), first["msg"]
        if first["type"] == "json_invalid":
            what = f"no JSON ({first['ctx']['error']} at character {where.pop()})"
        elif not where and first["type"] != "missing":
            what = "a JSON object is needed, with the header  Content-Type: application/json"
        return Failure.invalid(first["type"], where, what).response()

    app.add_exception_handler(Failure, failed)
    app.add_exception_handler(GPAError, failed)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
