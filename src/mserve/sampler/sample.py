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

import numpy as np
import torch
from torch import Tensor

from mserve.kernels import DrawRules, draw, highest
from mserve.sampler.penalties import LogitEdit, edited
from mserve.sampler.random import uniform


@dataclass(frozen=True, slots=True)
class SamplingInputs:
    """Per row [R]: float64 ``temperature`` (0 is greedy), ``top_p``, ``min_p``; int64 ``top_k``
    (0 keeps all), ``positions`` (output tokens before this one); ``seeds`` of 64 bits."""

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    seeds: np.ndarray
    positions: np.ndarray
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
        highest_R, token_ids = highest(logits_RV)
        drawn = np.flatnonzero(inputs.temperature > 0.0)
        if len(drawn):
            places = torch.from_numpy(drawn).to(logits_RV.device)
            token_ids[places] = draw(logits_RV, drawn, _rules(inputs, drawn, logits_RV.shape[1]))
        failed = ~torch.isfinite(highest_R)
        return Sampled(token_ids.masked_fill_(failed, 0), failed)


def _rules(inputs: SamplingInputs, drawn: np.ndarray, vocab: int) -> DrawRules:
    """Those of the rows ``drawn``."""
    top_k = inputs.top_k[drawn]
    return DrawRules(
        temperature=inputs.temperature[drawn],
        limit=np.where(top_k > 0, np.minimum(top_k, vocab), vocab),
        top_p=inputs.top_p[drawn],
        min_p=inputs.min_p[drawn],
        uniform=uniform(inputs.seeds[drawn], inputs.positions[drawn]),
    )
