"""The wire: both pairs of ends carry the same messages, and an open request always ends once."""

from __future__ import annotations

import asyncio
import io
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.core import (
    EngineConfig,
    FinishReason,
    ModelConfig,
    NotReadyError,
    QueueFullError,
    Request,
    RequestOutput,
    SamplingParams,
    TokenLogprobs,
)
from mserve.testing.fake_engine import FakeEngine, Script
from mserve.wire import (
    Abort,
    EngineClient,
    EngineLaunch,
    EnginePort,
    EngineStats,
    EngineStatus,
    LocalPort,
    Outputs,
    Phase,
    Ready,
    Shutdown,
    SocketLink,
    Submit,
    encode,
    encode_launch,
    local_pair,
    merged,
    read_launch,
)

READY = Ready(max_model_len=64, vocab_size=512, num_blocks=8, max_num_seqs=2, max_waiting=1)


class Seen:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.finished: list[str] = []

    def status_changed(self, status: EngineStatus) -> None:
        self.phases.append(status.phase)

    def step_done(self, stats: EngineStats) -> None:
        pass

    def request_finished(self, output: RequestOutput) -> None:
        self.finished.append(output.request_id)


def request(name: str, **sampling: Any) -> Request:
    return Request(request_id=name, prompt_token_ids=[1, 2, 3], sampling=SamplingParams(**sampling))


def run(scenario: Callable[[EngineClient, LocalPort, Seen], Awaitable[None]]) -> None:
    """Play a scenario with a client whose engine is the scenario's own hand on the port."""

    async def play() -> None:
        link, port = local_pair()
        seen = Seen()
        client = EngineClient(seen)
        client.attach(link)
        port.send(READY)
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await scenario(client, port, seen)

    asyncio.run(play())


def output(name: str, *token_ids: int, finish: FinishReason | None = None) -> RequestOutput:
    return RequestOutput(request_id=name, new_token_ids=list(token_ids), finish_reason=finish)


def test_launch_is_read_from_a_stream_that_stays_open() -> None:
    launch = EngineLaunch(EngineConfig(model=ModelConfig(path="x")), "ipc://a", "ipc://b")
    stream = io.BytesIO(encode_launch(launch) + b"more")
    assert read_launch(stream) == launch
    assert stream.read() == b"more"
    with pytest.raises(EOFError):
        read_launch(io.BytesIO(encode_launch(launch)[:-1]))


@pytest.fixture
def link_and_port() -> Iterator[tuple[SocketLink, EnginePort]]:
    link = SocketLink()
    with EnginePort(link.inbox, link.outbox) as port:
        yield link, port
    link.close()
    assert not Path(link.inbox.removeprefix("ipc://")).parent.exists()


def test_sockets_carry_a_request_there_and_its_tokens_back(
    link_and_port: tuple[SocketLink, EnginePort],
) -> None:
    link, port = link_and_port
    folder = Path(link.inbox.removeprefix("ipc://")).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    engine = FakeEngine(Script(), port)

    def live() -> None:
        engine.load()
        engine.serve()

    thread = threading.Thread(target=live)

    async def play() -> list[int]:
        client = EngineClient(Seen())
        client.attach(link)
        thread.start()
        while client.ready is None:
            await asyncio.sleep(0.005)
        stream = client.submit([request("a", max_tokens=5)])
        tokens = [token async for part in stream for token in part.new_token_ids]
        client.shutdown()
        await asyncio.to_thread(thread.join)
        return tokens

    assert asyncio.run(play()) == [1, 2, 3, 1, 2]


def test_junk_is_dropped_and_the_next_message_heard(
    link_and_port: tuple[SocketLink, EnginePort], caplog: pytest.LogCaptureFixture
) -> None:
    link, port = link_and_port
    context = zmq.Context()
    push = context.socket(zmq.PUSH)
    push.connect(link.outbox)
    for junk in (b"", b"\x80\x04\x95junk", b"\xff" * 100, encode(Shutdown(1.0))):
        push.send(junk)
    push.send(encode(READY))
    link._push.send(b"junk")
    link.send(Abort(["a"]))

    async def play() -> None:
        client = EngineClient(Seen())
        client.attach(link)
        async with asyncio.timeout(10):
            while client.ready is None:
                await asyncio.sleep(0.005)

    with caplog.at_level(logging.WARNING):
        asyncio.run(play())
        messages = port.poll(5.0)
        while not messages:
            messages = port.poll(5.0)
    context.destroy(linger=0)
    assert messages == [Abort(["a"])]
    assert sum("no message" in record.message for record in caplog.records) == 5


