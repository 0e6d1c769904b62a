"""POST /v1/completions: text in, text out, with the log-probabilities that evaluations read.

Knows the request's and the answer's shape. Does not know how text is made (``generation``).
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mserve.core import TokenLogprobs
from mserve.server.decode import decode, ignored_header, read_body
from mserve.server.generation import ChoiceUpdate, Generation
from mserve.server.identity import new_id, service_of
from mserve.server.logprobs import completion_logprobs, prompt_logprobs
from mserve.server.prompts import Prompt, text_prompts
from mserve.server.sampling import check_options, completion_sampling
from mserve.server.schema import CompletionRequest
from mserve.server.service import Service
from mserve.server.stream import event, respond
from mserve.text import Detokenizer


async def create_completion(http: Request) -> Response:
    """Admit, generate, and hand the answers over whole or as they come."""
    service = service_of(http)
    request, ignored = decode(await read_body(http), CompletionRequest)
    model = service.resolve_model(request.model)
    check_options(request, service.config.policy)
    ready = service.admit()
    sampling = completion_sampling(request, service.text.defaults, ready)
    prompts = await text_prompts(
        service.text,
        ready,
        request.prompt,
        add_special_tokens=request.add_special_tokens is not False,
    )
    generation = Generation(
        service,
        new_id("cmpl"),
        prompts,
        sampling,
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
    )
    shape = _Shape(service, request, generation, model, sampling.skip_special_tokens)
    return await respond(
        http,
        generation,
        shape,
        streamed=request.stream is True,
        headers=ignored_header(ignored),
    )


class _ChoiceText:
    """One choice as it is written: an echo of the prompt comes first, offsets run through."""

    def __init__(self) -> None:
        self.num_chars = 0
        self.begun = False


class _Shape:
    """Writes one generation as text completion objects."""

    def __init__(
        self,
        service: Service,
        request: CompletionRequest,
        generation: Generation,
        model: str,
        skip_special_tokens: bool,
    ) -> None:
        self._tokenizer = service.text.tokenizer
        self._request = request
        self._generation = generation
        self._skip_special_tokens = skip_special_tokens
        self._written = [_ChoiceText() for _ in range(generation.num_choices)]
        self._head = {
            "id": generation.request_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    async def whole(self) -> dict[str, Any]:
        """All choices in one object."""
        collected: list[list[dict[str, Any]]] = [[] for _ in self._written]
        async for update in self._generation.updates():
            collected[update.index].append(self._piece(update))
        return {
            **self._head,
            "choices": [_joined(pieces) for pieces in collected],
            "usage": self._generation.usage(),
        }

    async def events(self) -> AsyncGenerator[bytes, None]:
        options = self._request.stream_options
        with_usage = options is not None and bool(options.include_usage)
        continuous = options is not None and bool(options.continuous_usage_stats)
        async for update in self._generation.updates():
            piece = self._piece(update)
            if not (piece["text"] or update.token_ids or update.finish_reason):
                continue
            chunk = {**self._head, "choices": [piece]}
            if with_usage:
                chunk["usage"] = self._generation.usage() if continuous else None
            yield event(chunk)
        if with_usage:
            yield event({**self._head, "choices": [], "usage": self._generation.usage()})

    def _piece(self, update: ChoiceUpdate) -> dict[str, Any]:
        """One update as a choice object; the first one of a choice holds the echo."""
        request, written = self._request, self._written[update.index]
        prompt = self._generation.prompt_of(update.index)
        entries: list[TokenLogprobs | None] = []
        texts: list[str] = []
        text = ""
        token_ids: list[int] = []
        first, written.begun = not written.begun, True
        if first and request.echo:
            text = self._echo(prompt)
            if request.logprobs is not None:
                entries += update.prompt_logprobs or ()
                texts += self._prompt_texts(prompt)
                token_ids += prompt.token_ids
        text += update.content
        entries += update.logprobs or ()
        texts += update.texts
        token_ids += update.token_ids
        piece: dict[str, Any] = {
            "index": update.index,
            "text": text,
            "logprobs": None,
            "finish_reason": update.finish_reason,
            "stop_reason": update.stop_reason,
        }
        if request.logprobs is not None:
            offsets = self._offsets(written, texts)
            piece["logprobs"] = completion_logprobs(self._tokenizer, token_ids, entries, offsets)
        if request.prompt_logprobs is not None and update.prompt_logprobs is not None:
            piece["prompt_logprobs"] = prompt_logprobs(self._tokenizer, update.prompt_logprobs)
        if request.return_token_ids:
            piece["token_ids"] = update.token_ids
            if first:
                piece["prompt_token_ids"] = prompt.token_ids
        return piece

    def _echo(self, prompt: Prompt) -> str:
        if prompt.text is not None:
            return prompt.text
        return self._tokenizer.decode(
            prompt.token_ids, skip_special_tokens=self._skip_special_tokens
        )

    def _prompt_texts(self, prompt: Prompt) -> list[str]:
        """Characters that each prompt token completes in the echoed text."""
        skip = self._skip_special_tokens and prompt.text is None
        detokenizer = Detokenizer(self._tokenizer, skip_special_tokens=skip)
        return [detokenizer.push(token_id) for token_id in prompt.token_ids]

    def _offsets(self, written: _ChoiceText, texts: Sequence[str]) -> list[int]:
        offsets = []
        for text in texts:
            offsets.append(written.num_chars)
            written.num_chars += len(text)
        return offsets


def _joined(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """The pieces of one choice as one."""
    whole = dict(pieces[0])
    for piece in pieces[1:]:
        whole["text"] += piece["text"]
        whole["finish_reason"] = piece["finish_reason"]
        whole["stop_reason"] = piece["stop_reason"]
        if piece["logprobs"] is not None:
            for name, values in piece["logprobs"].items():
                whole["logprobs"][name] += values
        if "token_ids" in piece:
            whole["token_ids"] = whole["token_ids"] + piece["token_ids"]
    return whole
