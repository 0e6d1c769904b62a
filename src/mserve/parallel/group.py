"""A set of ranks that work on one tensor together, and the few verbs they need.

Knows torch.distributed. Does not know layers, or what is split: a layer asks its group for its
rank and size and never sees a world. One rank is a ``SoloGroup``: the same verbs, nothing to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist

from mserve.core import SetupError


class Group(Protocol):
    """Ranks 0 to ``size - 1``. Every verb is collective: all ranks call it in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place; returns ``tensor``."""
        ...

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Equal shards [..., width] of all ranks as [..., size * width], in rank order."""
        ...

    def gather(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """As ``all_gather``, on rank 0 only; None elsewhere."""
        ...

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's values in every rank's ``tensor``, in place; returns it."""
        ...


@dataclass(frozen=True, slots=True)
class SoloGroup:
    """The only rank there is."""

    rank: int = 0
    size: int = 1

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def gather(self, tensor: torch.Tensor) -> torch.Tensor | None:
        return tensor

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


class RankGroup:
    """Ranks of one torch.distributed process group."""

    def __init__(self, process_group: dist.ProcessGroup) -> None:
        self._group = process_group
        self.rank = dist.get_rank(process_group)
        self.size = dist.get_world_size(process_group)

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(tensor, group=self._group)
        return tensor

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        shards = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(shards, tensor.contiguous(), group=self._group)
        return torch.cat(shards, dim=-1)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor | None:
        shards = [torch.empty_like(tensor) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(tensor.contiguous(), shards, group_dst=0, group=self._group)
        return None if shards is None else torch.cat(shards, dim=-1)

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        dist.broadcast(tensor, group_src=0, group=self._group)
        return tensor


@dataclass(frozen=True, slots=True)
class Groups:
    """Who splits what, fixed at start.

    ``tensor`` splits heads, dense widths and the vocabulary. ``expert`` splits experts by id; a
    group of one leaves every expert on every rank, and ``tensor`` splits their widths instead.
    """

    tensor: Group = SoloGroup()
    expert: Group = SoloGroup()


def init_groups(
    rank: int,
    size: int,
    init_method: str,
    *,
    expert_parallel: bool = False,
    backend: str = "gloo",
    meeting_timeout_s: float = 60.0,
    step_timeout_s: float = 1800.0,
) -> Groups:
    """Meet the other ranks at ``init_method`` ("tcp://host:port" or "file:///path").

    Called once per process, before any model is built; with ``size`` 1 nothing is started.
    ``SetupError`` if not all have come within ``meeting_timeout_s``. ``step_timeout_s`` bounds
    every later collective, so the slowest rank's load must end within it.
    """
    if size == 1:
        return Groups()
    try:
        dist.init_process_group(
            backend,
            init_method=init_method,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=meeting_timeout_s),
        )
    except RuntimeError as error:  # the library's own types derive from it
        raise SetupError(
            f"the {size} ranks did not meet within {meeting_timeout_s:.0f} s",
            hint="one of them may have died; its log says why",
        ) from error
    # A group's time limit is fixed when it is made, and who comes late to the meeting is dead while
    # who comes late to a step may still be loading: hence two groups of the same ranks.
    everyone = RankGroup(dist.new_group(timeout=timedelta(seconds=step_timeout_s)))
    return Groups(tensor=everyone, expert=everyone if expert_parallel else SoloGroup())


def close_groups() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()
