"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mserve.core import RequestError
from mserve.server.chat import read_messages
from mserve.server.decode import notice_headers, read_request
from mserve.server.identity import service_of
from mserve.server.logprobs import token_name
from mserve.server.off_loop import off_loop_if_long
from mserve.server.prompts import chat_prompt, check_ids, ignored_variables, text_prompts
from mserve.server.schema import DetokenizeRequest, TokenizeRequest
from mserve.server.stream import json_response
from mserve.text import normalised


async def tokenize(http: Request) -> Response:
    """A text's tokens, or those of messages as the chat template renders them."""
    service = service_of(http)
    request, ignored = await read_request(http, TokenizeRequest)
    service.resolve_model(request.model)
    ready = service.admit()
    if (request.prompt is None) == (request.messages is None):
        raise RequestError("send either prompt or messages", param="prompt")
    if request.messages is not None:
        messages = normalised(read_messages(request.messages))
        render = partial(
            chat_prompt,
            service.text,
            ready,
            messages,
            tools=request.tools,
            add_generation_prompt=request.add_generation_prompt is not False,
            variables=request.chat_template_kwargs,
            add_special_tokens=request.add_special_tokens is True,
        )
        num_chars = len(msgspec.json.encode([messages, request.tools]))
        prompt = await off_loop_if_long(num_chars, render)
        ignored += ignored_variables(service.text, request.chat_template_kwargs)
        token_ids = prompt.token_ids
    elif request.prompt:
        (prompt,) = await text_prompts(
            service.text,
            ready,
            request.prompt,
            add_special_tokens=request.add_special_tokens is not False,
        )
        token_ids = prompt.token_ids
    else:
        token_ids = []
    names = [token_name(service.text.tokenizer, i) for i in token_ids]
    return json_response(
        {
            "count": len(token_ids),
            "max_model_len": ready.max_model_len,
            "tokens": token_ids,
            "token_strs": names if request.return_token_strs else None,
        },
        notice_headers(ignored),
    )


async def detokenize(http: Request) -> Response:
    """The text of tokens, special ones included."""
    service = service_of(http)
    request, ignored = await read_request(http, DetokenizeRequest)
    service.resolve_model(request.model)
    ready = service.admit()
    token_ids = check_ids(request.tokens, ready, param="tokens") if request.tokens else []
    text = service.text.tokenizer.decode(token_ids, skip_special_tokens=False)
    return json_response({"prompt": text}, notice_headers(ignored))
