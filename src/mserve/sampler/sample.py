"""Logits to tokens: every row by its own rules, all rows at once.

    penalties, bias, forbidden ids, grammars -> temperature -> top_k -> top_p -> min_p -> one draw

A row's token depends on its logits, its parameters and one uniform number, never on the other
rows. Knows logits and sampling numbers; does not know requests, plans or ranks, or how a row is
drawn (``kernels``).

Row letters: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mserve.kernels import DrawRules, draw
from mserve.sampler.penalties import LogitEdit, edited


@dataclass(frozen=True, slots=True)
class SamplingInputs(DrawRules):
    """Rules of every row, and what changes their logits first."""

    edits: Sequence[LogitEdit] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """``token_ids`` int64 [R]; ``failed`` bool [R] marks rows whose logits are not numbers or
    allow no token, where the id means nothing."""

    token_ids: Tensor
    failed: Tensor


def sample(logits_RV: Tensor, inputs: SamplingInputs) -> Sampled:
    """One token per row of fp32 logits, which are unchanged afterwards."""
    with edited(logits_RV, inputs.edits):
        highest_R, token_ids = draw(logits_RV, inputs)
        failed = ~torch.isfinite(highest_R)
        return Sampled(token_ids.masked_fill_(failed, 0), failed)
