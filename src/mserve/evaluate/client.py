"""One question over HTTP, in the form that every OpenAI-compatible server takes.

Knows ``/v1/chat/completions`` and ``/v1/models``. Does not know what a right answer is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import httpx
import msgspec

from mserve.core import EngineError, RequestError, SetupError

_CONNECT_S = 10.0
_TRIES = 5
_PAUSE_S = 1.0  # before the next try; twice as long each time
_TRIED_AGAIN = (429, 502, 503)  # busy, or a proxy that finds no server just now

T = TypeVar("T")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """``calls``: a ``name`` and ``arguments`` each; arguments that are no JSON stay text."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[dict[str, Any], ...] = ()
    finish_reason: str | None = None
    completion_tokens: int = 0


class _LostError(SetupError):
    """The connection broke, which the next one need not."""


class AskClient:
    """Asks one server, and again where it is busy or the connection breaks. An ``async with``."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,  # None: the network
        pause_s: float = _PAUSE_S,
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._pause_s = pause_s
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            # Answers wait for each other on a small machine: only connecting has a limit.
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=None),
            transport=transport,
        )

    async def __aenter__(self) -> AskClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def ask(self, body: dict[str, Any]) -> Answer:
        """One chat completion. Raises as ``completion`` does."""
        return self._read(await self._post("/v1/chat/completions", body), _answer)

    async def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        """The one choice of a text completion. Raises ``RequestError`` for a question that the
        server refuses, ``EngineError`` when it fails on one, ``SetupError`` when there is no
        such server, or none any more."""
        return self._read(
            await self._post("/v1/completions", body), lambda body: body["choices"][0]
        )

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        pause_s = self._pause_s
        for _ in range(_TRIES - 1):
            with contextlib.suppress(_LostError):
                response = await self._send(path, body)
                if response.status_code not in _TRIED_AGAIN:
                    return response
            await asyncio.sleep(pause_s)
            pause_s *= 2
        return await self._send(path, body)

    async def _send(self, path: str, body: dict[str, Any]) -> httpx.Response:
        try:
            return await self._http.post(path, json=body)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise SetupError(f"{self.base_url} is not a URL: {error}") from None
        except httpx.TransportError as error:
            raise _LostError(
                f"the connection to {self.base_url} broke: {str(error) or type(error).__name__}",
                hint="look at the server's log; give `mserve eval` a checkpoint to serve it itself",
            ) from None

    def _read(self, response: httpx.Response, read: Callable[[dict[str, Any]], T]) -> T:
        try:
            body = response.json()
            if response.status_code == 200:
                return read(body)
            message = str(body["error"]["message"])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            said = f"it answered {response.status_code} {response.reason_phrase}"
            if response.status_code >= 500 and response.status_code not in _TRIED_AGAIN:
                raise EngineError(f"the server failed: {said}") from None
            raise SetupError(
                f"{self.base_url} does not speak the OpenAI protocol: {said}",
                hint="give the address of an `mserve serve`, without a path",
            ) from None
        if response.status_code in (401, 403, 404):  # a key or a model that no question will find
            raise SetupError(f"the server refuses to answer: {message}")
        raise (RequestError if response.status_code < 500 else EngineError)(message)


def _answer(body: dict[str, Any]) -> Answer:
    [choice] = body["choices"]
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return Answer(
        content=_text(message.get("content")),
        reasoning=_text(message.get("reasoning_content") or message.get("reasoning")),
        calls=tuple(
            {"name": call["name"], "arguments": _loaded(call["arguments"])} for call in calls
        ),
        finish_reason=choice.get("finish_reason"),
        completion_tokens=(body.get("usage") or {}).get("completion_tokens") or 0,
    )


def _text(content: Any) -> str:
    """Some servers give it in parts. Raises ``TypeError`` for what is neither text nor that."""
    if isinstance(content, list):
        return "".join(_text(part["text"]) for part in content if part["type"] == "text")
    if not isinstance(content, str | None):
        raise TypeError("content that is no text")
    return content or ""


def _loaded(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError):
        return text
