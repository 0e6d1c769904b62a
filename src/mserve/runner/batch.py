"""From a plan's spans and the rows' state to the inputs of one step.

Knows rows and the records that models and the sampler take. Computes nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mserve.core import Span
from mserve.layers import Batch
from mserve.runner.rows import Row, RowTable
from mserve.sampler import Bias, Forbidden, Forced, LogitEdit, Penalties, SamplingInputs


def build_batch(spans: Sequence[Span], rows: RowTable, device: torch.device) -> Batch:
    """The tokens that ``spans`` compute. New block ids are already in the rows' tables."""
    parts = []
    for span in spans:
        row, end = rows[span.row], span.start + span.length
        assert end <= len(row.tokens), f"row {span.row} has no token at position {end - 1}"
        parts.append((row.tokens.view[span.start : end], span.start, row.blocks.view))
    return Batch.build(parts, device)


def sampling_inputs(row_numbers: np.ndarray, rows: RowTable) -> SamplingInputs:
    """How each of ``row_numbers`` [R] samples its next token."""
    return SamplingInputs(
        temperature=rows.temperature[row_numbers],
        top_k=rows.top_k[row_numbers],
        top_p=rows.top_p[row_numbers],
        min_p=rows.min_p[row_numbers],
        seeds=rows.seeds[row_numbers],
        positions=rows.num_outputs[row_numbers],
        edits=_edits(
            [(int(i), rows[row_numbers[i]]) for i in np.flatnonzero(rows.edited[row_numbers])]
        ),
    )


def _edits(places: Sequence[tuple[int, Row]]) -> list[LogitEdit]:
    """Edits for the rows at the given places of the batch, in the order they apply."""
    edits: list[LogitEdit] = []
    penalised = [(place, row, row.counts) for place, row in places if row.counts is not None]
    if penalised:
        lengths = [len(counts.ids) for _, _, counts in penalised]

        def spread(values: list[float]) -> np.ndarray:
            return np.repeat(np.asarray(values), lengths)

        sampling = [row.sampling for _, row, _ in penalised]
        edits.append(
            Penalties(
                rows=spread([place for place, _, _ in penalised]),
                ids=np.concatenate([counts.ids for _, _, counts in penalised]),
                output_counts=np.concatenate([counts.output_counts for _, _, counts in penalised]),
                repetition=spread([params.repetition_penalty for params in sampling]),
                presence=spread([params.presence_penalty for params in sampling]),
                frequency=spread([params.frequency_penalty for params in sampling]),
            )
        )
    biased = [(place, *row.bias) for place, row in places if row.bias is not None]
    if biased:
        edits.append(
            Bias(
                rows=np.repeat(
                    [place for place, _, _ in biased], [len(ids) for _, ids, _ in biased]
                ),
                ids=np.concatenate([ids for _, ids, _ in biased]),
                amounts=np.concatenate([amounts for _, _, amounts in biased]),
            )
        )
    restrained = [
        (place, row.forbidden)
        for place, row in places
        if row.num_output_tokens < row.sampling.min_tokens and len(row.forbidden)
    ]
    if restrained:
        edits.append(
            Forbidden(
                rows=np.repeat(
                    [place for place, _ in restrained], [len(ids) for _, ids in restrained]
                ),
                ids=np.concatenate([ids for _, ids in restrained]),
            )
        )
    forced = [
        (place, row.thinking.forced_id)
        for place, row in places
        if row.thinking is not None and row.thinking.forced_id is not None
    ]
    if forced:
        rows, ids = zip(*forced, strict=True)
        edits.append(Forced(np.asarray(rows), np.asarray(ids)))
    return edits
