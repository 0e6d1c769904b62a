"""What the front end and the engine process say to each other, as msgpack; no pickle, no text.

    front end ── Submit, Abort, Shutdown ──> engine
    front end <── Loading, Ready, Failed, Outputs ── engine

Knows the schema. Does not know sockets (``client``, ``port``) or what a message leads to.
"""

from __future__ import annotations

from typing import BinaryIO

import msgspec

from mserve.core import EngineConfig, Request, RequestOutput


class EngineLaunch(msgspec.Struct, frozen=True):
    """First words to a new engine process, on its standard input: what to load, where to talk.

    Standard input then stays open and silent; its end means that the front end is gone, and the
    engine exits.
    """

    config: EngineConfig
    inbox: str  # zmq address from which the engine pulls ToEngine
    outbox: str  # zmq address to which it pushes FromEngine


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    requests: list[Request]


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """The front end no longer wants these; each still gets its one finished output."""

    request_ids: list[str]


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Finish what runs and waits, up to ``drain_s`` seconds, then exit."""

    drain_s: float = 0.0


ToEngine = Submit | Abort | Shutdown


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    """Progress of start-up, for /readyz and the terminal."""

    stage: (
        str  # in order: "start", "checkpoint", "memory", "ranks" (if several), "weights", "warmup"
    )
    fraction: float  # of this stage, 0 to 1
    detail: str = ""
    report: list[str] = []  # lines for the terminal that are known now and open ``Ready.report``


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The engine accepts requests."""

    max_model_len: int
    vocab_size: int
    num_blocks: int
    max_num_seqs: int
    max_waiting: int
    report: list[str] = []  # start-up lines for the terminal: memory plan, kernels, threads


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Start-up was refused or the engine broke; the process exits after this."""

    message: str
    hint: str | None = None
    code: str = "engine_error"


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """State after a step, and totals since start. Names follow what /metrics exports."""

    num_running: int = 0
    num_waiting: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    preemptions_total: int = 0
    prefix_query_tokens_total: int = 0
    prefix_hit_tokens_total: int = 0
    steps_total: int = 0
    step_tokens: int = 0  # of the last step
    step_s: float = 0.0  # duration of the last step


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    """Everything one step produced, and the state it left."""

    outputs: list[RequestOutput]
    stats: EngineStats


FromEngine = Loading | Ready | Failed | Outputs


def encode(message: ToEngine | FromEngine) -> bytes:
    return _encoder.encode(message)


def decode_to_engine(data: bytes) -> ToEngine:
    """Raises ``msgspec.MsgspecError`` on junk; the receiver drops it and logs."""
    return _to_engine.decode(data)


def decode_from_engine(data: bytes) -> FromEngine:
    return _from_engine.decode(data)


_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
_launch: msgspec.msgpack.Decoder[EngineLaunch] = msgspec.msgpack.Decoder(EngineLaunch)

_LENGTH_BYTES = 4


def encode_launch(launch: EngineLaunch) -> bytes:
    """A length in 4 big-endian bytes, then msgpack, so that the reader need not wait for the end
    of a stream that stays open."""
    body = _encoder.encode(launch)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def read_launch(stream: BinaryIO) -> EngineLaunch:
    """Blocks until the launch has arrived. Raises ``EOFError`` if the stream ends before."""
    length = int.from_bytes(_read_exactly(stream, _LENGTH_BYTES), "big")
    return _launch.decode(_read_exactly(stream, length))


def _read_exactly(stream: BinaryIO, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        piece = stream.read(num_bytes - len(data))
        if not piece:
            raise EOFError("the front end went away before it said what to load")
        data += piece
    return data
