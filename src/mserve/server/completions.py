"""POST /v1/completions: text in, text out, with the log-probabilities that evaluations read.

Knows the request's and the answer's shape. Does not know how text is made (``generation``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mserve.core import TokenLogprobs
from mserve.server.decode import notice_headers, read_request
from mserve.server.generation import ChoiceUpdate, Generation
from mserve.server.identity import new_id, service_of
from mserve.server.logprobs import completion_logprobs, prompt_logprobs
from mserve.server.prompts import Prompt, text_prompts
from mserve.server.sampling import check_options, completion_sampling
from mserve.server.schema import CompletionRequest
from mserve.server.service import Service
from mserve.server.stream import Payload, respond
from mserve.text import Detokenizer


async def create_completion(http: Request) -> Response:
    """Admit, generate, and hand the answers over whole or as they come."""
    service = service_of(http)
    request, ignored = await read_request(http, CompletionRequest)
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
    form = _Form(service, request, generation, model, sampling.skip_special_tokens)
    return await respond(
        http,
        generation,
        form,
        streamed=request.stream is True,
        headers=notice_headers(ignored),
    )


class _ChoiceText:
    """One choice as it is written: an echo of the prompt comes first, offsets run through."""

    def __init__(self) -> None:
        self.num_chars = 0
        self.begun = False


class _Form:
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
        options = request.stream_options
        self._announced = bool(options and options.include_usage)
        self._continuous = bool(options and options.continuous_usage_stats)
        self._written = [_ChoiceText() for _ in range(generation.num_choices)]
        self._head = {
            "id": generation.request_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def begin(self) -> list[Payload]:
        return []

    def update(self, update: ChoiceUpdate) -> list[Payload]:
        piece = self._piece(update)
        if not (piece["text"] or update.token_ids or update.finish_reason):
            return []
        chunk: Payload = {**self._head, "choices": [piece]}
        if self._announced:
            usage = self._generation.usage().openai() if self._continuous else None
            chunk["usage"] = usage
        return [chunk]

    def end(self) -> list[Payload]:
        if self._request.stream and not self._announced:
            return []
        return [{**self._head, "choices": [], "usage": self._generation.usage().openai()}]

    def fold(self) -> _Fold:
        return _Fold(self._generation.num_choices)

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
            piece["token_ids"] = list(update.token_ids)
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


class _Fold:
    """Pieces become whole choices."""

    def __init__(self, num_choices: int) -> None:
        self._pieces: list[list[dict[str, Any]]] = [[] for _ in range(num_choices)]
        self._facts: Payload = {}

    def add(self, payload: Payload) -> None:
        self._facts.update(payload)
        for piece in payload["choices"]:
            self._pieces[piece["index"]].append(piece)

    def whole(self) -> Payload:
        return {**self._facts, "choices": [_joined(pieces) for pieces in self._pieces]}


def _joined(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """The pieces of one choice as one."""
    whole = {**pieces[0], "text": "".join(piece["text"] for piece in pieces)}
    for piece in pieces[1:]:
        whole["finish_reason"] = piece["finish_reason"]
        whole["stop_reason"] = piece["stop_reason"]
        if piece["logprobs"] is not None:
            for name, values in piece["logprobs"].items():
                whole["logprobs"][name] += values
        if "token_ids" in piece:
            whole["token_ids"] += piece["token_ids"]
    return whole
