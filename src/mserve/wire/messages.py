"""What the front end and the engine process say to each other, as msgpack; no pickle, no text.

    front end ── Submit, Abort, Shutdown ──> engine
    front end <── Loading, Ready, Failed, Outputs ── engine

Knows the schema. Does not know sockets (``client``, ``port``) or what a message leads to.
"""

from __future__ import annotations

import msgspec

from mserve.core import Request, RequestOutput


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

    stage: str  # "checkpoint", "memory", "weights", "warmup"
    fraction: float  # of this stage, 0 to 1
    detail: str = ""


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
