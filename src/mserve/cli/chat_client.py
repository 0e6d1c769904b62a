"""A small client of ``/v1/chat/completions``: one conversation turn as an iterator of pieces.

Knows HTTP, server-sent events and the error envelope. Does not know the terminal.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import httpx
import msgspec

from mserve.core import EngineError, MserveError, NotReadyError, RequestError, SetupError

Message = dict[str, str]

_CONNECT_S = 5.0


class Piece(msgspec.Struct, frozen=True):
    """A bit of the answer, as it arrives."""

    text: str
    thinking: bool = False


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer cost."""

    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_s: float
    total_s: float

    @property
    def tokens_per_s(self) -> float | None:
        """Decoding speed after the first token; None when there was no second."""
        decoding_s = self.total_s - self.first_token_s
        if self.completion_tokens < 2 or decoding_s <= 0:
            return None
        return (self.completion_tokens - 1) / decoding_s


class ChatClient:
    """Talks to one server. Close it, or use it in a ``with``."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        transport: httpx.BaseTransport | None = None,  # None: the network
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        # A long prompt may keep the first token waiting for minutes, so reading has no limit:
        # Ctrl-C is the limit.
        self._http = httpx.Client(
            base_url=self.base_url,
            headers=headers,
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            transport=transport,
        )

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def wait_until_ready(self, report: Callable[[str, float], None]) -> None:
        """Return once ``/readyz`` says 200. ``report`` gets stage and fraction (0 to 1) meanwhile.

        A server without ``/readyz`` is taken to be ready. Raises ``SetupError`` when nothing
        answers.
        """
        while True:
            with self._translated():
                answer = self._http.get("/readyz")
            if answer.status_code != 503:
                return
            report(*_stage_of(answer))
            time.sleep(0.2)

    def models(self) -> list[str]:
        """Names the server answers to."""
        with self._translated():
            answer = self._http.get("/v1/models")
            _raise_for_error(answer)
            return [entry["id"] for entry in answer.json()["data"]]

    def stream(
        self, model: str, messages: list[Message], settings: dict[str, Any]
    ) -> Generator[Piece | Turn, None, None]:
        """The pieces of one answer, then one ``Turn``. Closing the iterator cancels the request."""
        body = {
            "model": model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **settings,
        }
        started = time.perf_counter()
        first: float | None = None
        finish_reason: str | None = None
        usage: dict[str, Any] = {}
        with (
            self._translated(),
            self._http.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                _raise_for_error(answer)
            for event in _events(answer.iter_lines()):
                usage = event.get("usage") or usage
                for choice in event.get("choices") or ():
                    finish_reason = choice.get("finish_reason") or finish_reason
                    for piece in _pieces(choice.get("delta") or {}):
                        first = first or time.perf_counter()
                        yield piece
        ended = time.perf_counter()
        yield Turn(
            finish_reason=finish_reason,
            prompt_tokens=usage.get("prompt_tokens", 0),
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            completion_tokens=usage.get("completion_tokens", 0),
            first_token_s=(first or ended) - started,
            total_s=ended - started,
        )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what httpx raises into our own errors."""
        try:
            yield
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise SetupError(f"{self.base_url} is not a URL: {error}") from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise SetupError(
                f"nothing answers at {self.base_url}",
                hint="start one with `mserve serve CHECKPOINT`, or give the checkpoint itself",
            ) from error
        except httpx.TransportError as error:
            raise EngineError(
                f"the connection to {self.base_url} broke: {str(error) or type(error).__name__}"
            ) from error
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise SetupError(
                f"{self.base_url} does not speak the OpenAI chat protocol",
                hint="give the address of an `mserve serve`, without a path",
            ) from error


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """JSON payloads of a server-sent event stream. Raises the error an error event carries."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        payload = line.removeprefix("data:").strip()
        if payload == "[DONE]":
            return
        event = json.loads(payload)
        if error := event.get("error"):
            raise EngineError(str(error.get("message", error)))
        yield event


def _pieces(delta: dict[str, Any]) -> Iterator[Piece]:
    if thinking := delta.get("reasoning_content") or delta.get("reasoning"):
        yield Piece(thinking, thinking=True)
    if text := delta.get("content"):
        yield Piece(text)


def _raise_for_error(answer: httpx.Response) -> None:
    if answer.status_code == 200:
        return
    try:
        message = answer.json()["error"]["message"]
    except (json.JSONDecodeError, KeyError, TypeError):
        message = f"the server answered {answer.status_code} {answer.reason_phrase}"
    kinds: dict[int, type[MserveError]] = {500: EngineError, 503: NotReadyError}
    raise kinds.get(answer.status_code, RequestError)(message)


def _stage_of(answer: httpx.Response) -> tuple[str, float]:
    """Stage and fraction of a server that is not ready. Raises ``NotReadyError`` for one that
    will not be."""
    try:
        body = answer.json()
        stage, fraction = str(body.get("stage", "")), float(body.get("percent", 0)) / 100
    except (json.JSONDecodeError, AttributeError, TypeError, ValueError):
        return "loading", 0.0
    if body.get("status") in ("draining", "failed"):
        raise NotReadyError(f"the server is {body['status']} {body.get('detail', '')}".strip())
    return stage or "loading", fraction
