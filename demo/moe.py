"""Routed experts that can be trained: rows sorted by expert, one product per expert and half.

The router's choice is balanced by the correction bias, which the trainer moves; there is no extra
loss. Legend: T tokens, K experts per token, R = T * K rows, E experts, I their width.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from demo.pointwise import swiglu, weighted_swiglu
from demo.shape import DemoShape

if TYPE_CHECKING:
    from demo.model import Pass


class SparseMoe(nn.Module):
    def __init__(self, shape: DemoShape, matrix) -> None:
        super().__init__()
        self.shape = shape
        self.activation = (shape.swiglu_alpha, shape.swiglu_limit)
        hidden, width, shared = shape.hidden_size, shape.expert_size, shape.shared_size
        self.router = matrix(shape.num_experts, hidden)
        self.register_buffer("bias", torch.zeros(shape.num_experts))
        self.gate = matrix(shape.num_experts, width, hidden)
        self.up = matrix(shape.num_experts, width, hidden)
        self.down = matrix(shape.num_experts, hidden, width, scale=0.3)
        self.shared_gate = matrix(shared, hidden)
        self.shared_up = matrix(shared, hidden)
        self.shared_down = matrix(hidden, shared, scale=0.3)

    def forward(self, hidden: Tensor, run: Pass) -> Tensor:
        """[B, N, hidden_size] to the same."""
        tokens = hidden.flatten(0, 1)
        ids, weights = self.route(tokens)
        rows_by_expert = ids.flatten().argsort(stable=True)
        counts = torch.bincount(ids.flatten(), minlength=self.shape.num_experts)
        run.loads.append(counts)
        bounds = [0, *counts.cumsum(0).tolist()]
        rows = _Spread.apply(tokens, rows_by_expert, self.shape.experts_per_token)
        gate_up = torch.cat([self.gate, self.up], 1).to(run.dtype)
        both = _ExpertLinear.apply(rows, gate_up, bounds)
        weight = weights.flatten()[rows_by_expert, None]
        inner = weighted_swiglu(both, weight, *self.activation)
        outer = _ExpertLinear.apply(inner, self.down.to(run.dtype), bounds)
        routed = _Gather.apply(outer, rows_by_expert, self.shape.experts_per_token)
        return routed.view(hidden.shape) + self._shared(hidden, run.dtype)

    def route(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Expert numbers and fp32 weights, [T, K] each."""
        affinity = torch.sigmoid(F.linear(hidden.float(), self.router))
        ids = (affinity + self.bias).topk(self.shape.experts_per_token, -1).indices
        weights = affinity.gather(-1, ids)
        weights = weights / weights.sum(-1, keepdim=True)
        return ids, weights * self.shape.routed_scaling_factor

    def _shared(self, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        both = F.linear(hidden, torch.cat([self.shared_gate, self.shared_up]).to(dtype))
        return F.linear(swiglu(both, *self.activation), self.shared_down.to(dtype))

    @torch.no_grad()
    def balance(self, counts: Tensor, rate: float) -> None:
        """Move the correction bias towards experts that got less than their share."""
        share = counts.float() / counts.sum()
        self.bias += rate * (1 / self.shape.num_experts - share).sign()


class _Spread(torch.autograd.Function):
    """Rows of ``x`` [T, ...] to [R, ...] in the order of experts. Its gradient gathers, where that
    of plain indexing would scatter one row after the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, per_token: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.per_token = per_token
        return x[order // per_token]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        return _sum_per_token(grad, order, ctx.per_token), None, None


class _Gather(torch.autograd.Function):
    """[R, ...] in the order of experts to the sum over each token's rows, [T, ...]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, per_token: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.per_token = per_token
        return _sum_per_token(x, order, per_token)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        return grad[order // ctx.per_token], None, None


def _sum_per_token(rows: Tensor, order: Tensor, per_token: int) -> Tensor:
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return rows[place].unflatten(0, (-1, per_token)).sum(1)


class _ExpertLinear(torch.autograd.Function):
    """Rows ``bounds[e]:bounds[e + 1]`` of ``x`` times ``weight[e].T``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bounds: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bounds = bounds
        out = x.new_empty(len(x), weight.shape[1])
        for expert, (start, end) in enumerate(itertools.pairwise(bounds)):
            torch.mm(x[start:end], weight[expert].t(), out=out[start:end])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
        for expert, (start, end) in enumerate(zip(ctx.bounds, ctx.bounds[1:], strict=False)):
            torch.mm(grad[start:end], weight[expert], out=grad_x[start:end])
            torch.mm(grad[start:end].t(), x[start:end], out=grad_weight[expert])
        return grad_x, grad_weight, None
