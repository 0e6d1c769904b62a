"""Blocks that models are made of: the maths of this rank's shard."""

from mserve.layers.batch import Batch, BatchSpan, SpanGroup
from mserve.layers.kv_cache import KVCache

__all__ = ["Batch", "BatchSpan", "KVCache", "SpanGroup"]
