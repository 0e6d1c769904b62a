"""One token per row of scores: the highest, or one drawn by chance.

    weights = exp((logits - highest) / temperature) -> top_k -> top_p -> min_p -> one draw

The draw inverts the cumulative weights in a fixed order, summed in fp64: by id for a row that keeps
the whole vocabulary, from the most likely on for a row that top_k or top_p cuts.
Knows logits and numbers; does not know requests, or what else may change a logit.

Row letters: R rows, V vocabulary, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mserve.kernels.random import uniform
from mserve.kernels.ranking import best

# A nucleus of a trained model rarely has more tokens. One that does costs a sort of its row.
_FIRST_CANDIDATES = 1024
# Logits worked on at once, 8 to 24 bytes of scratch each.
_CHUNK_LOGITS = 1 << 22


@dataclass(frozen=True, slots=True)
class DrawRules:
    """Per row [R]: float64 ``temperature`` (0 takes the highest), ``top_p``, ``min_p``; int64
    ``top_k`` (0 keeps all), ``positions`` (output tokens before this one); ``seeds`` of 64 bits."""

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    seeds: np.ndarray
    positions: np.ndarray


def draw(logits_RV: Tensor, rules: DrawRules) -> tuple[Tensor, Tensor]:
    """The highest of fp32 ``logits_RV`` [R], NaN in a row that has one, and a token id of each row
    [R] int64. Of equal logits the lower id is the higher. Where the highest is not finite the id
    means nothing."""
    highest_R, token_ids = logits_RV.max(dim=-1)
    vocab, device = logits_RV.shape[1], logits_RV.device
    drawn = rules.temperature > 0.0
    cut = (rules.top_p < 1.0) | ((rules.top_k > 0) & (rules.top_k < vocab))
    uniforms = uniform(rules.seeds, rules.positions)
    rows_per_chunk = max(1, _CHUNK_LOGITS // vocab)
    for rows, draw_rows in (
        (np.flatnonzero(drawn & ~cut), _by_id),
        (np.flatnonzero(drawn & cut), _by_rank),
    ):
        for first in range(0, len(rows), rows_per_chunk):
            chunk = rows[first : first + rows_per_chunk]
            parameters = _Parameters.of(rules, uniforms, chunk, vocab, device)
            index = torch.from_numpy(chunk).to(device)
            token_ids[index] = draw_rows(logits_RV[index], parameters)
    return highest_R, token_ids


@dataclass(frozen=True, slots=True)
class _Parameters:
    """The numbers of some rows as columns [R, 1] on the device. ``limit`` is top_k, or the
    vocabulary's size where all are kept."""

    temperature: Tensor
    limit: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor

    @classmethod
    def of(
        cls,
        rules: DrawRules,
        uniforms: np.ndarray,
        rows: np.ndarray,
        vocab: int,
        device: torch.device,
    ) -> _Parameters:
        limit = np.where(rules.top_k > 0, np.minimum(rules.top_k, vocab), vocab)
        arrays = (rules.temperature, limit, rules.top_p, rules.min_p, uniforms)
        return cls(*(torch.from_numpy(array[rows, None]).to(device) for array in arrays))

    def rows(self, index: Tensor) -> _Parameters:
        columns = (self.temperature, self.limit, self.top_p, self.min_p, self.uniform)
        return _Parameters(*(column[index] for column in columns))


def _by_id(logits_RV: Tensor, parameters: _Parameters) -> Tensor:
    """Draw from the whole vocabulary less what min_p drops, int64 [R]."""
    weights = _weights(logits_RV, logits_RV.amax(dim=-1, keepdim=True), parameters.temperature)
    weights.masked_fill_(weights < parameters.min_p, 0.0)
    return _inverted(weights, parameters.uniform)


def _by_rank(logits_RV: Tensor, parameters: _Parameters) -> Tensor:
    """Draw from the most likely tokens that top_k, top_p and min_p leave, int64 [R].

    Ranks as many candidates as nearly all rows need, then once more, all, for the rows left.
    """
    vocab = logits_RV.shape[1]
    highest = logits_RV.amax(dim=-1, keepdim=True)
    keeps_all = parameters.limit == vocab
    total = torch.zeros_like(parameters.top_p)
    whole = torch.nonzero(keeps_all[:, 0])[:, 0]
    if len(whole):
        weights = _weights(logits_RV[whole], highest[whole], parameters.temperature[whole])
        total[whole] = weights.sum(dim=-1, keepdim=True)

    count = min(vocab, _FIRST_CANDIDATES, int(parameters.limit.max()))
    token_ids, reached = _among(*best(logits_RV, count), parameters, total)
    settled = (parameters.limit <= count) | (keeps_all & (reached >= parameters.top_p * total))
    left = torch.nonzero(~settled[:, 0])[:, 0]
    if len(left):
        count = int(parameters.limit[left].max())
        ranked = best(logits_RV[left], count)
        token_ids[left] = _among(*ranked, parameters.rows(left), total[left])[0]
    return token_ids


def _among(
    values_RK: Tensor, ids_RK: Tensor, parameters: _Parameters, total: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw among ranked candidates: token ids [R], and the weight that all candidates have [R, 1].

    ``total`` [R, 1] is the weight of the whole vocabulary for rows without top_k; the others are
    measured against the top_k tokens that remain.
    """
    weights = _weights(values_RK, values_RK[:, :1], parameters.temperature)
    places = torch.arange(values_RK.shape[1], device=values_RK.device)
    weights.masked_fill_(places >= parameters.limit, 0.0)
    up_to = weights.cumsum(dim=-1)
    reached = up_to[:, -1:].clone()
    total = torch.where(total > 0.0, total, reached)
    # The nucleus is the shortest run of tokens that weighs top_p or more: a token is outside when
    # those before it already do. The first is never outside, since top_p > 0.
    before = torch.cat([torch.zeros_like(reached), up_to[:, :-1]], dim=-1)
    outside = (before >= parameters.top_p * total) & (parameters.top_p < 1.0)
    weights.masked_fill_(outside | (weights < parameters.min_p), 0.0)
    chosen = _inverted(weights, parameters.uniform)
    return ids_RK.gather(1, chosen[:, None])[:, 0], reached


def _weights(values: Tensor, highest: Tensor, temperature: Tensor) -> Tensor:
    """Probabilities relative to that of the most likely token, fp64. The difference comes first,
    so that no temperature overflows."""
    return values.double().sub_(highest).div_(temperature).exp_()


def _inverted(weights: Tensor, uniform: Tensor) -> Tensor:
    """The first place where the running sum of ``weights`` exceeds ``uniform`` [R, 1] of the total:
    a place of weight zero is never it. int64 [R]."""
    running = weights.cumsum(dim=-1)
    places = torch.searchsorted(running, uniform * running[:, -1:], right=True)
    return places[:, 0].clamp_(max=weights.shape[1] - 1)  # a failed row finds none