def test_outputs_merge_while_the_reader_is_busy() -> None:
    async def scenario(client: EngineClient, port: LocalPort, seen: Seen) -> None:
        stream = client.submit([request("a"), request("b")])
        for token in range(3):
            port.send(Outputs([output("a", token), output("b", 9)], EngineStats()))
        await asyncio.sleep(0)
        assert (await anext(stream)).new_token_ids == [0, 1, 2]
        port.send(Outputs([output("a", 3, finish=FinishReason.LENGTH)], EngineStats()))
        port.send(Outputs([output("b", 9, finish=FinishReason.STOP)], EngineStats()))
        await asyncio.sleep(0)
        rest = {part.request_id: part async for part in stream}
        assert rest["a"].new_token_ids == [3]
        assert rest["b"].new_token_ids == [9, 9, 9, 9]
        assert rest["b"].finish_reason is FinishReason.STOP
        assert client.num_open == 0
        assert seen.finished == ["a", "b"]

    run(scenario)


def test_closing_says_abort_before_it_returns() -> None:
    async def scenario(client: EngineClient, port: LocalPort, seen: Seen) -> None:
        stream = client.submit([request("a"), request("b")])
        port.send(Outputs([output("b", 1, finish=FinishReason.STOP)], EngineStats()))
        await asyncio.sleep(0)
        stream.close()
        submit, abort = port.poll()
        assert isinstance(submit, Submit)
        assert abort == Abort(["a"])
        stream.close()
        assert port.poll() == []
        assert [part async for part in stream] == []
        port.send(Outputs([output("a", finish=FinishReason.ABORT)], EngineStats()))
        await asyncio.sleep(0)
        assert client.num_open == 0

    run(scenario)


def test_closing_wakes_a_waiting_reader() -> None:
    async def scenario(client: EngineClient, port: LocalPort, seen: Seen) -> None:
        stream = client.submit([request("a")])

        async def read() -> list[RequestOutput]:
            return [part async for part in stream]

        reader = asyncio.create_task(read())
        await asyncio.sleep(0)
        stream.close()
        assert await reader == []

    run(scenario)


def test_dropping_one_leaves_the_others() -> None:
    async def scenario(client: EngineClient, port: LocalPort, seen: Seen) -> None:
        stream = client.submit([request("a"), request("b")])
        stream.drop("a")
        assert port.poll()[1:] == [Abort(["a"])]
        done = FinishReason.STOP
        port.send(Outputs([output("a", 1), output("b", 2, finish=done)], EngineStats()))
        assert [part.request_id async for part in stream] == ["b"]

    run(scenario)


def test_a_dead_engine_ends_every_request_once() -> None:
    async def scenario(client: EngineClient, port: LocalPort, seen: Seen) -> None:
        streams = [client.submit([request(name)]) for name in ("a", "b")]
        client.detach("it died")
        for stream in streams:
            (last,) = [part async for part in stream]
            assert last.finish_reason is FinishReason.ERROR
            assert last.error_code == "engine_restarting"
        assert seen.finished == ["a", "b"]
        assert client.status.phase is Phase.RESTARTING
        with pytest.raises(NotReadyError):
            client.submit([request("c")])
        port.send(READY)  # of the dead engine: nobody listens
        await asyncio.sleep(0)
        assert client.ready is None

    run(scenario)


def test_the_queue_bound_is_kept_here() -> None:
    async def scenario(client: EngineClient, port: LocalPort, seen: Seen) -> None:
        client.submit([request("a"), request("b")])
        stream = client.submit([request("c")])
        with pytest.raises(QueueFullError):
            client.submit([request("d")])
        stream.close()
        client.submit([request("d")])

    run(scenario)


PARTS = st.lists(
    st.tuples(st.lists(st.integers(0, 9), max_size=3), st.booleans()), min_size=1, max_size=6
)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(PARTS)
def test_merging_loses_nothing(parts: list[tuple[list[int], bool]]) -> None:
    with_logprobs = parts[0][1]
    outputs = [
        RequestOutput(
            request_id="a",
            new_token_ids=list(ids),
            logprobs=[TokenLogprobs(i, -1.0, 1, []) for i in ids] if with_logprobs else None,
            num_cached_tokens=7 if number == 0 else 0,
            finish_reason=FinishReason.LENGTH if number == len(parts) - 1 else None,
        )
        for number, (ids, _) in enumerate(parts)
    ]
    whole = outputs[0]
    for part in outputs[1:]:
        whole = merged(whole, part)
    expected = [token for ids, _ in parts for token in ids]
    assert whole.new_token_ids == expected
    assert [entry.token_id for entry in whole.logprobs or []] == (expected if with_logprobs else [])
    assert whole.num_cached_tokens == 7
    assert whole.finish_reason is FinishReason.LENGTH
