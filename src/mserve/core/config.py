"""Every knob of the engine, with unit, default and reason. Parsed once, never changed.

A value of ``None`` means "derived": its owner computes it at start and prints it. Knows numbers;
does not know flags (``cli``) or the environment.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which checkpoint, and in which precision it runs."""

    path: str
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # auto: the checkpoint's
    # None: matrices stay as the checkpoint holds them; else bf16 is converted while it is loaded
    quantization: Literal["mxfp8", "fp8", "int8"] | None = None
    max_model_len: int | None = None  # tokens; None: the checkpoint's max_position_embeddings
    device: Literal["auto", "cpu", "cuda"] = "auto"


CacheDtype = Literal["auto", "bfloat16", "fp8", "int8"]
"""auto: the model's. fp8 is e4m3 without scales, int8 has one per token and head."""


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True):
    """KV blocks."""

    memory_utilization: float = 0.9  # of the memory this process may use, weights included
    kv_cache_memory_bytes: int | None = None  # overrides the above for the blocks alone
    enable_prefix_caching: bool = True
    kv_cache_dtype: CacheDtype = "auto"  # of keys and values
    index_cache_dtype: CacheDtype = "auto"  # of index keys, whose rounding changes what is chosen


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How work is admitted and shared out."""

    max_num_seqs: int = 256  # rows: requests that run at once
    max_num_batched_tokens: int = 2048  # tokens per step over all spans
    max_waiting: int = 1024  # queue bound; beyond it a request is refused, not delayed
    policy: Literal["fcfs", "priority"] = "fcfs"


class ParallelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Ranks of one engine. Experts are split by hidden width, or whole by id with
    ``enable_expert_parallel``."""

    tensor_parallel_size: int = 1
    enable_expert_parallel: bool = False


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All an engine process needs to start."""

    model: ModelConfig
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    parallel: ParallelConfig = ParallelConfig()
    seed: int = 0
    deterministic: bool = False  # start only if no request's bits depend on its company
    num_threads: int | None = None  # CPU threads over all ranks; None: the cores granted
