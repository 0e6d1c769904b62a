"""Steps in which every row decodes one token: recorded once per shape, then played back.

    shape      rows x table width          what ops and their arguments depend on
    inputs     token ids, positions, slots, block tables, numbers for the draw: filled before a play

The price of the first step of a shape is that of any step; later ones cost the host the filling of
these inputs. A table is as wide as the next power of two, so that a growing context meets few
shapes. Where the model runs other than native kernels nothing is recorded and the runner computes
these steps like all others, with the same results. A row whose sampling needs more than numbers
(penalties, a grammar, log-probabilities) is left to the runner, which has the logits.
Knows rows and inputs; does not know what the model computes or how a token is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from mserve.core import BLOCK_TOKENS, Span, blocks_for
from mserve.kernels import DrawRules, native
from mserve.layers import Batch
from mserve.runner.rows import Row, RowTable

# A tape is a few hundred bytes per op; its intermediate values are shared by all.
_MOST_TAPES = 64
_NARROWEST_TABLE = 8  # blocks

Forward = Callable[[Batch, DrawRules], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""Of T tokens: logits [T, V], the highest of each [T] fp32, and the id drawn by the rules [T]."""


class DecodingSteps:
    """Computes decoding steps by ``forward``, which must give new tensors for every batch."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._arena = native.Arena()
        self._recorded: dict[tuple[int, int], _Recorded] = {}
        self._recordable = True

    def run(
        self, spans: Sequence[Span], rows: RowTable, clear: Callable[[torch.Tensor], None]
    ) -> Decoded | None:
        """What ``forward`` gives for one token of each span, valid until the next call; None if
        the step is another kind or its ops cannot be recorded. ``clear`` gets the blocks [n]
        whose first slot is written."""
        if not self._recordable or not all(span.length == 1 for span in spans):
            return None
        longest = max(span.start for span in spans) + 1
        width = max(_NARROWEST_TABLE, 1 << (blocks_for(longest) - 1).bit_length())
        recorded = self._recorded.get((len(spans), width))
        inputs = _Inputs(len(spans), width) if recorded is None else recorded.inputs
        inputs.fill(spans, rows, clear)
        if recorded is not None:
            recorded.tape.play()
            return recorded.decoded
        step = partial(self._forward, inputs.batch, inputs.rules)
        results, tape = native.record(step, self._arena)
        decoded = Decoded(*results)
        if tape is None:
            self._recordable = False
            return decoded
        if len(self._recorded) == _MOST_TAPES:
            del self._recorded[next(iter(self._recorded))]
        self._recorded[len(spans), width] = _Recorded(inputs, tape, decoded)
        return decoded


class Decoded:
    """``logits`` [T, V], and in plain memory the ``highest`` of each row and its ``token_ids``.

    The two are no tensors, nor are the inputs below: after a step of streaming weights the code of
    torch and of numpy is out of the caches, and the first call of each takes 20 to 100 us.
    """

    def __init__(
        self, logits: torch.Tensor, highest: torch.Tensor, token_ids: torch.Tensor
    ) -> None:
        self.logits = logits
        self.highest = memoryview(highest.numpy())
        self.token_ids = memoryview(token_ids.numpy())


@dataclass(frozen=True, slots=True)
class _Recorded:
    inputs: _Inputs
    tape: native.Tape
    decoded: Decoded


class _Inputs:
    """Tensors of a batch and rules of its rows at fixed places, and views of the same memory to
    write through."""

    def __init__(self, num_rows: int, width: int) -> None:
        rows = [np.zeros(num_rows, dtype=np.int64) for _ in range(3)]
        tables = np.zeros((num_rows, width), dtype=np.int64)
        self._token_ids, self._positions, self._slots = map(memoryview, rows)
        self._tables = list(tables)
        self.rules = DrawRules(
            temperature=np.zeros(num_rows),
            top_k=np.zeros(num_rows, dtype=np.int64),
            top_p=np.ones(num_rows),
            min_p=np.zeros(num_rows),
            seeds=np.zeros(num_rows, dtype=np.uint64),
            positions=np.zeros(num_rows, dtype=np.int64),
        )
        self._num_outputs = memoryview(self.rules.positions)
        self._written: list[tuple[Row, int] | None] = [None] * num_rows  # row, blocks in its table
        self.batch = Batch.decoding(*map(torch.from_numpy, (*rows, tables)))

    def fill(
        self, spans: Sequence[Span], rows: RowTable, clear: Callable[[torch.Tensor], None]
    ) -> None:
        opened = []
        for place, span in enumerate(spans):
            row, position = rows[span.row], span.start
            if self._written[place] != (row, len(row.blocks)):
                self._write_table(place, row)
                self._write_rules(place, span.row, rows)
            number, offset = divmod(position, BLOCK_TOKENS)
            block = row.blocks[number]
            self._token_ids[place] = row.tokens[position]
            self._positions[place] = position
            self._num_outputs[place] = position + 1 - row.num_prompt_tokens
            self._slots[place] = block * BLOCK_TOKENS + offset
            if offset == 0:
                opened.append(block)
        if opened:
            clear(torch.tensor(opened))

    def _write_table(self, place: int, row: Row) -> None:
        """The row's blocks, padded with its first one. Its table may be longer than this step
        needs."""
        table = self._tables[place]
        held = row.blocks.view[: len(table)]
        table[: len(held)] = held
        table[len(held) :] = held[0]
        self._written[place] = (row, len(row.blocks))

    def _write_rules(self, place: int, number: int, rows: RowTable) -> None:
        rules = self.rules
        rules.temperature[place] = rows.temperature[number] if rows.plain[number] else 0.0
        rules.top_k[place] = rows.top_k[number]
        rules.top_p[place] = rows.top_p[number]
        rules.min_p[place] = rows.min_p[number]
        rules.seeds[place] = rows.seeds[number]
