"""Names of requests, and the way from an HTTP request to the service behind it."""

from __future__ import annotations

import uuid

from starlette.requests import Request

from mserve.server.service import Service


def new_id(kind: str, separator: str = "-") -> str:
    """Unique whatever clients call their requests."""
    return f"{kind}{separator}{uuid.uuid4().hex}"


def service_of(http: Request) -> Service:
    service = http.app.state.service
    assert isinstance(service, Service)
    return service
