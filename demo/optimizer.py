"""How parameters move: matrices by orthogonal steps (Muon), everything else by AdamW.

Muon replaces the momentum of a matrix by the nearest matrix whose singular values are all one, so
that rare directions learn as fast as common ones. It needs about half as many tokens here as AdamW.
Source of the method: Jordan et al. 2024; of the factor by shape: Liu et al. 2025.

State is plain tensors by name, so that it can be saved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from demo.model import fast_dtype

_MOMENTUM = 0.95
_BETAS = (0.9, 0.98)
_EPS = 1e-10
_ITERATION = (3.4445, -4.7750, 2.0315)  # singular values of 0.01 to 1 come near 1 in five rounds
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Rates:
    """Step sizes at the peak of the schedule."""

    matrix: float = 0.02
    vector: float = 4e-3
    index: float = 2e-3
    router: float = 1e-3  # a faster one soon sends every token to one expert
    weight_decay: float = 0.02  # of matrices, times the rate


class Optimizer:
    """The state of a model's parameters, in shared memory, so that each worker moves some."""

    def __init__(self, model: nn.Module, rates: Rates) -> None:
        self.parameters = dict(model.named_parameters())
        self.rates = rates
        self.state: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            self.state[f"{name}:mean"] = torch.zeros_like(parameter).share_memory_()
            if not is_muon(name, parameter):
                self.state[f"{name}:square"] = torch.zeros_like(parameter).share_memory_()

    def shares(self, workers: int) -> list[list[str]]:
        """Names for each worker, about the same work for all."""
        shares: list[list[str]] = [[] for _ in range(workers)]
        costs = [0] * workers
        ranked = sorted(self.parameters, key=lambda name: -_cost(name, self.parameters[name]))
        for name in ranked:
            least = costs.index(min(costs))
            shares[least].append(name)
            costs[least] += _cost(name, self.parameters[name])
        return shares

    @torch.no_grad()
    def move(self, name: str, gradient: Tensor, step: int, factor: float) -> None:
        """The ``step``-th step of one parameter, counted from 1, at ``factor`` times the rate."""
        parameter, mean = self.parameters[name], self.state[f"{name}:mean"]
        if is_muon(name, parameter):
            rate = factor * self.rates.matrix
            mean.lerp_(gradient, 1 - _MOMENTUM)
            ahead = gradient.lerp(mean, _MOMENTUM)
            shape_factor = max(1.0, parameter.shape[-2] / parameter.shape[-1]) ** 0.5
            parameter.mul_(1 - rate * self.rates.weight_decay)
            parameter.add_(orthogonal(ahead), alpha=-rate * shape_factor)
            return
        square = self.state[f"{name}:square"]
        mean.lerp_(gradient, 1 - _BETAS[0])
        square.lerp_(gradient.square(), 1 - _BETAS[1])
        spread = (square / (1 - _BETAS[1] ** step)).sqrt_().add_(_EPS)
        peak = self.rates.vector
        if _scaled(name):
            peak = self.rates.index if ".index." in name else self.rates.router
        parameter.addcdiv_(mean, spread, value=-factor * peak / (1 - _BETAS[0] ** step))


def is_muon(name: str, parameter: Tensor) -> bool:
    """Matrices inside layers, but the router and the index branch, whose scale has a meaning."""
    return name.startswith("layers.") and parameter.ndim >= 2 and not _scaled(name)


def _scaled(name: str) -> bool:
    return ".index." in name or name.endswith(".router")


def orthogonal(matrices: Tensor) -> Tensor:
    """[.., rows, columns] with all singular values near 1, by Newton and Schulz's iteration."""
    x = matrices.to(fast_dtype())
    turned = x.shape[-2] > x.shape[-1]
    if turned:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _ITERATION
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if turned else x).float()


def _cost(name: str, parameter: Tensor) -> int:
    """About how long a step takes, to divide parameters evenly."""
    if not is_muon(name, parameter):
        return parameter.numel()
    return parameter.numel() * min(parameter.shape[-2:]) // 4
