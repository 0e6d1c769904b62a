"""The routes, the key check in front of them, and the one shape of errors behind them.

Knows which path leads where. Does not know what happens there.
"""

from __future__ import annotations

import hashlib
import hmac

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mserve.core import MserveError
from mserve.server import info, messages, responses
from mserve.server.chat import create_chat_completion
from mserve.server.completions import create_completion
from mserve.server.errors import (
    HTTPError,
    error_response,
    on_bug,
    on_http_exception,
    on_mserve_error,
    on_recursion,
)
from mserve.server.identity import new_id
from mserve.server.service import Service
from mserve.server.tokens import detokenize, tokenize

OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})
"""Probes carry no key."""

_MAX_REQUEST_ID_CHARS = 128


def create_app(service: Service) -> Starlette:
    """The ASGI application that serves ``service``."""
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", create_chat_completion, methods=["POST"]),
            Route("/v1/completions", create_completion, methods=["POST"]),
            Route("/v1/responses", responses.create_response, methods=["POST"]),
            Route("/v1/responses/input_tokens", responses.count_input_tokens, methods=["POST"]),
            Route("/v1/responses/{response_id}", responses.retrieve_response),
            Route("/v1/responses/{response_id}", responses.delete_response, methods=["DELETE"]),
            Route(
                "/v1/responses/{response_id}/cancel", responses.cancel_response, methods=["POST"]
            ),
            Route("/v1/messages", messages.create_message, methods=["POST"]),
            Route("/v1/messages/count_tokens", messages.count_tokens, methods=["POST"]),
            Route("/v1/models", info.list_models),
            Route("/v1/models/{model:path}", info.retrieve_model),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/detokenize", detokenize, methods=["POST"]),
            Route("/livez", info.livez),
            Route("/readyz", info.readyz),
            Route("/health", info.readyz),
            Route("/version", info.version),
            Route("/metrics", info.metrics),
            Route("/", info.root),
        ],
        middleware=[
            Middleware(RequestId),
            Middleware(KeyCheck, keys=service.config.api_keys),
            Middleware(CountRejections, service=service),
        ],
        exception_handlers={
            MserveError: on_mserve_error,
            RecursionError: on_recursion,
            HTTPException: on_http_exception,
            Exception: on_bug,
        },
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


class RequestId:
    """Answers carry ``x-request-id``, and ``request-id`` for Anthropic's clients: the caller's own,
    or a fresh one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own = Request(scope).headers.get("x-request-id", "")
        usable = own.isascii() and own.isprintable() and 0 < len(own) <= _MAX_REQUEST_ID_CHARS
        request_id = own if usable else new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"request-id", request_id.encode()),
                ]
            await send(message)

        await self._app(scope, receive, send_with_id)


class KeyCheck:
    """Refuses every path but the probes and the page without a key, unknown paths included."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and not _is_open(scope):
            given = _given_key(Request(scope))
            if given is None or not self._known(given):
                message = "this server asks for a key: send authorization: Bearer KEY"
                response = error_response(scope, HTTPError(401, message))
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _known(self, key: str) -> bool:
        # Digests of equal length, all compared: the time tells nothing about any key.
        given = _digest(key)
        return sum(hmac.compare_digest(given, digest) for digest in self._digests) > 0


class CountRejections:
    """Counts work that was turned away, by why."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self._service.metrics.request_rejected(_REJECTIONS.get(message["status"], "other"))
            await send(message)

        await self._app(scope, receive, send_counted)


_REJECTIONS = {
    400: "invalid",
    404: "not_found",
    413: "too_large",
    503: "overloaded",
    529: "overloaded",
}


def _is_open(scope: Scope) -> bool:
    """The page too: a browser has no key before the page has asked for one."""
    return scope["path"] in OPEN_PATHS or (scope["path"] == "/" and info.wants_page(Request(scope)))


def _given_key(request: Request) -> str | None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    return request.headers.get("x-api-key")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
