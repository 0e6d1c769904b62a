"""The memory plan: what fits, decided and shown before a weight is read.

    available x memory_utilization = weights + activations + logits + blocks

Blocks beyond what all rows could fill at once are left to the machine, unless they are asked for
by number of bytes.

Knows shapes and limits. Does not know tensors, devices or which requests use the blocks.
"""

from __future__ import annotations

import msgspec

from mserve.capacity.activations import activation_bytes, logits_bytes, scratch_bytes
from mserve.capacity.units import human_bytes
from mserve.capacity.weights import weight_bytes
from mserve.checkpoint import ModelSpec, check_ranks, kv_layout
from mserve.core import BLOCK_TOKENS, CapacityError, EngineConfig, KVLayout, blocks_for


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of one rank. Bytes unless the name says otherwise."""

    ranks: int
    available_bytes: int
    budget_bytes: int  # what weights, a step and blocks may take together
    weights: dict[str, int]  # by part, in the order of a forward pass
    activation_bytes: int
    max_step_tokens: int
    logits_bytes: int
    plane_bytes: dict[str, int]  # of one block, by plane kind
    block_bytes: int
    num_blocks: int
    max_num_seqs: int  # requests at once
    max_model_len: int  # tokens

    @property
    def max_used_blocks(self) -> int:
        """Blocks of as many requests as run at once, each of the longest context."""
        return self.max_num_seqs * blocks_for(self.max_model_len)

    @property
    def weight_bytes(self) -> int:
        return sum(self.weights.values())

    @property
    def cache_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def num_tokens(self) -> int:
        """Tokens that all blocks hold."""
        return self.num_blocks * BLOCK_TOKENS

    @property
    def full_context_requests(self) -> float:
        """Requests of ``max_model_len`` tokens that fit at once."""
        return self.num_blocks / blocks_for(self.max_model_len)


def plan_memory(
    spec: ModelSpec,
    engine_config: EngineConfig,
    available_bytes: int,
    ranks: int,
    native_threads: int | None = None,
) -> MemoryPlan:
    """Divide ``available_bytes``, what one of ``ranks`` may use, its weights included.
    ``native_threads``: where native kernels compute all of a step, on how many threads.

    ``CapacityError`` if not even one request of the longest context fits; it names the longest
    that would.
    """
    cache, scheduler = engine_config.cache, engine_config.scheduler
    check_ranks(spec, engine_config.parallel)
    dtype = engine_config.model.dtype
    dtype = spec.dtype if dtype == "auto" else dtype
    layout = cache_layout(spec, engine_config, ranks)
    by_id = engine_config.parallel.enable_expert_parallel and ranks > 1
    weights = weight_bytes(spec, ranks=ranks, dtype=dtype, expert_parallel=by_id)
    step_tokens = scheduler.max_num_batched_tokens
    activations = activation_bytes(spec, num_tokens=step_tokens, ranks=ranks, dtype=dtype)
    activations += scratch_bytes(spec, native_threads=native_threads)
    rows = min(scheduler.max_num_seqs, step_tokens)
    logits = logits_bytes(spec, num_rows=rows)
    fixed = sum(weights.values()) + activations + logits
    max_len = max_model_len(spec, engine_config)
    if cache.kv_cache_memory_bytes is not None:
        budget = fixed + cache.kv_cache_memory_bytes
    else:
        most = fixed + rows * blocks_for(max_len) * layout.block_bytes
        budget = min(int(available_bytes * cache.memory_utilization), most)
    plan = MemoryPlan(
        ranks=ranks,
        available_bytes=available_bytes,
        budget_bytes=budget,
        weights=weights,
        activation_bytes=activations,
        max_step_tokens=step_tokens,
        logits_bytes=logits,
        max_num_seqs=rows,
        plane_bytes=layout.bytes_by_kind(),
        block_bytes=layout.block_bytes,
        num_blocks=max(0, budget - fixed) // layout.block_bytes,
        max_model_len=max_len,
    )
    _refuse_what_does_not_fit(plan, engine_config, fixed)
    return plan


def cache_layout(spec: ModelSpec, engine_config: EngineConfig, ranks: int) -> KVLayout:
    """What a block holds on one of ``ranks``. ``CapacityError`` for a type of planes that the
    model does not have."""
    cache, model_dtype = engine_config.cache, engine_config.model.dtype
    if spec.index is None and cache.index_cache_dtype != "auto":
        raise CapacityError(
            f"index_cache_dtype is {cache.index_cache_dtype}, and this model has no index keys",
            hint="leave --index-cache-dtype out",
        )
    stored = {
        "auto": spec.dtype if model_dtype == "auto" else model_dtype,
        "bfloat16": "bfloat16",
        "fp8": "float8_e4m3fn",
        "int8": "int8",
    }
    return kv_layout(
        spec,
        ranks=ranks,
        dtype=stored[cache.kv_cache_dtype],
        index_dtype=stored[cache.index_cache_dtype],
    )


def max_model_len(spec: ModelSpec, engine_config: EngineConfig) -> int:
    """The context to serve; ``CapacityError`` if it is more than the checkpoint knows."""
    asked = engine_config.model.max_model_len
    known = spec.max_position_embeddings
    if asked is None:
        return known
    if asked > known:
        raise CapacityError(
            f"max_model_len {asked} is more than the checkpoint's max_position_embeddings {known}",
            hint=f"use --max-model-len {known} or less",
        )
    return asked


def _refuse_what_does_not_fit(plan: MemoryPlan, config: EngineConfig, fixed_bytes: int) -> None:
    available, fixed = human_bytes(plan.available_bytes), human_bytes(fixed_bytes)
    if plan.budget_bytes > plan.available_bytes:
        asked = human_bytes(plan.budget_bytes - fixed_bytes)
        raise CapacityError(
            f"weights and a step take {fixed} and kv_cache_memory_bytes asks for {asked},"
            f" but {available} are available",
            hint=f"use --kv-cache-memory-bytes {max(0, plan.available_bytes - fixed_bytes)}"
            " or less, or more ranks",
        )
    needed = blocks_for(plan.max_model_len)
    if plan.num_blocks >= needed:
        return
    given = config.cache.kv_cache_memory_bytes
    if given is not None:
        more = f"--kv-cache-memory-bytes {needed * plan.block_bytes} or more (now {given})"
    else:
        more = f"a larger --gpu-memory-utilization (now {config.cache.memory_utilization:g})"
    if plan.num_blocks == 0:
        raise CapacityError(
            f"weights take {human_bytes(plan.weight_bytes)}, with a step {fixed}, which leaves no"
            f" room for a block in {human_bytes(plan.budget_bytes)} of {available} available",
            hint=f"use more ranks, a smaller --max-num-batched-tokens or --max-num-seqs, or {more}",
        )
    fits = plan.num_blocks * BLOCK_TOKENS
    raise CapacityError(
        f"a context of {plan.max_model_len} tokens takes {human_bytes(needed * plan.block_bytes)}"
        f" of blocks, and {human_bytes(plan.cache_bytes)} are left beside weights and a step",
        hint=f"use --max-model-len {fits} or less, or {more}",
    )
