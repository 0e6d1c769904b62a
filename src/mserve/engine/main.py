"""The engine process: ``python -m mserve.engine.main``, started by the front end.

Reads its ``EngineLaunch`` from standard input, starts, says so over the wire and serves. Exit
codes: 0 after a shutdown, 2 when start-up was refused, 1 for anything else. Knows the process:
signals, exit, the two ends of its life. Does not know how an engine starts (``startup``) or what
it does (``process``).
"""

from __future__ import annotations

import logging
import os
import sys
import threading

from mserve.core import SetupError
from mserve.engine.process import serve
from mserve.engine.ranks import leave_signals_to_the_front_end, raw_standard_input
from mserve.wire import EngineLaunch, EnginePort, Failed, Loading, read_launch

logger = logging.getLogger(__name__)


def main() -> int:
    leave_signals_to_the_front_end()
    logging.basicConfig(level=logging.INFO, format="engine: %(levelname)s %(name)s: %(message)s")
    try:
        launch = read_launch(sys.stdin.buffer)
    except EOFError:
        return 1
    threading.Thread(target=_leave_with_the_front_end, daemon=True).start()
    with EnginePort(launch.inbox, launch.outbox) as port:
        return _run(launch, port)


def _run(launch: EngineLaunch, port: EnginePort) -> int:
    port.send(Loading("start", 0.0))
    # Imported here because it brings torch, seconds during which the front end already knows
    # that this process lives.
    from mserve.engine.startup import start

    try:
        started = start(launch.config, port.send)
    except SetupError as error:
        port.send(Failed(error.message, error.hint, error.code))
        return 2
    except Exception:
        logger.exception("start-up failed")
        port.send(Failed("the engine could not start; its log says why"))
        return 1
    with started:
        started.watch_ranks(_leave_with_a_rank)
        serve(started.engine, port, started.ready)
    return 0


def _leave_with_the_front_end() -> None:
    """Standard input stays silent until the front end is gone; then nobody wants our answers."""
    stream = raw_standard_input()
    while stream.read(1024):
        pass
    os._exit(1)


def _leave_with_a_rank(rank: int) -> None:
    """Without one rank no step can run. The front end sees this process end and starts another."""
    logger.error("rank %d died; this engine ends with it", rank)
    os._exit(1)


if __name__ == "__main__":
    exit_code = main()
    # Everything is closed by now. Taking the interpreter and torch apart object by object would
    # hold up the end of the server by a second.
    logging.shutdown()
    os._exit(exit_code)
