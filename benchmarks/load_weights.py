"""How fast a checkpoint's weights come into memory, beside the same bytes read alone.

    python benchmarks/load_weights.py CHECKPOINT [--rounds 5] [--out ROWS.json]

A round reads every file of the checkpoint (as `cat` would, into one small buffer), then loads it as
a server does: mapped, copied and packed into fresh parameters. The first reading fills the page
cache and is not counted, so with enough memory neither waits for a disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from record import publish

from mserve.checkpoint import Checkpoint, open_checkpoint
from mserve.models import build_model
from mserve.parallel import Groups
from mserve.weights import load

_READ_BYTES = 1 << 20


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    checkpoint = open_checkpoint(options.checkpoint)
    files = sorted({tensor.file for tensor in checkpoint.tensors.values()})
    read_all(files)
    rows = []
    for number in range(options.rounds):
        read = timed_rate(lambda: read_all(files), sum(file.stat().st_size for file in files))
        loaded = timed_rate(lambda: load_all(checkpoint), weight_bytes(checkpoint))
        rows.append({"round": number, "read_bytes_per_s": read, "load_bytes_per_s": loaded})
        sys.stderr.write(f"round {number + 1} of {options.rounds} done\n")
    medians = {
        name: statistics.median(row[name] for row in rows)
        for name in ("read_bytes_per_s", "load_bytes_per_s")
    }
    content = {"weight_bytes": weight_bytes(checkpoint), "medians": medians, "rows": rows}
    publish(content, options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of loading a checkpoint.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def timed_rate(work, num_bytes: int) -> float:
    """Bytes per second."""
    start = time.perf_counter()
    work()
    return num_bytes / (time.perf_counter() - start)


def weight_bytes(checkpoint: Checkpoint) -> int:
    return sum(tensor.nbytes for tensor in checkpoint.tensors.values())


def read_all(files: list[Path]) -> None:
    buffer = bytearray(_READ_BYTES)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def load_all(checkpoint: Checkpoint) -> None:
    dtype = getattr(torch, checkpoint.spec.dtype)
    model = build_model(checkpoint.spec, Groups(), dtype, torch.device("cpu"))
    load(checkpoint, model.pieces())


if __name__ == "__main__":
    main()
