"""How this rank stores its matrices: which format each has, and the empty weights to fill.

Knows which formats there are and which parts of a checkpoint may share a store. Does not know any
one of them, or what a layer does with its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch

from mserve.checkpoint import QuantSpec, WeightFormat
from mserve.weights.fp8_block import Fp8BlockWeight
from mserve.weights.int8 import Int8Weight
from mserve.weights.int8_static import Int8StaticWeight
from mserve.weights.mxfp8 import Mxfp8Weight
from mserve.weights.plain import PlainWeight
from mserve.weights.weight import Assembly, Joined, Part, Separate, Weight


class _Format(Protocol):
    def empty(self, assembly: Assembly, dtype: torch.dtype, device: torch.device) -> Weight: ...


_FORMATS: dict[WeightFormat, _Format] = {
    "plain": PlainWeight,
    "mxfp8": Mxfp8Weight,
    "fp8": Fp8BlockWeight,
    "int8": Int8Weight,
    "int8_static": Int8StaticWeight,
}


@dataclass(frozen=True, slots=True)
class Storage:
    """Makes unset weights. ``dtype`` is that of activations and of what is not quantized."""

    quantization: QuantSpec
    dtype: torch.dtype
    device: torch.device

    def matrix(self, *parts: Part) -> Weight:
        """[N, K]: the parts' rows one below the other, in one store where their formats agree."""
        runs = (tuple(run) for _, run in groupby(parts, self._format_of))
        members = tuple(self._empty((run,), stacked=False) for run in runs)
        return members[0] if len(members) == 1 else Joined(members)

    def stack(self, experts: Sequence[Sequence[Part]]) -> Weight:
        """[E, N, K]: one matrix per expert, in one store where all formats agree."""
        kinds = {self._format_of(part) for parts in experts for part in parts}
        if len(kinds) > 1:
            return Separate(tuple(self.matrix(*parts) for parts in experts))
        return self._empty(tuple(map(tuple, experts)), stacked=True)

    def _format_of(self, part: Part) -> WeightFormat:
        return self.quantization.format_of(part.source)

    def _empty(self, experts: tuple[tuple[Part, ...], ...], *, stacked: bool) -> Weight:
        """Unset, of parts that all have the format of the first."""
        assembly = Assembly(experts, stacked, self.quantization.on_load)
        kind = self._format_of(experts[0][0])
        return _FORMATS[kind].empty(assembly, self.dtype, self.device)
