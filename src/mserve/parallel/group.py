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

    def broadcast_bytes(self, data: bytes) -> bytes:
        """Rank 0's ``data`` on every rank; what other ranks pass is ignored."""
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

    def broadcast_bytes(self, data: bytes) -> bytes:
        return data


_HEADER_BYTES = 4096  # a step plan of a few hundred decoding rows fits, so one message carries it
_LENGTH_BYTES = 8


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

    def broadcast_bytes(self, data: bytes) -> bytes:
        # [ length | data ... ] in one message of fixed size, and a second one if it does not fit.
        room = _HEADER_BYTES - _LENGTH_BYTES
        if self.rank == 0:
            start = len(data).to_bytes(_LENGTH_BYTES, "little") + data[:room]
            header = _as_tensor(start.ljust(_HEADER_BYTES, b"\0"))
        else:
            header = torch.empty(_HEADER_BYTES, dtype=torch.uint8)
        start = _as_bytes(self.broadcast(header))
        length = int.from_bytes(start[:_LENGTH_BYTES], "little")
        if length <= room:
            return start[_LENGTH_BYTES : _LENGTH_BYTES + length]
        if self.rank == 0:
            rest = _as_tensor(data[room:])
        else:
            rest = torch.empty(length - room, dtype=torch.uint8)
        return start[_LENGTH_BYTES:] + _as_bytes(self.broadcast(rest))


def _as_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _as_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


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
    timeout_s: float = 1800.0,
) -> Groups:
    """Meet the other ranks at ``init_method`` ("tcp://host:port" or "file:///path").

    Called once per process, before any model is built; with ``size`` 1 nothing is started.
    ``timeout_s`` bounds every later collective too, so it must outlast an idle server's wait.
    """
    if size == 1:
        return Groups()
    dist.init_process_group(
        backend,
        init_method=init_method,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )
    world = dist.group.WORLD
    assert world is not None
    everyone = RankGroup(world)
    return Groups(tensor=everyone, expert=everyone if expert_parallel else SoloGroup())


def close_groups() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()
