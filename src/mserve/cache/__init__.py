"""Which block holds what, and who reads it. Ids, names and counts; never bytes."""

from mserve.cache.ledger import BlockLedger, BlockState
from mserve.cache.prefix import PrefixIndex

__all__ = ["BlockLedger", "BlockState", "PrefixIndex"]
