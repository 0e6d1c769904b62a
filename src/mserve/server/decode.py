"""A request's body: read within bounds, decoded into its schema, nothing dropped silently.

Unknown fields are tolerated, since clients of every provider meet here, but they are listed in a
response header. Knows JSON and HTTP bodies. Does not know what fields mean.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from mserve.core import RequestError
from mserve.server.errors import HTTPError
from mserve.server.off_loop import off_loop_if_long
from mserve.server.schema import HARMLESS

MAX_BODY_BYTES = 32 << 20
BODY_TIMEOUT_S = 30.0
IGNORED_HEADER = "x-mserve-ignored"
WARNING_HEADER = "x-mserve-warning"

_MAX_HEADER_CHARS = 1024
_MAX_NOTICE_CHARS = 200

T = TypeVar("T", bound=msgspec.Struct)


async def read_body(request: Request) -> bytes:
    """Raises ``HTTPError`` 415, 413 or 408."""
    content_type = request.headers.get("content-type", "application/json")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise HTTPError(415, "the body must be JSON: send content-type: application/json")
    too_large = HTTPError(413, f"the body is larger than {MAX_BODY_BYTES >> 20} MB")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_BODY_BYTES:
                    raise too_large
    except TimeoutError:
        message = f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s"
        raise HTTPError(408, message) from None
    except ClientDisconnect:
        raise HTTPError(408, "the client left before its body had arrived") from None
    return bytes(body)


async def read_request(http: Request, schema: type[T]) -> tuple[T, list[str]]:
    """The body of ``http``, as ``decode`` gives it."""
    body = await read_body(http)
    return await off_loop_if_long(len(body), partial(decode, body, schema))


def decode(body: bytes, schema: type[T]) -> tuple[T, list[str]]:
    """The request, and the names of its fields that have no effect.

    Of a field that is there twice one value would win, and which one is a matter of the parser: a
    proxy in front may have checked the other. So it is refused. Clients whose strings are UTF-16
    cut characters in half; a half becomes U+FFFD, since refusing it would end the session.

    Raises ``RequestError`` naming the field that is wrong or not supported.
    """
    known = {field.encode_name for field in msgspec.structs.fields(schema)}
    repaired = _ESCAPE.sub(_whole, body) if _SURROGATE.search(body) else body
    notes = [] if repaired == body else ["half of a character"]
    body = repaired
    try:
        body.decode()
        fields = _top_level.decode(body)
        request = msgspec.json.decode(body, type=schema)
        _unique.decode(body.decode())
        unknown = {name: raw for name, raw in fields.items() if name not in known}
        for name, raw in unknown.items():
            _refuse_unless_harmless(name, raw)
    except UnicodeDecodeError:
        raise RequestError("the body is not valid UTF-8", code="invalid_json") from None
    except msgspec.ValidationError as error:
        raise _explained(error) from None
    except msgspec.DecodeError as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None
    return request, [*notes, *(name for name in unknown if name not in HARMLESS)]


def notice_headers(ignored: Sequence[str], warnings: Sequence[str] = ()) -> dict[str, str]:
    """What the caller should know beside the answer: places in the request that had no effect,
    and wishes that the model cannot meet."""
    headers = {}
    if ignored:
        headers[IGNORED_HEADER] = ", ".join(_header_safe(name) for name in sorted(ignored))
    if warnings:
        headers[WARNING_HEADER] = "; ".join(_header_safe(warning) for warning in warnings)
    return {name: value[:_MAX_HEADER_CHARS] for name, value in headers.items()}


def _header_safe(text: str) -> str:
    return "".join(char if " " <= char <= "~" else "?" for char in text[:_MAX_NOTICE_CHARS])


def _refuse_unless_harmless(name: str, raw: msgspec.Raw) -> None:
    harmless = HARMLESS.get(name)
    if harmless is None:
        return
    value: Any = msgspec.json.decode(raw)
    if value is not None and not harmless(value):
        raise RequestError(f"{name} is not supported", param=name, code="unsupported_parameter")


def _explained(error: msgspec.ValidationError) -> RequestError:
    """msgspec says "Expected `int | null`, got `str` - at `$.n`": the same in JSON's words."""
    message, _, path = str(error).partition(" - at ")
    for ours, json_name in _JSON_NAMES.items():
        message = re.sub(rf"\b{ours}\b", json_name, message)
    path = path.strip("`").removeprefix("$").removeprefix(".")
    missing = re.search(r"missing required field `(\w+)`", message)
    param = ".".join(filter(None, [path, missing.group(1) if missing else ""])) or None
    message = message[:1].lower() + message[1:]
    if param is None and "`object`" in message:
        return RequestError(f"the body must be a JSON object: {message}", code="invalid_json")
    return RequestError(f"{param}: {message}" if param else message, param=param)


def _whole(escape: re.Match[bytes]) -> bytes:
    return rb"\ufffd" if escape["half"] else escape[0]


def _check_unique(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise RequestError(
                f"{name[:100]} is there twice", param=name[:100], code="invalid_json"
            )
        seen.add(name)


# Numbers are not of interest, so they are not made.
_unique = json.JSONDecoder(
    object_pairs_hook=_check_unique, parse_int=len, parse_float=len, strict=False
)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPE = re.compile(  # whole pairs first, and no backslash that is escaped itself
    rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_top_level = msgspec.json.Decoder(dict[str, msgspec.Raw])
_JSON_NAMES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}
