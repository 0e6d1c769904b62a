"""One envelope per API for every error that leaves the server.

    OpenAI     {"error": {"message", "type", "param", "code"}}
    Anthropic  {"type": "error", "error": {"type", "message"}, "request_id"}

Knows how core errors, HTTP errors and bugs take these shapes, and under which paths. Does not know
endpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from mserve.core import (
    ContextLengthError,
    EngineError,
    FinishReason,
    MserveError,
    NotReadyError,
    OverloadedError,
    QueueFullError,
    RequestError,
    RequestOutput,
)

log = logging.getLogger(__name__)

_HTTP_CODES = {
    400: "invalid_http",
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    414: "url_too_long",
    415: "unsupported_media_type",
    431: "headers_too_large",
}


ANTHROPIC_PATH = "/v1/messages"

_OVERLOADED = 529  # what Anthropic's clients take for "try again later"
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    _OVERLOADED: "overloaded_error",
}


class HTTPError(MserveError):
    """A refusal by the HTTP layer itself, before any endpoint's own rules."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message, code=_HTTP_CODES[status])
        self.status = status


def openai_body(error: MserveError) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": _type_of(error.status),
            "param": error.param,
            "code": error.code,
        }
    }


def anthropic_body(error: MserveError, request_id: str | None) -> dict[str, Any]:
    where = f"{error.param}: " if error.param and error.param not in error.message else ""
    return {
        "type": "error",
        "error": {
            "type": _ANTHROPIC_TYPES.get(_anthropic_status(error), "invalid_request_error"),
            "message": where + error.message,
        },
        "request_id": request_id,
    }


def is_anthropic(scope: Scope) -> bool:
    """Whether a request is for the Messages API, or from a client that speaks only that."""
    path: str = scope["path"]
    return path == ANTHROPIC_PATH or path.startswith(ANTHROPIC_PATH + "/")


def request_id_of(scope: Scope) -> str | None:
    request_id: str | None = scope.get("state", {}).get("request_id")
    return request_id


def error_response(
    scope: Scope, error: MserveError, headers: Mapping[str, str] | None = None
) -> Response:
    """In the envelope of the API that was asked. ``headers`` in addition to what the error itself
    calls for."""
    all_headers = dict(headers or {})
    if isinstance(error, OverloadedError):
        all_headers["retry-after"] = str(error.retry_after_s)
    if error.status == HTTPStatus.UNAUTHORIZED:
        all_headers["www-authenticate"] = "Bearer"
    anthropic = is_anthropic(scope)
    body = anthropic_body(error, request_id_of(scope)) if anthropic else openai_body(error)
    return Response(
        msgspec.json.encode(body),
        status_code=_anthropic_status(error) if anthropic else error.status,
        headers=all_headers,
        media_type="application/json",
    )


def error_of_output(output: RequestOutput) -> MserveError:
    """The error that ended a request in the engine."""
    if output.finish_reason is FinishReason.ABORT:
        return shutting_down()
    message, code = output.error or "the engine failed on this request", output.error_code
    if code == ContextLengthError.code:
        return ContextLengthError(message)
    if code == QueueFullError.code:
        return QueueFullError(message)
    if code in ("engine_restarting", "server_shutting_down", NotReadyError.code):
        return NotReadyError(message, code=code)
    if code == RequestError.code:
        return RequestError(message)
    return EngineError(message)


def shutting_down() -> NotReadyError:
    return NotReadyError("the server is shutting down", code="server_shutting_down")


async def on_mserve_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MserveError)
    return error_response(request.scope, error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405."""
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = f"there is no {request.url.path} here"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.url.path} does not take {request.method}"
    else:
        message = error.detail
    wrapped = MserveError(message, code=_HTTP_CODES.get(error.status_code, "http_error"))
    wrapped.status = error.status_code
    return error_response(request.scope, wrapped, error.headers)


async def on_recursion(request: Request, error: Exception) -> Response:
    """All that recurs here follows what a request nests: objects, schemas, arguments."""
    refusal = RequestError("the request is nested too deeply", code="invalid_json")
    return error_response(request.scope, refusal)


async def on_bug(request: Request, error: Exception) -> Response:
    """Anything nobody raised on purpose: logged in full, shown as a plain 500."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(request.scope, internal_error())


def internal_error() -> MserveError:
    """What the caller is told of a bug."""
    return MserveError("internal error; the server's log has the details")


def _anthropic_status(error: MserveError) -> int:
    return _OVERLOADED if isinstance(error, OverloadedError) else error.status


def _type_of(status: int) -> str:
    match status:
        case HTTPStatus.UNAUTHORIZED:
            return "authentication_error"
        case HTTPStatus.NOT_FOUND:
            return "not_found_error"
        case HTTPStatus.SERVICE_UNAVAILABLE:
            return "overloaded_error"
        case _ if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return "invalid_request_error"
        case _:
            return "server_error"
