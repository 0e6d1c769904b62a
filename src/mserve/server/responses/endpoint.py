"""POST /v1/responses and what can be done with a response afterwards.

    POST   /v1/responses                 streamed, whole, or in the background
    GET    /v1/responses/{id}            as far as it is
    POST   /v1/responses/{id}/cancel
    DELETE /v1/responses/{id}
    POST   /v1/responses/input_tokens    what a request would send to the model

Knows the order of things. Does not know how any of them is done.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response

from mserve.core import MserveError, RequestError
from mserve.server.decode import notice_headers, read_request
from mserve.server.generation import ClientGoneError, Generation
from mserve.server.identity import new_id, service_of
from mserve.server.prepare import prepare
from mserve.server.responses.encode import RESPONSES_STREAM, ResponsesForm, response_object
from mserve.server.responses.request import Item, input_items, responses_turn
from mserve.server.responses.schema import InputFields, ResponsesRequest
from mserve.server.service import Service
from mserve.server.store import StoredResponse
from mserve.server.stream import (
    EventStream,
    Payload,
    closing_on_disconnect,
    encoded,
    json_response,
    payloads,
)


async def create_response(http: Request) -> Response:
    service = service_of(http)
    request, ignored = await read_request(http, ResponsesRequest)
    model = service.resolve_model(request.model)
    stores = request.store is not False
    if request.background and (request.stream or not stores):
        raise RequestError(
            "a background response is stored and not streamed: leave stream and store out",
            param="background",
        )
    ready = service.admit()
    earlier = _earlier_items(service, request)
    turn = responses_turn(request, earlier, service.text.defaults, ready)
    prepared = await prepare(service, ready, turn)
    generation = prepared.generate(service, new_id("resp", "_"))
    response = response_object(request, generation.request_id, model)
    response["store"] = stores
    form = ResponsesForm(request, generation, service.text.tokenizer, response)
    run = _Run(service, generation, form, [*earlier, *input_items(request)], stores=stores)
    headers = notice_headers([*ignored, *prepared.ignored], prepared.warnings)
    if request.background:
        service.keep_running(run.finish())
        return json_response({**response, "status": "queued"}, headers)
    if request.stream:
        stream = encoded(run.payloads(), RESPONSES_STREAM)
        return EventStream(stream, run.leave, headers, RESPONSES_STREAM)
    with closing_on_disconnect(http.receive, run.leave):
        try:
            return json_response(await run.whole(), headers)
        except ClientGoneError:
            return Response(status_code=499)


async def retrieve_response(http: Request) -> Response:
    if http.query_params.get("stream", "false") != "false":
        raise RequestError(
            "a stored response is not streamed again: ask without stream",
            param="stream",
            code="unsupported_parameter",
        )
    return json_response(_stored(http).response)


async def cancel_response(http: Request) -> Response:
    stored = _stored(http)
    if stored.cancel is not None:
        stored.cancel()
    return json_response(stored.response)


async def delete_response(http: Request) -> Response:
    response_id = http.path_params["response_id"]
    service_of(http).responses.delete(response_id)
    return json_response({"id": response_id, "object": "response.deleted", "deleted": True})


async def count_input_tokens(http: Request) -> Response:
    service = service_of(http)
    request, ignored = await read_request(http, InputFields)
    service.resolve_model(request.model)
    ready = service.admit()
    earlier = _earlier_items(service, request)
    turn = responses_turn(request, earlier, service.text.defaults, ready)
    prepared = await prepare(service, ready, turn)
    return json_response(
        {"object": "response.input_tokens", "input_tokens": len(prepared.prompt.token_ids)},
        notice_headers([*ignored, *prepared.ignored], prepared.warnings),
    )


class _Run:
    """One response being made, known to the store while it is if it is to be stored."""

    def __init__(
        self,
        service: Service,
        generation: Generation,
        form: ResponsesForm,
        input_items: list[Item],
        *,
        stores: bool,
    ) -> None:
        self._store = service.responses
        self._generation = generation
        self._form = form
        self._settled = False
        self.error: MserveError | None = None
        self._stores = stores
        if stores:
            self._store.put(StoredResponse(form.response, input_items, self.leave))

    async def payloads(self) -> AsyncGenerator[list[Payload], None]:
        """A failure is an event here; ``error`` then says which."""
        try:
            async for batch in payloads(self._generation, self._form):
                yield batch
        except MserveError as error:
            self.error = error
            yield [self._form.fail(error)]
        finally:
            self.leave()

    async def whole(self) -> Payload:
        fold = self._form.fold()
        async for batch in self.payloads():
            for payload in batch:
                fold.add(payload)
        if self.error is not None:
            raise self.error
        return fold.whole()

    async def finish(self) -> None:
        """In the background: the store has the outcome, whatever it is."""
        with contextlib.suppress(MserveError, ClientGoneError):
            await self.whole()

    def leave(self) -> None:
        """It is over, or somebody ends it: by a request, or by not listening any more. Safe to call
        twice."""
        if self._settled:
            return
        self._settled = True
        self._generation.close()
        if self._form.response["status"] == "in_progress":
            self._form.break_off("cancelled")
        if self._stores:
            self._store.settle(self._form.response["id"])


def _earlier_items(service: Service, request: InputFields) -> list[Item]:
    if request.previous_response_id is None:
        return []
    return service.responses.finished(request.previous_response_id).items


def _stored(http: Request) -> StoredResponse:
    return service_of(http).responses.get(http.path_params["response_id"])
