"""The one word that models and the loader share: a part of a parameter and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Piece:
    """``destination`` (a view of a preallocated parameter) is filled from ``source[source_slice]``.

    ``source`` is a tensor's hub name without ``language_model.``; ``source_slice`` has one slice
    per dimension of that tensor, and the shapes are then equal. The dtype is the destination's.
    """

    destination: torch.Tensor
    source: str
    source_slice: tuple[slice, ...]
