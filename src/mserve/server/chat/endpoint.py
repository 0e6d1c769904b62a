"""POST /v1/chat/completions.

Knows the order of things: read, prepare, generate, answer. Does not know how any of them is done.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from mserve.server.chat.encode import ChatForm
from mserve.server.chat.request import chat_turn
from mserve.server.chat.schema import ChatRequest
from mserve.server.decode import notice_headers, read_request
from mserve.server.identity import new_id, service_of
from mserve.server.prepare import prepare
from mserve.server.sampling import check_options
from mserve.server.stream import respond


async def create_chat_completion(http: Request) -> Response:
    service = service_of(http)
    request, ignored = await read_request(http, ChatRequest)
    model = service.resolve_model(request.model)
    check_options(request, service.config.policy)
    ready = service.admit()
    turn = chat_turn(request, service.text.defaults, ready)
    prepared = await prepare(service, ready, turn)
    generation = prepared.generate(service, new_id("chatcmpl"))
    form = ChatForm(
        request,
        generation,
        service.text.tokenizer,
        model=model,
        named=turn.tool_choice.mode == "named",
        reasoning_field=service.config.reasoning_field,
    )
    return await respond(
        http,
        generation,
        form,
        streamed=request.stream is True,
        headers=notice_headers([*ignored, *prepared.ignored], prepared.warnings),
    )
