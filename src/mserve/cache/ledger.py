"""The state of every block, and the only code that changes it.

                 claim              seal                 release, no reader left
        ┌─ FREE ───────> CLAIMED ──────────> SEALED ──────────────────────────> IDLE ─┐
        │   ^               │                 │   ^              share            │   │
        │   └───────────────┴─ release ───────┘   └───────────────────────────────┘   │
        │          (a sealed block only if it has no name)                            │
        └────────────────────────── claim: least recently idle ───────────────────────┘

CLAIMED  one request writes it.           readers = 1, no name
SEALED   full of computed tokens.         readers >= 1, named unless another block has the name
IDLE     nobody reads it, but its name    readers = 0, named, in order of use
         can still be asked for.
FREE     holds nothing.                   readers = 0, no name

A request that computed a block which already exists under the same name keeps its own copy,
unnamed. Swapping it for the first one would save a block for a while, but block tables would no
longer be append-only, and the runner would have to be told of every swap.

Blocks are released from the tail of a table, so that of one chain the last block becomes idle
first and is evicted first: what stays is always a usable prefix.

Knows ids, names and counts. Does not know bytes, requests, or which block to ask for.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mserve.cache.prefix import PrefixIndex
from mserve.core import BlockName, EngineError


class BlockState(enum.Enum):
    FREE = "free"
    CLAIMED = "claimed"
    SEALED = "sealed"
    IDLE = "idle"


@dataclass(slots=True)
class _Block:
    state: BlockState = BlockState.FREE
    readers: int = 0
    name: BlockName | None = None


class BlockLedger:
    """Ids ``0 .. num_blocks - 1``. The same calls in the same order give the same ids."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._blocks = [_Block() for _ in range(num_blocks)]
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack, so warm memory is used first
        self._idle: dict[int, None] = {}  # an ordered set, least recently used first
        self._index = PrefixIndex()

    @property
    def num_claimable(self) -> int:
        """Blocks that ``claim`` could hand out now: free ones and idle ones."""
        return len(self._free) + len(self._idle)

    def state(self, block_id: int) -> BlockState:
        return self._blocks[block_id].state

    def count_idle(self, block_ids: Iterable[int]) -> int:
        """How many of ``block_ids`` stop being claimable when they are shared."""
        return sum(block_id in self._idle for block_id in block_ids)

    def match(self, names: Iterable[BlockName]) -> list[int]:
        """Blocks that hold the longest prefix of the chain ``names``. Changes nothing."""
        return self._index.match(names)

    def claim(self, count: int) -> tuple[int, ...] | None:
        """``count`` blocks to write, or None (and no change) if there are not as many."""
        if count > self.num_claimable:
            return None
        return tuple([self._claim_one() for _ in range(count)])

    def _claim_one(self) -> int:
        if self._free:
            block_id = self._free.pop()
        else:
            block_id = next(iter(self._idle))
            self._forget_idle(block_id)
        block = self._blocks[block_id]
        block.state = BlockState.CLAIMED
        block.readers = 1
        return block_id

    def _forget_idle(self, block_id: int) -> None:
        del self._idle[block_id]
        block = self._blocks[block_id]
        assert block.name is not None
        self._index.remove(block.name)
        block.name = None

    def share(self, block_ids: Iterable[int]) -> None:
        """One more reader for each; the blocks come from ``match``."""
        for block_id in block_ids:
            block = self._blocks[block_id]
            if block.state is BlockState.IDLE:
                del self._idle[block_id]
                block.state = BlockState.SEALED
            elif block.state is not BlockState.SEALED:
                raise _broken(block_id, f"is {block.state.value} and cannot be shared")
            block.readers += 1

    def seal(self, block_id: int, name: BlockName) -> None:
        """All tokens of a claimed block are computed: from now on it may be read under ``name``."""
        block = self._blocks[block_id]
        if block.state is not BlockState.CLAIMED:
            raise _broken(block_id, f"is {block.state.value} and cannot be sealed")
        block.state = BlockState.SEALED
        if self._index.add(name, block_id):
            block.name = name

    def withdraw(self, block_ids: Iterable[int]) -> None:
        """Take away the names of sealed blocks whose content is in doubt: nobody finds them
        again, and they become free when the last reader leaves."""
        for block_id in block_ids:
            block = self._blocks[block_id]
            if block.state is BlockState.SEALED and block.name is not None:
                self._index.remove(block.name)
                block.name = None

    def release(self, table: Sequence[int]) -> None:
        """One reader less for every block of ``table``, tail first."""
        for block_id in reversed(table):
            block = self._blocks[block_id]
            if block.readers == 0:
                raise _broken(block_id, f"is {block.state.value} and was released once too often")
            block.readers -= 1
            if block.readers:
                continue
            if block.name is None:
                block.state = BlockState.FREE
                self._free.append(block_id)
            else:
                block.state = BlockState.IDLE
                self._idle[block_id] = None

    def audit(self, tables: Iterable[Sequence[int]]) -> None:
        """Check everything against ``tables``, the block tables in use. O(blocks).

        Raises:
            EngineError: names the block and what is wrong with it.
        """
        readers: Counter[int] = Counter()
        for table in tables:
            readers.update(table)
            if len(set(table)) != len(table):
                raise EngineError("block ledger: a table holds the same block twice")
        free = set(self._free)
        if len(free) != len(self._free):
            raise EngineError("block ledger: a block is on the free list twice")
        for block_id, block in enumerate(self._blocks):
            if block.readers != readers[block_id]:
                raise _broken(
                    block_id, f"counts {block.readers} readers, {readers[block_id]} tables hold it"
                )
            if (block_id in free) != (block.state is BlockState.FREE):
                raise _broken(block_id, f"is {block.state.value}; the free list disagrees")
            if (block_id in self._idle) != (block.state is BlockState.IDLE):
                raise _broken(block_id, f"is {block.state.value}; the idle list disagrees")
            self._audit_block(block_id, block)
        for name, block_id in self._index:
            if self._blocks[block_id].name != name:
                raise _broken(block_id, "is listed under a name that it does not have")

    def _audit_block(self, block_id: int, block: _Block) -> None:
        if block.name is not None and self._index.find(block.name) != block_id:
            raise _broken(block_id, "has a name under which it is not listed")
        match block.state:
            case BlockState.FREE:
                sound = block.readers == 0 and block.name is None
            case BlockState.CLAIMED:
                sound = block.readers == 1 and block.name is None
            case BlockState.SEALED:
                sound = block.readers >= 1
            case BlockState.IDLE:
                sound = block.readers == 0 and block.name is not None
        if not sound:
            name = "no name" if block.name is None else "a name"
            raise _broken(block_id, f"is {block.state.value} with {block.readers} readers, {name}")


def _broken(block_id: int, what: str) -> EngineError:
    return EngineError(f"block ledger: block {block_id} {what}")
