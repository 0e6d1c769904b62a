"""The answer on its way out, at the level of ASGI: stalled readers and slow bodies."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from mserve.core import EngineError, MserveError
from mserve.server import decode, stream


async def forever(message: Message | None = None) -> Message:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def numbers() -> AsyncGenerator[bytes, None]:
    for number in range(1000):
        yield stream.event(number)


def test_a_reader_that_takes_nothing_is_treated_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STALLED_READER_S", 0.05)
    closed: list[bool] = []
    taken: list[Message] = []

    async def send(message: Message) -> None:
        taken.append(message)
        if len(taken) > 3:
            await forever()

    async def play() -> None:
        answer = stream.EventStream(numbers(), lambda: closed.append(True))
        await asyncio.wait_for(answer({"type": "http"}, forever, send), 10)

    asyncio.run(play())
    assert closed
    assert len(taken) == 4


@pytest.mark.parametrize("encode", [stream.event, stream.named_event])
def test_an_event_is_one_line_to_clients_that_split_text(
    encode: Callable[[dict[str, str]], bytes],
) -> None:
    payload = {"type": "delta", "text": "a\x85b\u2028c\u2029d\u2027\xc2\x0b\x1c\n\r"}
    *names, data, empty = encode(payload).decode().splitlines()
    assert (names, empty) in [([], ""), (["event: delta"], "")]
    assert json.loads(data.removeprefix("data: ")) == payload


def test_a_disconnect_closes_in_the_turn_that_hears_of_it() -> None:
    log: list[str] = []

    async def endless() -> AsyncGenerator[bytes, None]:
        await asyncio.Event().wait()
        yield b""

    async def play() -> None:
        gone = asyncio.Event()

        async def receive() -> Message:
            await gone.wait()
            log.append("heard")
            asyncio.get_running_loop().call_soon(log.append, "next turn")
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            pass

        answer = stream.EventStream(endless(), lambda: log.append("closed"))
        task = asyncio.create_task(answer({"type": "http"}, receive, send))
        await asyncio.sleep(0)
        gone.set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert log[:3] == ["heard", "closed", "next turn"]
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(play())


def test_a_failure_after_the_200_is_an_event_and_the_end() -> None:
    async def failing() -> AsyncGenerator[bytes, None]:
        yield stream.event(1)
        raise EngineError("it broke")

    sent: list[Any] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def play() -> None:
        answer = stream.EventStream(failing(), lambda: None)
        await asyncio.wait_for(answer({"type": "http"}, forever, send), 10)

    asyncio.run(play())
    assert [message["type"] for message in sent].count("http.response.start") == 1
    assert sent[-1]["body"].endswith(b"\n\ndata: [DONE]\n\n")
    assert b'"engine_error"' in sent[-1]["body"]
    assert sent[-1]["more_body"] is False


def test_a_body_that_does_not_come_is_a_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "BODY_TIMEOUT_S", 0.05)
    scope = {"type": "http", "method": "POST", "headers": [], "path": "/"}

    async def play() -> None:
        await asyncio.wait_for(decode.read_body(Request(scope, forever)), 10)

    with pytest.raises(MserveError) as caught:
        asyncio.run(play())
    assert (caught.value.status, caught.value.code) == (408, "request_timeout")


def test_the_front_end_loads_no_torch() -> None:
    code = (
        "import sys, mserve.server, mserve.cli.serve\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    environment = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
