"""The process of a rank other than 0: load a share of the model, then run every plan that comes.

``python -m mserve.engine.rank_main``, started by ``ranks`` and fed through standard input. Any
error ends the process, which rank 0 notices: ranks that disagree on what has run cannot go on.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from io import RawIOBase

import msgspec

from mserve.checkpoint import open_checkpoint
from mserve.core import StepPlan
from mserve.engine.load import device_of_rank, load_runner, use_threads
from mserve.engine.ranks import (
    HELLO,
    RankLaunch,
    leave_signals_to_the_front_end,
    raw_standard_input,
    read_frame,
    stay_on_this_machine,
)
from mserve.parallel import init_groups


def main() -> None:
    leave_signals_to_the_front_end()
    stay_on_this_machine()
    frames = raw_standard_input()
    frame = read_frame(frames)
    if frame is None:
        return
    launch = msgspec.msgpack.decode(frame, type=RankLaunch)
    plans: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(frames, plans), daemon=True).start()

    device = device_of_rank(launch.config, launch.rank)
    checkpoint = open_checkpoint(launch.config.model.path)
    kernels = use_threads(
        launch.config, checkpoint, device, launch.threads.count, launch.threads.cpus
    )
    sys.stdout.buffer.write(HELLO)
    sys.stdout.buffer.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody reads the pipe from here on
    groups = init_groups(
        launch.rank,
        launch.size,
        launch.init_method,
        expert_parallel=launch.config.parallel.enable_expert_parallel,
        backend="nccl" if device.type == "cuda" else "gloo",
    )
    runner = load_runner(
        checkpoint,
        launch.config,
        groups,
        device,
        launch.num_blocks,
        kernels,
        nodes=launch.threads.nodes,
    )
    decoder = msgspec.msgpack.Decoder(StepPlan)
    while True:
        runner.run(decoder.decode(plans.get()))


def _receive(frames: RawIOBase, plans: queue.SimpleQueue[bytes]) -> None:
    """Also the watch over rank 0: its end ends this process, even in the middle of a load."""
    while (frame := read_frame(frames)) is not None:
        plans.put(frame)
    os._exit(0)


if __name__ == "__main__":
    main()
