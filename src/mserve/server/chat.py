"""POST /v1/chat/completions.

Knows the request's and the answer's shape. Does not know how text is made (``generation``).
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mserve.server.decode import decode, ignored_header, read_body
from mserve.server.generation import ChoiceUpdate, Generation
from mserve.server.identity import new_id, service_of
from mserve.server.logprobs import chat_logprobs, prompt_logprobs
from mserve.server.prompts import chat_prompt, ignored_variables
from mserve.server.sampling import chat_sampling, check_options
from mserve.server.schema import ChatRequest
from mserve.server.service import Service
from mserve.server.stream import event, respond


async def create_chat_completion(http: Request) -> Response:
    """Admit, generate, and hand the answer over whole or as it comes."""
    service = service_of(http)
    request, ignored = decode(await read_body(http), ChatRequest)
    model = service.resolve_model(request.model)
    check_options(request, service.config.policy)
    ready = service.admit()
    sampling = chat_sampling(request, service.text.defaults, ready)
    prompt = await chat_prompt(
        service.text,
        ready,
        request.messages,
        add_generation_prompt=request.add_generation_prompt is not False,
        variables=request.chat_template_kwargs,
        add_special_tokens=request.add_special_tokens is True,
    )
    ignored += ignored_variables(service.text, request.chat_template_kwargs)
    generation = Generation(
        service,
        new_id("chatcmpl"),
        [prompt],
        sampling,
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
    )
    shape = _Shape(service, request, generation, model)
    return await respond(
        http,
        generation,
        shape,
        streamed=request.stream is True,
        headers=ignored_header(ignored),
    )


class _Shape:
    """Writes one generation as chat completion objects."""

    def __init__(
        self, service: Service, request: ChatRequest, generation: Generation, model: str
    ) -> None:
        self._tokenizer = service.text.tokenizer
        self._request = request
        self._generation = generation
        self._head = {"id": generation.request_id, "created": int(time.time()), "model": model}

    async def whole(self) -> dict[str, Any]:
        """The answer in one object."""
        collected: list[list[ChoiceUpdate]] = [[] for _ in range(self._generation.num_choices)]
        async for update in self._generation.updates():
            collected[update.index].append(update)
        answer: dict[str, Any] = {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(updates) for updates in collected],
            "usage": self._generation.usage(),
        }
        scores = collected[0][0].prompt_logprobs
        if self._request.prompt_logprobs is not None and scores is not None:
            answer["prompt_logprobs"] = prompt_logprobs(self._tokenizer, scores)
        if self._request.return_token_ids:
            answer["prompt_token_ids"] = self._generation.prompt_of(0).token_ids
        return answer

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Role first, then pieces, then perhaps the usage."""
        for index in range(self._generation.num_choices):
            yield self._chunk(self._delta_choice(index, {"role": "assistant", "content": ""}))
        async for update in self._generation.updates():
            if update.content or update.token_ids or update.finish_reason is not None:
                yield self._chunk(self._update_choice(update))
        options = self._request.stream_options
        if options is not None and options.include_usage:
            yield event(
                {
                    **self._head,
                    "object": "chat.completion.chunk",
                    "choices": [],
                    "usage": self._generation.usage(),
                }
            )

    def _choice(self, updates: list[ChoiceUpdate]) -> dict[str, Any]:
        last = updates[-1]
        scores = [entry for update in updates for entry in update.logprobs or ()]
        choice: dict[str, Any] = {
            "index": last.index,
            "message": {
                "role": "assistant",
                "content": "".join(update.content for update in updates),
            },
            "logprobs": chat_logprobs(self._tokenizer, scores) if self._request.logprobs else None,
            "finish_reason": last.finish_reason,
            "stop_reason": last.stop_reason,
        }
        if self._request.return_token_ids:
            choice["token_ids"] = [i for update in updates for i in update.token_ids]
        return choice

    def _update_choice(self, update: ChoiceUpdate) -> dict[str, Any]:
        choice = self._delta_choice(update.index, {"content": update.content})
        choice["finish_reason"] = update.finish_reason
        if update.finish_reason is not None:
            choice["stop_reason"] = update.stop_reason
        if self._request.logprobs:
            choice["logprobs"] = chat_logprobs(self._tokenizer, update.logprobs or ())
        if self._request.return_token_ids:
            choice["token_ids"] = update.token_ids
        return choice

    def _delta_choice(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        chunk: dict[str, Any] = {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [choice],
        }
        options = self._request.stream_options
        if options is not None and options.include_usage:
            chunk["usage"] = self._generation.usage() if options.continuous_usage_stats else None
        return event(chunk)
