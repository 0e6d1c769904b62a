"""Where a named block can be found: name -> block id, one id per name.

Knows names and ids. Does not know states, readers or tokens (``core.blocks`` makes the names).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mserve.core import BlockName


class PrefixIndex:
    """The blocks that a new request may reuse."""

    def __init__(self) -> None:
        self._block_of: dict[BlockName, int] = {}

    def __len__(self) -> int:
        return len(self._block_of)

    def __iter__(self) -> Iterator[tuple[BlockName, int]]:
        return iter(self._block_of.items())

    def find(self, name: BlockName) -> int | None:
        return self._block_of.get(name)

    def match(self, names: Iterable[BlockName]) -> list[int]:
        """Blocks of the longest run of ``names``, from the first on, that are all present.

        A chain with a hole ends at the hole: what lies behind it cannot be read without the
        block in front.
        """
        block_ids = []
        for name in names:
            block_id = self._block_of.get(name)
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def add(self, name: BlockName, block_id: int) -> bool:
        """List ``block_id`` under ``name``; False if another block already has the name."""
        return self._block_of.setdefault(name, block_id) == block_id

    def remove(self, name: BlockName) -> None:
        del self._block_of[name]
