"""Which implementation of each op runs: chosen once at start, printed, and never changed silently.

    reference   torch, every device and dtype: what the other must equal
    native      C++ on the CPU, bf16 and fp32 activations, weights and caches of every form

The reference runs until ``choose_kernels`` is called, so a test or a script that wants the other
says so. Knows what exists for which device; does not know how any of it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from mserve.kernels import native
from mserve.kernels.activation import activate as activate_in_torch
from mserve.kernels.draw import draw as draw_in_torch
from mserve.kernels.embedding import embedding as embedding_in_torch
from mserve.kernels.linear import linear as linear_in_torch
from mserve.kernels.moe import gated_mlp as gated_mlp_in_torch
from mserve.kernels.moe import run_experts as run_experts_in_torch
from mserve.kernels.norm_rope import norm_rope as norm_rope_in_torch
from mserve.kernels.norm_rope import rms_norm_rope as rms_norm_rope_in_torch
from mserve.kernels.paged_attention import paged_attention as paged_attention_in_torch
from mserve.kernels.residual import residual_sum as residual_sum_in_torch
from mserve.kernels.rms_norm import gemma_rms_norm as gemma_rms_norm_in_torch
from mserve.kernels.rms_norm import mean_squares as mean_squares_in_torch
from mserve.kernels.rms_norm import rms_norm as rms_norm_in_torch
from mserve.kernels.rope import rope_angles as rope_angles_in_torch
from mserve.kernels.router import route as route_in_torch
from mserve.kernels.select_blocks import select_blocks as select_blocks_in_torch
from mserve.kernels.sparse_attention import sparse_attention as sparse_attention_in_torch
from mserve.kernels.write_kv import write_kv as write_kv_in_torch


class Op:
    """One op: calling it runs the implementation in use."""

    def __init__(self, reference: Callable[..., Any], native: Callable[..., Any]) -> None:
        self.name = reference.__name__
        self.reference = reference
        self.native = native
        self.run = reference

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


linear = Op(linear_in_torch, native.linear)
gated_mlp = Op(gated_mlp_in_torch, native.gated_mlp)
run_experts = Op(run_experts_in_torch, native.run_experts)
route = Op(route_in_torch, native.route)
rms_norm = Op(rms_norm_in_torch, native.rms_norm)
gemma_rms_norm = Op(gemma_rms_norm_in_torch, native.gemma_rms_norm)
norm_rope = Op(norm_rope_in_torch, native.norm_rope)
rms_norm_rope = Op(rms_norm_rope_in_torch, native.rms_norm_rope)
mean_squares = Op(mean_squares_in_torch, native.mean_squares)
rope_angles = Op(rope_angles_in_torch, native.rope_angles)
embedding = Op(embedding_in_torch, native.embedding)
activate = Op(activate_in_torch, native.activate)
residual_sum = Op(residual_sum_in_torch, native.residual_sum)
draw = Op(draw_in_torch, native.draw)
write_kv = Op(write_kv_in_torch, native.write_kv)
select_blocks = Op(select_blocks_in_torch, native.select_blocks)
paged_attention = Op(paged_attention_in_torch, native.paged_attention)
sparse_attention = Op(sparse_attention_in_torch, native.sparse_attention)

OPS = (
    linear,
    gated_mlp,
    run_experts,
    route,
    rms_norm,
    gemma_rms_norm,
    norm_rope,
    rms_norm_rope,
    mean_squares,
    rope_angles,
    embedding,
    activate,
    residual_sum,
    draw,
    write_kv,
    select_blocks,
    paged_attention,
    sparse_attention,
)


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """What runs, and in one line why nothing faster does.

    ``batch_invariant``: every op gives a row the same bits alone and in any batch or chunk. That
    of native ops is so by construction; a matrix product of torch chooses by its shape.
    """

    implementation: Literal["reference", "native"]
    line: str
    batch_invariant: bool = False
    pinned: bool = False  # every worker thread to a core


def find_kernels(device: torch.device, sizes: native.Sizes | None = None) -> KernelChoice:
    """The fastest implementation there is for ``device`` and a model of ``sizes``. Changes
    nothing."""
    if device.type != "cpu":
        return KernelChoice("reference", f"torch (no other kernels for {device.type} yet)")
    try:
        native.library()
    except native.NativeUnavailable as missing:
        return KernelChoice("reference", f"torch reference, slow: C++ kernels {missing}")
    reason = native.beyond_bounds(sizes) if sizes is not None else None
    if reason is not None:
        return KernelChoice("reference", f"torch reference, slow: C++ kernels {reason}")
    return KernelChoice("native", f"C++ {native.isa()}")


def choose_kernels(
    device: torch.device,
    threads: int,
    cpus: Sequence[int] = (),
    sizes: native.Sizes | None = None,
) -> KernelChoice:
    """Use the fastest implementation there is for ``device`` and a model of ``sizes``, on
    ``threads`` CPU threads, pinned to ``cpus`` if there is one for each."""
    choice = find_kernels(device, sizes)
    use_kernels(choice.implementation)
    if choice.implementation == "reference":
        return choice
    pinned = native.set_num_threads(threads, cpus) and len(cpus) > 0
    return KernelChoice("native", choice.line, batch_invariant=True, pinned=pinned)


def use_kernels(implementation: Literal["reference", "native"]) -> None:
    """Run every op by one implementation, which must be there."""
    if implementation == "native":
        native.library()
    for op in OPS:
        op.run = op.native if implementation == "native" else op.reference
