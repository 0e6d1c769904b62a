"""What can be asked without a prompt: models, version, probes, metrics."""

from __future__ import annotations

import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mserve import __version__
from mserve.core import NotFoundError
from mserve.server.identity import service_of
from mserve.server.page import page
from mserve.server.service import Service
from mserve.server.stream import json_response
from mserve.wire import Phase


async def list_models(http: Request) -> Response:
    service = service_of(http)
    names = service.config.served_model_names
    models = [_model(service, name) for name in names]
    ends = {"first_id": names[0], "last_id": names[-1], "has_more": False}
    return json_response({"object": "list", "data": models, **ends})


async def retrieve_model(http: Request) -> Response:
    service = service_of(http)
    name = http.path_params["model"]
    if name not in service.config.served_model_names:
        raise NotFoundError(
            f'the model "{name[:100]}" is not served here', param="model", code="model_not_found"
        )
    return json_response(_model(service, name))


async def root(http: Request) -> Response:
    """A page to talk to for browsers, a name and a version for the rest."""
    if wants_page(http):
        return page()
    return json_response({"name": "mserve", "version": __version__})


def wants_page(http: Request) -> bool:
    return "text/html" in http.headers.get("accept", "")


async def version(http: Request) -> Response:
    return json_response({"version": __version__})


async def livez(http: Request) -> Response:
    """The process answers; nothing is said of the engine."""
    return json_response({"status": "alive"})


async def readyz(http: Request) -> Response:
    """200 when a request would be admitted; else 503 with what is being waited for."""
    service = service_of(http)
    body = _readiness(service)
    response = json_response(body)
    if body["status"] != "ready":
        response.status_code = 503
        response.headers["retry-after"] = "5"
    return response


async def metrics(http: Request) -> Response:
    return Response(
        service_of(http).metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8"
    )


def _readiness(service: Service) -> dict[str, Any]:
    status = service.client.status
    if service.draining:
        return {"status": "draining", "requests": service.client.num_open}
    if status.phase is Phase.READY:
        return {"status": "ready", "model": service.config.served_model_names[0]}
    body: dict[str, Any] = {
        "status": str(status.phase),
        "stage": status.loading.stage,
        "percent": round(100 * status.loading.fraction),
        "detail": status.loading.detail,
    }
    if status.failed is not None:
        body["detail"] = status.failed.message
    return body


def _model(service: Service, name: str) -> dict[str, Any]:
    """As OpenAI's and Anthropic's clients read it: their fields do not collide."""
    ready = service.client.ready
    created = datetime.datetime.fromtimestamp(service.created, datetime.UTC)
    return {
        "id": name,
        "type": "model",
        "display_name": name,
        "created_at": created.isoformat().replace("+00:00", "Z"),
        "object": "model",
        "created": service.created,
        "owned_by": "mserve",
        "root": service.config.served_model_names[0],
        "parent": None,
        "max_model_len": None if ready is None else ready.max_model_len,
    }
