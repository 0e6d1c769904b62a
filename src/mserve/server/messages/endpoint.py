"""POST /v1/messages and /v1/messages/count_tokens.

Knows the order of things. Does not know how any of them is done.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from mserve.server.decode import notice_headers, read_request
from mserve.server.errors import request_id_of
from mserve.server.identity import new_id, service_of
from mserve.server.messages.encode import MessagesForm, messages_stream
from mserve.server.messages.request import messages_turn
from mserve.server.messages.schema import CountTokensRequest, MessagesRequest
from mserve.server.prepare import prepare
from mserve.server.stream import json_response, respond


async def create_message(http: Request) -> Response:
    service = service_of(http)
    request, ignored = await read_request(http, MessagesRequest)
    model = service.resolve_model(request.model)
    ready = service.admit()
    turn = messages_turn(request, service.text.defaults, ready)
    # Agents ask for more tokens than any answer has; what the context holds is what they get.
    prepared = (await prepare(service, ready, turn)).within_context(ready)
    generation = prepared.generate(service, new_id("msg", "_"), call_id_prefix="toolu")
    return await respond(
        http,
        generation,
        MessagesForm(generation, model=model, max_tokens=request.max_tokens),
        streamed=request.stream is True,
        headers=notice_headers([*ignored, *prepared.ignored], prepared.warnings),
        stream_form=messages_stream(request_id_of(http.scope)),
    )


async def count_tokens(http: Request) -> Response:
    service = service_of(http)
    request, ignored = await read_request(http, CountTokensRequest)
    service.resolve_model(request.model)
    ready = service.admit()
    prepared = await prepare(service, ready, messages_turn(request, service.text.defaults, ready))
    return json_response(
        {"input_tokens": len(prepared.prompt.token_ids)},
        notice_headers([*ignored, *prepared.ignored], prepared.warnings),
    )
