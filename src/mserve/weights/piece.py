"""The one word that models and the loader share: a part of a parameter and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import torch


class Receiver(Protocol):
    """What takes the rows of a tensor and keeps them in another form, or none of them."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def stores(self) -> tuple[torch.Tensor, ...]:
        """The tensors that it writes to."""
        ...

    def __getitem__(self, rows: slice) -> Self: ...

    def copy_(self, rows: torch.Tensor) -> object:
        """Take ``rows``, all of this destination's."""
        ...


Destination = torch.Tensor | Receiver


@dataclass(frozen=True, slots=True)
class Piece:
    """``destination`` (a part of a preallocated parameter) is filled from ``source[source_slice]``.

    ``source`` is a tensor's hub name without ``language_model.``; ``source_slice`` has one slice
    per dimension of that tensor, and the shapes are then equal. The dtype is the destination's.
    A destination may want its rows a multiple of ``rows_together`` at a time, all but the last.
    An ``optional`` piece is left out where the checkpoint has no such tensor.
    """

    destination: Destination
    source: str
    source_slice: tuple[slice, ...]
    rows_together: int = 1
    optional: bool = False

    @property
    def stores(self) -> tuple[torch.Tensor, ...]:
        """The tensors that loading it writes to."""
        kept = self.destination
        return (kept,) if isinstance(kept, torch.Tensor) else kept.stores
