"""Blocks that models are made of: the maths of this rank's shard."""

from mserve.layers.attention import Attention, BlockIndex
from mserve.layers.batch import Batch, BatchSpan, SpanGroup
from mserve.layers.decoder import Decoder, DecoderLayer
from mserve.layers.kv_cache import KVCache
from mserve.layers.mlp import GatedMlp, SparseMoe, gated_activation
from mserve.layers.norm import FullWidthNorm, GemmaRmsNorm, PerHeadNorm, RmsNorm
from mserve.layers.self_check import check_kernels
from mserve.layers.shard import head_share
from mserve.layers.vocabulary import Embedding, Head

__all__ = [
    "Attention",
    "Batch",
    "BatchSpan",
    "BlockIndex",
    "Decoder",
    "DecoderLayer",
    "Embedding",
    "FullWidthNorm",
    "GatedMlp",
    "GemmaRmsNorm",
    "Head",
    "KVCache",
    "PerHeadNorm",
    "RmsNorm",
    "SpanGroup",
    "SparseMoe",
    "check_kernels",
    "gated_activation",
    "head_share",
]
