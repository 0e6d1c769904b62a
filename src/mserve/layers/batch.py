"""The tokens of one step as tensors: what every layer may know about them.

    rows     [ span 0's tokens | span 1's tokens | ... ]      T rows in all
    span     [ computed earlier        | this span      ]
               0                         start            context_length

Built once per step from host data, complete at birth and shared by all layers. Knows tokens,
positions and block ids; does not know requests, plans or what the layers compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from mserve.core import BLOCK_TOKENS, blocks_for

# Spans of one length run as one group padded to the longest context. The bounds keep padding
# below half of the work and a group's gathered keys to about 64 MiB for a layer of M3.
_GROUP_BLOCKS = 256
_GROUP_ROWS = 1024
_GROUP_PADDING = 2


@dataclass(frozen=True, slots=True)
class BatchSpan:
    """Rows ``first_row`` to ``first_row + length`` are positions ``start`` to ``context_length``
    of one sequence."""

    first_row: int
    length: int
    start: int

    @property
    def context_length(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class SpanGroup:
    """Spans of equal length that one call of an attention kernel takes together.

    S spans of L tokens: ``rows`` [S, L] int64 into the batch, None if they are all of it in order;
    ``positions`` [S, L] int64; ``blocks`` [S, N] int64 block ids by logical block number, padded
    with the span's first block.
    """

    rows: torch.Tensor | None
    positions: torch.Tensor
    blocks: torch.Tensor
    max_context: int  # tokens; no span has more

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """This group's tokens [S, L, ...] of ``x`` [T, ...]."""
        return x.unflatten(0, self.positions.shape) if self.rows is None else x[self.rows]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's tokens. T tokens, S spans."""

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    slots: torch.Tensor  # [T] int64: block id * BLOCK_TOKENS + offset, where K and V are written
    spans: tuple[BatchSpan, ...]
    opened_blocks: torch.Tensor  # [n] int64: blocks whose first slot is written in this step
    groups: tuple[SpanGroup, ...]  # every span in exactly one

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The groups' tokens [S, L, ...] put back into their rows [T, ...]."""
        if self.groups[0].rows is None:
            return parts[0].flatten(0, 1)
        joined = parts[0].new_empty((self.num_tokens, *parts[0].shape[2:]))
        for group, part in zip(self.groups, parts, strict=True):
            joined[group.rows] = part
        return joined

    @classmethod
    def build(
        cls,
        spans: Sequence[tuple[Sequence[int] | np.ndarray, int, Sequence[int] | np.ndarray]],
        device: torch.device,
    ) -> Batch:
        """From (token ids, start position, block ids) of each span, one span at least.

        A span has at least one token, and its block ids cover position
        ``start + length - 1``; further ones are ignored.
        """
        lengths = [len(token_ids) for token_ids, _, _ in spans]
        starts = [start for _, start, _ in spans]
        first_rows = [0, *accumulate(lengths)]
        records = tuple(map(BatchSpan, first_rows, lengths, starts))
        tables = _block_tables(records, [block_ids for _, _, block_ids in spans])
        members = _grouped(records)

        row_lengths = np.asarray(lengths)
        row_spans = np.repeat(np.arange(len(spans)), row_lengths)
        shift = np.asarray(starts) - np.asarray(first_rows[:-1])
        positions = np.arange(first_rows[-1]) + shift[row_spans]
        owners = tables[row_spans, positions // BLOCK_TOKENS]
        slots = owners * BLOCK_TOKENS + positions % BLOCK_TOKENS
        opened = owners[positions % BLOCK_TOKENS == 0]
        token_ids = np.concatenate([np.asarray(ids, dtype=np.int64) for ids, _, _ in spans])

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        return cls(
            token_ids=tensor(token_ids),
            positions=tensor(positions),
            slots=tensor(slots),
            spans=records,
            opened_blocks=tensor(opened),
            groups=(
                (_group(records, tables, tensor, whole=True),)
                if len(members) == 1
                else tuple(_group([records[i] for i in m], tables[m], tensor) for m in members)
            ),
        )

    @classmethod
    def decoding(
        cls,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        blocks: torch.Tensor,
    ) -> Batch:
        """One token of each of T sequences, over tensors that the caller fills: three of [T] and
        ``blocks`` [T, N], all int64, of contexts of up to N blocks. What it opens, the caller
        clears; ``spans`` stays empty, since layers do not ask for it."""
        return cls(
            token_ids=token_ids,
            positions=positions,
            slots=slots,
            spans=(),
            opened_blocks=positions[:0],
            groups=(SpanGroup(None, positions[:, None], blocks, blocks.shape[1] * BLOCK_TOKENS),),
        )


def _block_tables(
    spans: Sequence[BatchSpan], block_ids: Sequence[Sequence[int] | np.ndarray]
) -> np.ndarray:
    width = max(blocks_for(span.context_length) for span in spans)
    tables = np.empty((len(spans), width), dtype=np.int64)
    for table, span, ids in zip(tables, spans, block_ids, strict=True):
        held = blocks_for(span.context_length)
        table[:held] = ids[:held]
        table[held:] = ids[0]
    return tables


def _grouped(spans: Sequence[BatchSpan]) -> list[list[int]]:
    """Span numbers by group: equal length, similar context."""
    order = sorted(
        range(len(spans)), key=lambda i: (spans[i].length, spans[i].context_length), reverse=True
    )
    groups: list[list[int]] = []
    for number in order:
        if groups and _fits(spans, groups[-1], number):
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def _fits(spans: Sequence[BatchSpan], group: list[int], number: int) -> bool:
    longest, new = spans[group[0]], spans[number]
    size = len(group) + 1
    blocks = blocks_for(longest.context_length)
    return (
        new.length == longest.length
        and size * blocks <= _GROUP_BLOCKS
        and size * new.length <= _GROUP_ROWS
        and blocks <= _GROUP_PADDING * blocks_for(new.context_length)
    )


def _group(
    spans: Sequence[BatchSpan],
    tables: np.ndarray,
    tensor: Callable[[np.ndarray], torch.Tensor],
    *,
    whole: bool = False,
) -> SpanGroup:
    offsets = np.arange(spans[0].length)
    contexts = [span.context_length for span in spans]
    return SpanGroup(
        rows=(
            None
            if whole
            else tensor(np.asarray([span.first_row for span in spans])[:, None] + offsets)
        ),
        positions=tensor(np.asarray([span.start for span in spans])[:, None] + offsets),
        blocks=tensor(np.ascontiguousarray(tables[:, : blocks_for(max(contexts))])),
        max_context=max(contexts),
    )
