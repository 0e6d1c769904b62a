"""Speed of the native CPU kernels against this machine's read bandwidth, measured in the same run.

    python benchmarks/kernels.py [--threads N] [--repeats N] [--preset m2-bench|m3-bench|m2|m3]
                                 [--form plain|mxfp8|fp8|int8 ...]

Weights and caches are rotated through more memory than the caches hold, as in decoding. Each
figure is the best of many short runs, which on a shared machine is the only one that repeats;
`of read` is bytes per second over the bandwidth of reading alone, interleaved with the kernels.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mserve.kernels import (
    Fp8BlockMatrix,
    GatedActivation,
    Int8Matrix,
    Matrix,
    Mxfp8Matrix,
    native,
    uninitialized,
)

ROTATED_BYTES = 512 << 20
READ_BYTES = 8 << 20
BF16 = torch.bfloat16
FP8 = torch.float8_e4m3fn
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shape:
    """One layer of a model."""

    hidden: int
    heads: int
    groups: int
    experts: int
    chosen: int
    inner: int
    shared: int
    sparse: bool


SHAPES = {
    "m2-bench": Shape(1024, 16, 4, 32, 8, 512, 0, False),
    "m3-bench": Shape(1024, 16, 4, 32, 4, 512, 512, True),
    "m2": Shape(3072, 48, 8, 16, 8, 1536, 0, False),
    "m3": Shape(6144, 64, 4, 16, 4, 3072, 3072, True),
}
HEAD = 128
FORMS = ("plain", "mxfp8", "fp8", "int8")


class Bench:
    """Best times, with a plain read of fresh memory between the runs."""

    def __init__(self, threads: int, repeats: int) -> None:
        self.repeats = repeats
        native.set_num_threads(threads)
        # In pieces as short as the kernels, so that both find the same quiet moments.
        self.pieces = copies(READ_BYTES // 2)
        self.best_read_s = float("inf")

    def read_bandwidth(self) -> float:
        return READ_BYTES / self.best_read_s

    def best_s(self, run: Callable[[int], object]) -> float:
        best = float("inf")
        for number in range(self.repeats):
            start = time.perf_counter()
            run(number)
            best = min(best, time.perf_counter() - start)
            start = time.perf_counter()
            native.read(self.pieces[number % len(self.pieces)])
            self.best_read_s = min(self.best_read_s, time.perf_counter() - start)
        return best

    def show(self, name: str, seconds: float, num_bytes: float, operations: float) -> None:
        rate = num_bytes / seconds
        print(
            f"{name:34} {seconds * 1e6:10.0f} us {rate / 1e9:8.1f} GB/s "
            f"{rate / self.read_bandwidth():7.0%} of read {operations / seconds / 1e9:8.0f} GF/s"
        )


def copies(*shape: int) -> torch.Tensor:
    """As many tensors of ``shape`` as make up the rotated bytes, at least two."""
    num_bytes = 2 * int(torch.tensor(shape).prod())
    count = max(2, ROTATED_BYTES // num_bytes)
    return uninitialized((count, *shape), BF16, CPU).uniform_(-0.05, 0.05)


@dataclass(frozen=True)
class Weights:
    """Many equal matrices, or stacks of them, and the bytes of one value with its scale."""

    matrices: list[Matrix]
    value_bytes: float

    def __getitem__(self, number: int) -> Matrix:
        return self.matrices[number % len(self.matrices)]


def weights(form: str, *shape: int, part_rows: tuple[int, ...] = ()) -> Weights:
    """Rotated bytes' worth of matrices ``shape``; ``part_rows`` as block FP8 wants them."""
    if form == "plain":
        return Weights(list(copies(*shape)), 2)
    *experts, rows, width = shape
    count = max(2, ROTATED_BYTES // int(torch.tensor(shape).prod()))
    if form == "int8":
        values = uninitialized((count, *shape), torch.int8, CPU).random_(-128, 128)
        factors = torch.rand((count, *experts, rows))
        pairs = zip(values, factors, strict=True)
        return Weights([Int8Matrix(*pair) for pair in pairs], 1 + 4 / width)
    # as weights fill a block's range: few are subnormal, which costs where floats have to hold them
    codes = uninitialized((count, *shape), FP8, CPU)
    for matrix in codes:
        matrix.copy_(torch.randn(shape).mul_(110).clamp_(-448, 448))
    if form == "mxfp8":
        scales = torch.randint(110, 120, (count, *experts, rows, width // 32), dtype=torch.uint8)
        matrices = [Mxfp8Matrix(*pair) for pair in zip(codes, scales, strict=True)]
        return Weights(list(matrices), 1 + 1 / 32)
    heights = part_rows or (rows,)
    blocks = sum(-(-height // 128) for height in heights)
    factors = torch.rand((count, *experts, blocks, -(-width // 128)))
    pairs = zip(codes, factors, strict=True)
    return Weights([Fp8BlockMatrix(*pair, heights) for pair in pairs], 1 + 4 / 128**2)


def bench_linear(bench: Bench, shape: Shape, form: str) -> None:
    outer = (shape.heads + 2 * shape.groups) * HEAD
    stored = weights(form, outer, shape.hidden)
    for rows in (1, 2, 4, 8, 16, 64, 256):
        x = torch.randn(rows, shape.hidden).to(BF16)
        seconds = bench.best_s(lambda i, x=x: native.linear(x, stored[i]))
        size = outer * shape.hidden
        name = f"{form} linear {rows} x {shape.hidden} -> {outer}"
        bench.show(name, seconds, stored.value_bytes * size, 2 * rows * size)


def bench_experts(bench: Bench, shape: Shape, form: str) -> None:
    halves = (shape.inner, shape.inner)
    gate_up = weights(form, shape.experts, 2 * shape.inner, shape.hidden, part_rows=halves)
    down = weights(form, shape.experts, shape.hidden, shape.inner)
    shared = None
    if shape.shared:
        shared = (
            weights(form, 2 * shape.shared, shape.hidden, part_rows=(shape.shared,) * 2),
            weights(form, shape.hidden, shape.shared),
        )
    activation = GatedActivation("silu")
    for rows in (1, 4, 16, 256):
        x = torch.randn(rows, shape.hidden).to(BF16)
        choices = [torch.randperm(shape.experts)[: shape.chosen].sort().values for _ in range(rows)]
        ids = torch.stack(choices)
        shares = torch.rand(rows, shape.chosen)

        def run(i: int, x=x, ids=ids, shares=shares) -> None:
            both = shared and (shared[0][i], shared[1][i])
            native.run_experts(x, ids, shares, gate_up[i], down[i], activation, 0, both, BF16)

        size = 3 * shape.hidden
        read = size * (len(ids.unique()) * shape.inner + shape.shared)
        work = size * rows * (shape.chosen * shape.inner + shape.shared)
        name = f"{form} experts, {rows} tokens"
        bench.show(name, bench.best_s(run), gate_up.value_bytes * read, 2 * work)


def bench_attention(bench: Bench, shape: Shape, context: int, length: int) -> None:
    num_blocks = context // 128
    cache = copies(num_blocks, 2, shape.groups, 128, HEAD)
    index_keys = copies(num_blocks, 1, 128, HEAD)
    blocks = torch.randperm(num_blocks)[None]
    positions = torch.arange(context - length, context)[None]
    query = torch.randn(1, length, shape.heads, HEAD).to(BF16)
    place = (blocks, positions)

    def planes(i: int) -> tuple[torch.Tensor, torch.Tensor]:
        one = cache[i % len(cache)]
        return one[:, 0], one[:, 1]

    seconds = bench.best_s(lambda i: native.paged_attention(query, *planes(i), *place, 0.1))
    name = f"{length} tokens at {context}"
    keys = context * shape.groups * HEAD * 2
    bench.show(
        f"full attention, {name}", seconds, 2 * keys, 4 * HEAD * shape.heads * length * context
    )
    if not shape.sparse:
        return
    rule = {"topk_blocks": 16, "local_blocks": 1, "init_blocks": 0}
    index_query = torch.randn(1, length, shape.groups, HEAD).to(BF16)
    seconds = bench.best_s(
        lambda i: native.select_blocks(index_query, index_keys[i % len(index_keys)], *place, **rule)
    )
    work = 2 * HEAD * shape.groups * length * context
    bench.show(f"block selection, {name}", seconds, context * HEAD * 2, work)
    chosen = native.select_blocks(index_query, index_keys[0], *place, **rule)
    seconds = bench.best_s(
        lambda i: native.sparse_attention(query, *planes(i), *place, chosen, 0.1)
    )
    seen = min(context, 16 * 128)
    bench.show(
        f"sparse attention, {name}",
        seconds,
        seen * shape.groups * HEAD * 4,
        4 * HEAD * shape.heads * length * seen,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=SHAPES, default="m3-bench")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--form", nargs="+", choices=FORMS, default=FORMS)
    options = parser.parse_args()
    torch.manual_seed(0)
    shape = SHAPES[options.preset]
    bench = Bench(options.threads, options.repeats)
    print(f"{options.preset}: {native.isa()}, {options.threads} threads")
    for form in options.form:
        bench_linear(bench, shape, form)
        bench_experts(bench, shape, form)
    bench_attention(bench, shape, 4096, 1)
    bench_attention(bench, shape, 32768, 1)
    bench_attention(bench, shape, 4096, 512)
    print(f"plain read: {bench.read_bandwidth() / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
