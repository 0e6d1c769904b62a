"""Writes an answer as Responses events; the last one holds the whole response.

    created, in_progress, (item added, (part added, deltas, done, part done), item done)*, completed

Items are opened by the first event that belongs to them and closed by the first that does not.
Knows the shapes. Does not know where events come from.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

from mserve.core import MserveError
from mserve.server.generation import ChoiceUpdate, Generation, Usage
from mserve.server.logprobs import chat_logprobs
from mserve.server.replay import packed
from mserve.server.responses.schema import ResponsesRequest
from mserve.server.stream import Payload, StreamForm, named_event
from mserve.text import (
    ArgumentsDelta,
    CallFinished,
    CallStarted,
    ContentDelta,
    Event,
    ReasoningDelta,
    Tokenizer,
)

RESPONSES_STREAM = StreamForm(
    encode=named_event,
    failure=lambda error: named_event(
        {"type": "error", "code": error.code, "message": error.message, "param": error.param}
    ),
)
"""An answer that fails says so in its own last event; ``failure`` is for bugs around it."""


def response_object(request: ResponsesRequest, response_id: str, model: str) -> Payload:
    """A response before anything has happened to it. Says back what was asked."""
    reasoning = request.reasoning
    text = request.text
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": request.background is True,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        "store": request.store is not False,
        "temperature": request.temperature,
        "text": {"format": (text.format if text else None) or {"type": "text"}},
        "tool_choice": request.tool_choice or "auto",
        "tools": request.tools or [],
        "top_p": request.top_p,
        "truncation": request.truncation or "disabled",
        "usage": None,
    }


class ResponsesForm:
    """One generation as Responses events. ``response`` is always as far as the events are."""

    def __init__(
        self,
        request: ResponsesRequest,
        generation: Generation,
        tokenizer: Tokenizer,
        response: Payload,
    ) -> None:
        self.response = response
        self._generation = generation
        self._tokenizer = tokenizer
        self._with_logprobs = generation.sampling.logprobs is not None
        self._carries = "reasoning.encrypted_content" in (request.include or ())
        self._sequence_number = 0
        self._open: _OpenItem | None = None
        self._cut_call = False

    def begin(self) -> list[Payload]:
        return [
            self._event("response.created", response=self._snapshot()),
            self._event("response.in_progress", response=self._snapshot()),
        ]

    def update(self, update: ChoiceUpdate) -> list[Payload]:
        events: list[Payload] = []
        scores: list[Any] = []
        if self._with_logprobs and update.logprobs:
            scores = chat_logprobs(self._tokenizer, update.logprobs)["content"]
        for event in update.events:
            self._on_event(event, scores, events)
        if update.finish_reason is not None:
            self._close(events, is_cut=update.finish_reason != "stop")
            self._settle(update.finish_reason)
        return events

    def end(self) -> list[Payload]:
        self.response["usage"] = usage_object(self._generation.usage())
        return [self._event(f"response.{self.response['status']}", response=self._snapshot())]

    def fold(self) -> _Fold:
        return _Fold()

    def fail(self, error: MserveError) -> Payload:
        """The response failed: the event that says so."""
        self.break_off("failed")
        self.response["error"] = {"code": error.code, "message": error.message}
        return self._event("response.failed", response=self._snapshot())

    def break_off(self, status: Literal["failed", "cancelled"]) -> None:
        """Nothing more will come; what had come stays."""
        self._close([], is_cut=True)
        self.response["status"] = status
        self.response["usage"] = usage_object(self._generation.usage())

    def _on_event(self, event: Event, scores: list[Any], events: list[Payload]) -> None:
        match event:
            case ReasoningDelta(text=text):
                item = self._opened("reasoning", events)
                item.texts.append(text)
                place = item.place(content_index=0)
                events.append(self._event("response.reasoning_text.delta", delta=text, **place))
            case ContentDelta(text=text):
                item = self._opened("message", events)
                item.texts.append(text)
                item.scores += scores
                place = item.place(content_index=0)
                delta = {"delta": text, "logprobs": scores}
                events.append(self._event("response.output_text.delta", **delta, **place))
            case CallStarted(name=name, id=call_id):
                self._close(events)
                self._opened("function_call", events, name=name, call_id=call_id)
            case ArgumentsDelta(text=text):
                item = self._opened("function_call", events)
                item.texts.append(text)
                name = "response.function_call_arguments.delta"
                events.append(self._event(name, delta=text, **item.place()))
            case CallFinished(incomplete=incomplete):
                self._cut_call = incomplete
                self._close(events)

    def _opened(self, kind: str, events: list[Payload], **fields: Any) -> _OpenItem:
        """The open item, of ``kind``; another one is closed first."""
        if self._open is not None and self._open.kind == kind:
            return self._open
        self._close(events)
        item = self._open = _OpenItem(kind, len(self.response["output"]), fields)
        self.response["output"].append(item.item("in_progress"))
        place = {"output_index": item.index, "item": item.item("in_progress")}
        events.append(self._event("response.output_item.added", **place))
        if (part := item.part("")) is not None:
            place = item.place(content_index=0)
            events.append(self._event("response.content_part.added", part=part, **place))
        return item

    def _close(self, events: list[Payload], *, is_cut: bool = False) -> None:
        """End the open item. ``is_cut``: it was not the model that ended it."""
        item, self._open = self._open, None
        if item is None:
            return
        text = "".join(item.texts)
        match item.kind:
            case "reasoning":
                place = item.place(content_index=0)
                events.append(self._event("response.reasoning_text.done", text=text, **place))
            case "message":
                done = {"text": text, "logprobs": item.scores, **item.place(content_index=0)}
                events.append(self._event("response.output_text.done", **done))
            case _:
                done = {"arguments": text, "name": item.fields["name"], **item.place()}
                events.append(self._event("response.function_call_arguments.done", **done))
        if (part := item.part(text)) is not None:
            place = item.place(content_index=0)
            events.append(self._event("response.content_part.done", part=part, **place))
        is_cut |= item.kind == "function_call" and self._cut_call
        whole = item.item("incomplete" if is_cut else "completed", text)
        if item.kind == "reasoning" and self._carries:
            whole["encrypted_content"] = packed(text)
        self.response["output"][item.index] = whole
        events.append(self._event("response.output_item.done", output_index=item.index, item=whole))

    def _settle(self, finish_reason: str) -> None:
        if finish_reason == "stop" and not self._cut_call:
            self.response["status"] = "completed"
            return
        reason = "repetition" if finish_reason == "repetition" else "max_output_tokens"
        self.response["status"] = "incomplete"
        self.response["incomplete_details"] = {"reason": reason}

    def _event(self, kind: str, /, **fields: Any) -> Payload:
        event = {"type": kind, "sequence_number": self._sequence_number, **fields}
        self._sequence_number += 1
        return event

    def _snapshot(self) -> Payload:
        return {**self.response, "output": list(self.response["output"])}


class _OpenItem:
    """An output item that is being written."""

    def __init__(self, kind: str, index: int, fields: dict[str, Any]) -> None:
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        self.kind = kind
        self.index = index
        self.fields = fields
        self.id = f"{prefix}_{uuid.uuid4().hex}"
        self.texts: list[str] = []
        self.scores: list[Any] = []

    def place(self, **more: int) -> dict[str, Any]:
        return {"item_id": self.id, "output_index": self.index, **more}

    def part(self, text: str) -> dict[str, Any] | None:
        """The content part that holds ``text``; a call has none."""
        match self.kind:
            case "reasoning":
                return {"type": "reasoning_text", "text": text}
            case "message":
                scores = list(self.scores)
                return {"type": "output_text", "text": text, "annotations": [], "logprobs": scores}
        return None

    def item(self, status: str, text: str = "") -> dict[str, Any]:
        """The item as the API shows it."""
        item: dict[str, Any] = {"id": self.id, "type": self.kind, "status": status}
        part = self.part(text)
        content = [part] if part is not None and status != "in_progress" else []
        match self.kind:
            case "reasoning":
                return {**item, "summary": [], "content": content}
            case "message":
                return {**item, "role": "assistant", "content": content}
        return {**item, "arguments": text, **self.fields}


class _Fold:
    """The last event holds the whole response."""

    def __init__(self) -> None:
        self._response: Payload = {}

    def add(self, payload: Payload) -> None:
        self._response = payload.get("response", self._response)

    def whole(self) -> Payload:
        return self._response


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }
