"""Messages between the front end and the engine, and the sockets that carry them.

Messages need msgspec alone, and are all that the scheduler and the engine's loop import. What
carries them (zmq, asyncio) is loaded when it is first asked for, so that the engine also runs,
and is tested, where only torch is installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mserve.wire.messages import (
    Abort,
    EngineLaunch,
    EngineStats,
    Failed,
    FromEngine,
    Loading,
    Outputs,
    Ready,
    Shutdown,
    Submit,
    ToEngine,
    decode_from_engine,
    decode_to_engine,
    encode,
    encode_launch,
    read_launch,
)

if TYPE_CHECKING:
    from mserve.wire.client import (
        EngineClient,
        EngineObserver,
        EngineStatus,
        OutputStream,
        Phase,
        merged,
        not_ready_message,
        now_s,
    )
    from mserve.wire.link import Link, SocketLink
    from mserve.wire.local import LocalLink, LocalPort, local_pair
    from mserve.wire.port import EnginePort

__all__ = [
    "Abort",
    "EngineClient",
    "EngineLaunch",
    "EngineObserver",
    "EnginePort",
    "EngineStats",
    "EngineStatus",
    "Failed",
    "FromEngine",
    "Link",
    "Loading",
    "LocalLink",
    "LocalPort",
    "OutputStream",
    "Outputs",
    "Phase",
    "Ready",
    "Shutdown",
    "SocketLink",
    "Submit",
    "ToEngine",
    "decode_from_engine",
    "decode_to_engine",
    "encode",
    "encode_launch",
    "local_pair",
    "merged",
    "not_ready_message",
    "now_s",
    "read_launch",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for file in ("client", "link", "local", "port"):
            carrier = import_module(f"mserve.wire.{file}")
            if hasattr(carrier, name):
                return getattr(carrier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
