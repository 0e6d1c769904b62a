"""Writes an answer as chat completion chunks, and folds chunks into a completion.

Knows the shapes. Does not know where events come from.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from mserve.server.chat.schema import ChatRequest
from mserve.server.generation import ChoiceUpdate, Generation
from mserve.server.logprobs import chat_logprobs, prompt_logprobs
from mserve.server.stream import Payload
from mserve.text import (
    ArgumentsDelta,
    CallFinished,
    CallStarted,
    ContentDelta,
    Event,
    ReasoningDelta,
    Tokenizer,
)

ReasoningField = Literal["both", "reasoning", "reasoning_content"]

_FIELDS: dict[ReasoningField, tuple[str, ...]] = {
    "both": ("reasoning", "reasoning_content"),
    "reasoning": ("reasoning",),
    "reasoning_content": ("reasoning_content",),
}


class ChatForm:
    """One generation as chunks. ``named``: the caller chose the tool, so that a call is simply
    how the answer stops."""

    def __init__(
        self,
        request: ChatRequest,
        generation: Generation,
        tokenizer: Tokenizer,
        *,
        model: str,
        named: bool,
        reasoning_field: ReasoningField,
    ) -> None:
        self._request = request
        self._generation = generation
        self._tokenizer = tokenizer
        self._named = named
        self._fields = _FIELDS[reasoning_field]
        self._shows_reasoning = request.include_reasoning is not False
        self._per_token = bool(request.logprobs or request.return_token_ids)
        self._ends = ["stop"] * generation.num_choices  # what a stop is called, per choice
        options = request.stream_options
        self._continuous = bool(options and options.continuous_usage_stats)
        self._announced = bool(options and options.include_usage)
        self._with_usage = self._announced or not request.stream
        self._head = {
            "id": generation.request_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }

    def begin(self) -> list[Payload]:
        role = {"role": "assistant", "content": ""}
        return [self._chunk(i, dict(role)) for i in range(self._generation.num_choices)]

    def update(self, update: ChoiceUpdate) -> list[Payload]:
        chunks = [
            self._chunk(update.index, delta)
            for event in update.events
            if (delta := self._delta(event, update.index)) is not None
        ]
        if not chunks and (self._per_token or update.finish_reason is not None):
            chunks = [self._chunk(update.index, {"content": ""})]
        if self._per_token and chunks:
            self._add_token_facts(chunks[0], update)
        if update.finish_reason is not None:
            choice = chunks[-1]["choices"][0]
            choice["finish_reason"] = self._finish_reason(update)
            choice["stop_reason"] = update.stop_reason
        if update.prompt_logprobs is not None:
            scores = prompt_logprobs(self._tokenizer, update.prompt_logprobs)
            chunks = chunks or [self._chunk(update.index, {"content": ""})]
            chunks[0]["prompt_logprobs"] = scores
        return chunks

    def end(self) -> list[Payload]:
        if not self._with_usage:
            return []
        usage = self._generation.usage().openai()
        return [{**self._head, "choices": [], "usage": usage}]

    def fold(self) -> ChatFold:
        return ChatFold(self._generation.num_choices)

    def _delta(self, event: Event, index: int) -> dict[str, Any] | None:
        match event:
            case ContentDelta(text=text):
                return {"content": text}
            case ReasoningDelta(text=text):
                if not self._shows_reasoning:
                    return None
                # The empty content is for clients that read it from every delta.
                return {"content": "", **dict.fromkeys(self._fields, text)}
            case CallStarted(index=call, name=name, id=call_id):
                self._ends[index] = "stop" if self._named else "tool_calls"
                function = {"name": name, "arguments": ""}
                start = {"index": call, "id": call_id, "type": "function", "function": function}
                return {"tool_calls": [start]}
            case ArgumentsDelta(index=call, text=text):
                return {"tool_calls": [{"index": call, "function": {"arguments": text}}]}
            case CallFinished(incomplete=True):
                # Never to be run: the client must not take it for what the model meant to send.
                self._ends[index] = "length"
        return None

    def _finish_reason(self, update: ChoiceUpdate) -> str | None:
        if update.finish_reason == "stop":
            return self._ends[update.index]
        return update.finish_reason

    def _add_token_facts(self, chunk: Payload, update: ChoiceUpdate) -> None:
        choice = chunk["choices"][0]
        if self._request.logprobs:
            choice["logprobs"] = chat_logprobs(self._tokenizer, update.logprobs or ())
        if self._request.return_token_ids:
            choice["token_ids"] = update.token_ids
            prompt = self._generation.prompt_of(update.index)
            chunk["prompt_token_ids"] = prompt.token_ids if update.is_first else None

    def _chunk(self, index: int, delta: dict[str, Any]) -> Payload:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        chunk: Payload = {**self._head, "choices": [choice]}
        if self._announced:
            usage = self._generation.usage().openai() if self._continuous else None
            chunk["usage"] = usage
        return chunk


class ChatFold:
    """Chunks become a completion. Texts are gathered and joined once: answers can be long."""

    def __init__(self, num_choices: int) -> None:
        self._choices = [_ChoiceFold(index) for index in range(num_choices)]
        self._facts: Payload = {}

    def add(self, payload: Payload) -> None:
        for chunk in payload["choices"]:
            self._choices[chunk["index"]].add(chunk)
        self._facts.update((name, value) for name, value in payload.items() if value is not None)

    def whole(self) -> Payload:
        choices = [choice.whole() for choice in self._choices]
        return {**self._facts, "object": "chat.completion", "choices": choices}


class _ChoiceFold:
    def __init__(self, index: int) -> None:
        self._texts: dict[str, list[str]] = {"content": []}
        self._calls: list[dict[str, Any]] = []
        self._arguments: list[list[str]] = []
        self._scores: list[Any] | None = None
        self._choice: dict[str, Any] = {"index": index}
        self._token_ids: list[int] | None = None

    def add(self, chunk: dict[str, Any]) -> None:
        delta = chunk["delta"]
        for name in ("content", "reasoning", "reasoning_content"):
            if name in delta:
                self._texts.setdefault(name, []).append(delta[name])
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                self._calls.append(call)
                self._arguments.append([])
            self._arguments[call["index"]].append(call["function"]["arguments"])
        if chunk["logprobs"] is not None:
            self._scores = [*(self._scores or ()), *chunk["logprobs"]["content"]]
        if "token_ids" in chunk:
            self._token_ids = [*(self._token_ids or ()), *chunk["token_ids"]]
        if chunk["finish_reason"] is not None:
            self._choice["finish_reason"] = chunk["finish_reason"]
            self._choice["stop_reason"] = chunk["stop_reason"]

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant"}
        message.update((name, "".join(texts)) for name, texts in self._texts.items())
        if self._calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": call["type"],
                    "function": {"name": call["function"]["name"], "arguments": "".join(arguments)},
                }
                for call, arguments in zip(self._calls, self._arguments, strict=True)
            ]
        choice = {**self._choice, "message": message, "logprobs": None}
        if self._scores is not None:
            choice["logprobs"] = {"content": self._scores}
        if self._token_ids is not None:
            choice["token_ids"] = self._token_ids
        return choice
