"""Responses that can be asked for again, continued and cancelled; in memory and bounded.

The oldest used go first when there are too many or they are too large together. What runs is
never dropped. Knows finished and running responses. Does not know how they are made.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from mserve.core import NotFoundError, RequestError

MAX_RESPONSES = 1024
MAX_BYTES = 256 << 20


class StoredResponse(msgspec.Struct):
    """``response`` changes while it runs; ``cancel`` ends it then."""

    response: dict[str, Any]
    input_items: list[dict[str, Any]]
    """All that came before its output, items of earlier responses included."""
    cancel: Callable[[], None] | None = None
    num_bytes: int = 0

    @property
    def items(self) -> list[dict[str, Any]]:
        """What a response that continues this one starts with."""
        return [*self.input_items, *self.response["output"]]


class ResponseStore:
    """By id, least recently used first."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, stored: StoredResponse) -> None:
        """Keep a new response, which may still run."""
        self._stored[stored.response["id"]] = stored

    def settle(self, response_id: str) -> None:
        """The response is over: from now on it counts, and may be dropped."""
        stored = self._stored.get(response_id)
        if stored is None:  # deleted meanwhile
            return
        stored.cancel = None
        # Items shared with an earlier response count again: what they are part of may outlive it.
        stored.num_bytes = len(msgspec.json.encode([stored.response, stored.input_items]))
        self._num_bytes += stored.num_bytes
        self._shrink()

    def get(self, response_id: str, *, param: str = "response_id") -> StoredResponse:
        """``param``: the field that asks. Raises ``NotFoundError``."""
        stored = self._stored.get(response_id)
        if stored is None:
            raise NotFoundError(
                f'there is no response "{response_id[:100]}": it was not stored, was deleted, or '
                "made room for newer ones",
                param=param,
                code="response_not_found",
            )
        self._stored.move_to_end(response_id)
        return stored

    def finished(self, response_id: str) -> StoredResponse:
        """One that can be continued. Raises ``NotFoundError``, or ``RequestError`` if it runs."""
        param = "previous_response_id"
        stored = self.get(response_id, param=param)
        if stored.response["status"] == "in_progress":
            raise RequestError(f'the response "{response_id[:100]}" is not finished', param=param)
        return stored

    def delete(self, response_id: str) -> None:
        """Cancels one that runs. Raises ``NotFoundError``."""
        stored = self.get(response_id)
        del self._stored[response_id]
        self._num_bytes -= stored.num_bytes
        if stored.cancel is not None:
            stored.cancel()

    def _shrink(self) -> None:
        for response_id, stored in list(self._stored.items()):
            fits = len(self._stored) <= self._max_responses and self._num_bytes <= self._max_bytes
            if fits:
                return
            if stored.cancel is None:
                del self._stored[response_id]
                self._num_bytes -= stored.num_bytes
