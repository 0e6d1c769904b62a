"""Those who run: the rows they hold and the blocks they read and write.

The only file of the scheduler that asks the ledger for a change, so that taking and giving back
stand side by side. Knows rows, tables and which named blocks are on their way. Does not know
budgets, order or outcomes.
"""

from __future__ import annotations

from collections.abc import Iterator

from mserve.cache import BlockLedger
from mserve.core import BLOCK_TOKENS, BlockName, EngineError, blocks_for
from mserve.scheduler.live import LiveRequest


class RunningRows:
    """At most ``num_rows`` requests, in order of admission."""

    def __init__(
        self, ledger: BlockLedger, *, num_rows: int, model_id: str, enable_prefix_caching: bool
    ) -> None:
        self.ledger = ledger
        self.num_rows = num_rows
        self._model_id = model_id
        self._enable_prefix_caching = enable_prefix_caching
        self._live: dict[int, LiveRequest] = {}  # by row
        self._free_rows = list(range(num_rows - 1, -1, -1))
        self._coming: dict[BlockName, LiveRequest] = {}

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[LiveRequest]:
        return iter(self._live.values())

    @property
    def num_free(self) -> int:
        return len(self._free_rows)

    def get(self, row: int) -> LiveRequest | None:
        """Who holds ``row``; None if its request ended while the step ran."""
        return self._live.get(row)

    def find_cached(self, live: LiveRequest) -> tuple[int, ...] | None:
        """Blocks that ``live`` can start with. None: wait, for a running request is computing the
        block that comes next, and will have it before ``live`` could.

        Waiting cannot last: every running request advances in every step, and one that leaves
        early takes its names out of ``_coming``.
        """
        if not self._enable_prefix_caching:
            return ()
        live.name_blocks(self._model_id)
        reusable = live.names[: live.num_reusable_tokens // BLOCK_TOKENS]
        block_ids = self.ledger.match(reusable)
        if len(block_ids) < len(reusable) and reusable[len(block_ids)] in self._coming:
            return None
        return tuple(block_ids)

    def fits(self, live: LiveRequest, cached: tuple[int, ...], reserve: int) -> bool:
        """Whether blocks for all known tokens of ``live`` are there, with ``reserve`` left."""
        fresh = blocks_for(len(live.tokens)) - len(cached)
        revived = self.ledger.count_idle(cached)
        return fresh + revived + reserve <= self.ledger.num_claimable

    def enter(self, live: LiveRequest, cached: tuple[int, ...]) -> None:
        """Give ``live`` a row and the blocks of all its known tokens. It must fit.

        A long prompt so claims blocks that it fills only some steps later. In return it cannot
        run into another half-computed prompt and throw the work of both away.
        """
        self.ledger.share(cached)
        fresh = self.ledger.claim(blocks_for(len(live.tokens)) - len(cached))
        if fresh is None:
            raise EngineError("a request was admitted for which there are no blocks")
        live.row = self._free_rows.pop()
        live.table.extend(cached + fresh)
        live.unsent_block_ids = fresh
        live.num_sealed = len(cached)
        live.computed = len(cached) * BLOCK_TOKENS
        self._live[live.row] = live
        for name in live.names[live.num_sealed :]:
            self._coming.setdefault(name, live)

    def extend(self, live: LiveRequest) -> bool:
        """Give ``live`` the block that its newest token needs; False if there is none."""
        fresh = self.ledger.claim(blocks_for(len(live.tokens)) - len(live.table))
        if fresh is None:
            return False
        live.table.extend(fresh)
        live.unsent_block_ids += fresh
        return True

    def seal(self, live: LiveRequest) -> None:
        """Name the blocks that ``live`` has filled since the last time."""
        if not self._enable_prefix_caching:
            return
        num_full = live.computed // BLOCK_TOKENS
        if len(live.names) < num_full:
            live.name_blocks(self._model_id)
        for number in range(live.num_sealed, num_full):
            self.ledger.seal(live.table[number], live.names[number])
            self._no_longer_coming(live.names[number], live)
        live.num_sealed = num_full

    def leave(self, live: LiveRequest) -> None:
        """Take back row and blocks. Sealed blocks stay findable until they are claimed anew."""
        assert live.row is not None
        for name in live.names[live.num_sealed :]:
            self._no_longer_coming(name, live)
        self.ledger.release(live.table)
        del self._live[live.row]
        self._free_rows.append(live.row)
        live.row = None
        live.table = []
        live.unsent_block_ids = ()

    def leave_in_doubt(self, live: LiveRequest) -> None:
        """The same when computing ``live`` failed: its blocks may hold what made it fail, so no
        later request may start from them."""
        self.ledger.withdraw(live.table)
        self.leave(live)

    def _no_longer_coming(self, name: BlockName, live: LiveRequest) -> None:
        if self._coming.get(name) is live:
            del self._coming[name]

    def audit(self) -> None:
        """Raises ``EngineError`` if the ledger and the tables in use disagree."""
        self.ledger.audit([live.table for live in self])
        if len(self._live) + len(self._free_rows) != self.num_rows:
            raise EngineError("a row was lost or handed out twice")
        for live in self._coming.values():
            if live.row is None:
                raise EngineError("requests wait for a block that nobody computes")
