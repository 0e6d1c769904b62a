"""Writes an answer as Messages events, and folds events into a message.

    message_start, ping, (content_block_start, content_block_delta*, content_block_stop)*,
    message_delta, message_stop

Knows the shapes. Does not know where events come from.
"""

from __future__ import annotations

import json
from typing import Any

from mserve.server.errors import anthropic_body
from mserve.server.generation import ChoiceUpdate, Generation, Usage
from mserve.server.replay import signature_of
from mserve.server.stream import Payload, StreamForm, named_event
from mserve.text import (
    ArgumentsDelta,
    CallFinished,
    CallStarted,
    ContentDelta,
    Event,
    ReasoningDelta,
)

_PING: Payload = {"type": "ping"}


def messages_stream(request_id: str | None) -> StreamForm:
    return StreamForm(
        encode=named_event,
        failure=lambda error: named_event(anthropic_body(error, request_id)),
        sign_of_life=named_event(_PING),
    )


class MessagesForm:
    """One generation as Messages events. ``max_tokens``: what the request asked for, which may
    be more than the context held."""

    def __init__(self, generation: Generation, *, model: str, max_tokens: int) -> None:
        self._generation = generation
        self._model = model
        self._max_tokens = max_tokens
        self._kind: str | None = None  # of the open block
        self._num_blocks = 0
        self._thinking: list[str] = []
        self._has_calls = False
        self._cut_call = False
        self._stop: tuple[str, str | None] = ("end_turn", None)

    def begin(self) -> list[Payload]:
        message: Payload = {
            "id": self._generation.request_id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_object(self._generation.usage()),
        }
        return [{"type": "message_start", "message": message}, dict(_PING)]

    def update(self, update: ChoiceUpdate) -> list[Payload]:
        events: list[Payload] = []
        for event in update.events:
            self._on_event(event, events)
        if update.finish_reason is not None:
            self._close(events)
            self._stop = self._stop_of(update)
        return events

    def end(self) -> list[Payload]:
        reason, sequence = self._stop
        usage = usage_object(self._generation.usage())
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return [
            {"type": "message_delta", "delta": delta, "usage": usage},
            {"type": "message_stop"},
        ]

    def fold(self) -> MessageFold:
        return MessageFold()

    def _on_event(self, event: Event, events: list[Payload]) -> None:
        match event:
            case ReasoningDelta(text=text):
                self._opened("thinking", {"thinking": "", "signature": ""}, events)
                self._thinking.append(text)
                events.append(self._delta("thinking_delta", thinking=text))
            case ContentDelta(text=text):
                self._opened("text", {"text": ""}, events)
                events.append(self._delta("text_delta", text=text))
            case CallStarted(name=name, id=call_id):
                self._has_calls = True
                self._close(events)
                self._opened("tool_use", {"id": call_id, "name": name, "input": {}}, events)
            case ArgumentsDelta(text=text):
                events.append(self._delta("input_json_delta", partial_json=text))
            case CallFinished(incomplete=incomplete):
                self._cut_call = incomplete
                self._close(events)

    def _opened(self, kind: str, fields: dict[str, Any], events: list[Payload]) -> None:
        if self._kind == kind:
            return
        self._close(events)
        self._kind = kind
        block = {"type": kind, **fields}
        events.append(
            {"type": "content_block_start", "index": self._num_blocks, "content_block": block}
        )

    def _close(self, events: list[Payload]) -> None:
        if self._kind is None:
            return
        if self._kind == "thinking":
            signature = signature_of("".join(self._thinking))
            self._thinking.clear()
            events.append(self._delta("signature_delta", signature=signature))
        events.append({"type": "content_block_stop", "index": self._num_blocks})
        self._kind = None
        self._num_blocks += 1

    def _delta(self, kind: str, **fields: str) -> Payload:
        delta = {"type": kind, **fields}
        return {"type": "content_block_delta", "index": self._num_blocks, "delta": delta}

    def _stop_of(self, update: ChoiceUpdate) -> tuple[str, str | None]:
        if isinstance(update.stop_reason, str) and update.finish_reason == "stop":
            return "stop_sequence", update.stop_reason
        if update.finish_reason != "stop" or self._cut_call:
            # A call that was cut must not be run, so it does not end in "tool_use".
            full = self._generation.usage().completion < self._max_tokens
            full = full and update.finish_reason == "length"
            return ("model_context_window_exceeded" if full else "max_tokens"), None
        return ("tool_use" if self._has_calls else "end_turn"), None


class MessageFold:
    """Events become a message, as in the clients."""

    def __init__(self) -> None:
        self._message: Payload = {}
        self._pieces: list[str] = []

    def add(self, payload: Payload) -> None:
        match payload["type"]:
            case "message_start":
                self._message = dict(payload["message"], content=[])
            case "content_block_start":
                self._message["content"].append(dict(payload["content_block"]))
                self._pieces.clear()
            case "content_block_delta":
                self._add_delta(payload["delta"])
            case "content_block_stop":
                self._end_block(self._message["content"][-1])
            case "message_delta":
                self._message.update(payload["delta"], usage=payload["usage"])

    def whole(self) -> Payload:
        return self._message

    def _add_delta(self, delta: dict[str, Any]) -> None:
        match delta:
            case {"signature": signature}:
                self._message["content"][-1]["signature"] = signature
            case {"thinking": text} | {"text": text} | {"partial_json": text}:
                self._pieces.append(text)

    def _end_block(self, block: dict[str, Any]) -> None:
        text = "".join(self._pieces)
        match block["type"]:
            case "tool_use":
                block["input"] = json.loads(text or "{}")
            case kind:
                block[kind] = text


def usage_object(usage: Usage) -> dict[str, Any]:
    """What was read from the cache is not among the input tokens here."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
    }
