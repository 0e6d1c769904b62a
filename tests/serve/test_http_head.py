"""What comes before a body: bounded in size, in number and in time, refused in the one shape."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn

from mserve.server import listen, protocol
from mserve.server.protocol import MAX_HEAD_BYTES, MAX_HEADERS, MAX_URL_BYTES, BoundedHttp

LINE = b"GET /livez HTTP/1.1\r\nhost: x\r\n"


def sent(address: tuple[str, int], pieces: list[bytes]) -> tuple[int, Any]:
    """Status and body of the answer; the connection must then be closed by the server."""
    answer = b""
    with socket.create_connection(address, timeout=20) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except (ConnectionResetError, BrokenPipeError):
            pass  # refused before all was sent
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    ("pieces", "status", "code"),
    [
        ([b"GET /" + b"a" * MAX_URL_BYTES + b" HTTP/1.1\r\nhost: x\r\n\r\n"], 414, "url_too_long"),
        ([b"GET /?"] + [b"a" * 60_000] * 3, 414, "url_too_long"),
        ([LINE + b"a: b\r\n" * MAX_HEADERS + b"\r\n"], 431, "headers_too_large"),
        ([LINE + b"a: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n"], 431, "headers_too_large"),
        ([LINE + b"a: "] + [b"b" * 60_000] * 3, 431, "headers_too_large"),
        ([b"\x16\x03\x01\x02\x00\r\n\r\n"], 400, "invalid_http"),
        ([b"GET  HTTP/9.9\r\n\r\n"], 400, "invalid_http"),
    ],
    ids=["url", "endless url", "many", "large", "endless header", "tls", "version"],
)
def test_heads_out_of_bounds(server: Any, pieces: list[bytes], status: int, code: str) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    got, body = sent((host, int(port)), pieces)
    assert (got, body["error"]["code"]) == (status, code)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert server.http.get("/livez").status_code == 200


def test_heads_within_bounds_pass(server: Any) -> None:
    headers = {f"x-{number}": "v" * 200 for number in range(MAX_HEADERS - 10)}
    assert server.http.get("/livez?" + "a" * 8000, headers=headers).status_code == 200
    # A body may be larger than a head, and the next request's head may come right behind it.
    large = {"prompt": "a", "max_tokens": 1, "user": "u" * 500_000}
    for _ in range(2):
        assert server.http.post("/v1/completions", json=large).status_code == 200


def test_a_head_behind_a_body_in_one_piece_passes(server: Any) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "a", "max_tokens": 1, "user": "u" * 100_000}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head + body + LINE)
        connection.sendall(b"connection: close\r\n\r\n")
        answers = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answers.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize("first", [b"", b"GET /livez HT"])
def test_a_head_that_does_not_come_is_not_waited_for(
    first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.05)

    async def scenario() -> tuple[int, Any]:
        listener = listen("127.0.0.1", 0)
        config = uvicorn.Config(_no_app, http=BoundedHttp, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            return await asyncio.to_thread(sent, listener.getsockname(), [first])
        finally:
            server.should_exit = True
            await serving

    status, body = asyncio.run(scenario())
    assert (status, body["error"]["code"]) == (408, "request_timeout")


async def _no_app(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    raise AssertionError("no request was complete")
