"""The memory plan against published arithmetic, and what is refused."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.capacity import (
    MemoryPlan,
    cache_layout,
    max_model_len,
    plan_memory,
    render,
    weight_bytes,
)
from mserve.checkpoint import (
    ActivationSpec,
    IndexSpec,
    LayerSpec,
    ModelSpec,
    MoeSpec,
    QuantSpec,
    WeightFormat,
    check_ranks,
)
from mserve.core import (
    CacheConfig,
    CacheDtype,
    CapacityError,
    EngineConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    SetupError,
)

GIB = 1 << 30

M3 = ModelSpec(
    family="m3",
    vocab_size=200064,
    hidden_size=6144,
    num_heads=64,
    num_kv_heads=4,
    head_dim=128,
    rotary_dim=64,
    rope_theta=5e6,
    rms_norm_eps=1e-6,
    max_position_embeddings=1 << 20,
    qk_norm="per_head",
    activation=ActivationSpec(kind="swiglu_oai", alpha=1.702, limit=7.0, beta=1.0),
    layers=(LayerSpec("full", "dense"),) * 3 + (LayerSpec("sparse", "moe"),) * 57,
    dense_intermediate_size=12288,
    moe=MoeSpec(
        num_experts=128,
        experts_per_token=4,
        intermediate_size=3072,
        shared_intermediate_size=3072,
        routed_scaling_factor=2.0,
    ),
    index=IndexSpec(num_heads=4, head_dim=128, topk_blocks=16, local_blocks=1, init_blocks=0),
    dtype="bfloat16",
    bos_token_id=200034,
    eos_token_ids=(200020,),
)
M2 = msgspec.structs.replace(
    M3,
    family="m2",
    hidden_size=3072,
    num_heads=48,
    num_kv_heads=8,
    max_position_embeddings=196608,
    qk_norm="full_width",
    activation=ActivationSpec(kind="silu"),
    layers=(LayerSpec("full", "moe"),) * 62,
    dense_intermediate_size=0,
    moe=MoeSpec(
        num_experts=256,
        experts_per_token=8,
        intermediate_size=1536,
        shared_intermediate_size=0,
        routed_scaling_factor=1.0,
    ),
    index=None,
)


def engine_config(
    *, max_len: int | None = None, batched_tokens: int = 2048, **cache: float
) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(path="checkpoint", max_model_len=max_len),
        cache=CacheConfig(**cache),
        scheduler=SchedulerConfig(max_num_batched_tokens=batched_tokens),
    )


@pytest.mark.parametrize(
    ("spec", "part", "billions"),
    [
        (M3, "attention", 6.4173),
        (M3, "index branch", 0.2241),
        (M3, "dense MLPs", 0.6795),
        (M3, "shared experts", 3.2275),
        (M3, "routed experts", 413.1222),
        (M3, "embedding", 1.2292),
        (M3, "head", 1.2292),
        (M2, "attention", 2.7305),
        (M2, "routed experts", 224.6805),
        (M2, "embedding", 0.6146),
    ],
)
def test_parts_have_their_published_size(spec: ModelSpec, part: str, billions: float) -> None:
    parts = weight_bytes(spec, ranks=1, dtype="bfloat16")
    assert parts[part] / 2e9 == pytest.approx(billions, abs=1e-4)


def test_the_router_is_fp32() -> None:
    assert weight_bytes(M3, ranks=1, dtype="bfloat16")["router"] / 4e9 == pytest.approx(
        0.0448, abs=1e-4
    )


@pytest.mark.parametrize(("ranks", "gigabytes"), [(2, 426.3), (4, 213.2), (8, 106.8), (16, 53.6)])
def test_weights_per_rank(ranks: int, gigabytes: float) -> None:
    """Published rows count the router in bf16: ours is 0.09 GB more."""
    total = sum(weight_bytes(M3, ranks=ranks, dtype="bfloat16").values()) / 1e9
    assert total == pytest.approx(gigabytes + 0.09, abs=0.1)


def packed(spec: ModelSpec, kind: WeightFormat) -> ModelSpec:
    return msgspec.structs.replace(spec, quantization=QuantSpec(kind))


@pytest.mark.parametrize(
    ("spec", "kind", "ranks", "by_id", "gigabytes"),
    [
        (M3, "mxfp8", 2, False, 221.0),
        (M3, "mxfp8", 4, False, 110.6),
        (M3, "mxfp8", 8, False, 55.4),
        (M3, "mxfp8", 16, False, 27.9),
        (M2, "fp8", 2, False, 115.1),
        (M2, "fp8", 4, False, 57.6),
        (M2, "fp8", 8, True, 28.8),
    ],
)
def test_packed_weights_per_rank(
    spec: ModelSpec, kind: WeightFormat, ranks: int, by_id: bool, gigabytes: float
) -> None:
    """Published rows count the router in bf16: ours is 0.09 GB more for M3, 0.10 for M2."""
    parts = weight_bytes(packed(spec, kind), ranks=ranks, dtype="bfloat16", expert_parallel=by_id)
    assert sum(parts.values()) / 1e9 == pytest.approx(gigabytes + 0.095, abs=0.1)


@pytest.mark.parametrize(("spec", "kind", "gigabytes"), [(M3, "mxfp8", 443.7), (M2, "fp8", 230.1)])
def test_a_packed_checkpoint_has_its_published_size(
    spec: ModelSpec, kind: WeightFormat, gigabytes: float
) -> None:
    """M3's files hold 1.73 GB of vision in bf16 beside the text model."""
    vision = 1.73 if spec is M3 else 0.0
    total = sum(weight_bytes(packed(spec, kind), ranks=1, dtype="bfloat16").values()) / 1e9
    assert total + vision == pytest.approx(gigabytes, abs=0.2)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("kind", ["plain", "mxfp8", "fp8", "int8"])
def test_experts_take_the_same_whether_split_by_width_or_by_id(
    kind: WeightFormat, ranks: int
) -> None:
    """But for int8, whose factors are of rows: w2's are on every rank that holds some columns."""
    by_width, by_id = (
        weight_bytes(packed(M3, kind), ranks=ranks, dtype="bfloat16", expert_parallel=how)
        for how in (False, True)
    )
    copied = 57 * 128 * 6144 * 4 * (ranks - 1) // ranks if kind == "int8" else 0
    assert by_width.pop("routed experts") - by_id.pop("routed experts") == copied
    assert by_width == by_id


@pytest.mark.parametrize(
    ("spec", "ranks", "kv", "index", "token_bytes"),
    [
        (M3, 1, "auto", "auto", 137_472),
        (M3, 4, "auto", "auto", 45_312),
        (M3, 1, "fp8", "auto", 76_032),
        (M3, 2, "fp8", "auto", 45_312),
        (M3, 8, "fp8", "bfloat16", 29_952),
        (M3, 1, "fp8", "fp8", 68_736),
        (M3, 8, "fp8", "fp8", 22_656),
        (M2, 1, "auto", "auto", 253_952),
        (M2, 8, "bfloat16", "auto", 31_744),
        (M2, 1, "int8", "auto", 126_976 + 62 * 2 * 8 * 4),  # a factor per token and head
    ],
)
def test_cache_bytes_per_token(
    spec: ModelSpec, ranks: int, kv: CacheDtype, index: CacheDtype, token_bytes: int
) -> None:
    cache = CacheConfig(kv_cache_dtype=kv, index_cache_dtype=index)
    config = EngineConfig(model=ModelConfig(path="checkpoint"), cache=cache)
    assert cache_layout(spec, config, ranks).block_bytes == 128 * token_bytes


def test_a_type_of_index_keys_for_a_model_that_has_none_is_refused() -> None:
    cache = CacheConfig(index_cache_dtype="fp8")
    config = EngineConfig(model=ModelConfig(path="checkpoint"), cache=cache)
    cache_layout(M3, config, 1)
    with pytest.raises(CapacityError, match="no index keys"):
        cache_layout(M2, config, 1)


def test_bf16_m3_is_tight_on_eight_gpus_of_141_gb_and_impossible_on_80() -> None:
    config = engine_config(max_len=131072, memory_utilization=0.9)
    plan = plan_memory(M3, config, int(139.8 * GIB), ranks=8)
    assert 0.35e6 < plan.num_tokens < 0.65e6
    with pytest.raises(CapacityError) as caught:
        plan_memory(M3, config, int(79.1 * GIB), ranks=8)
    assert "more ranks" in str(caught.value.hint)


def test_a_full_context_of_m2_on_two_ranks() -> None:
    """196,608 tokens at TP2 take 23.25 GiB of bf16 cache."""
    plan = plan_memory(M2, engine_config(kv_cache_memory_bytes=int(23.25 * GIB)), 300 * GIB, 2)
    assert plan.num_tokens == 196_608
    assert plan.full_context_requests == 1.0
    with pytest.raises(CapacityError) as caught:
        plan_memory(M2, engine_config(kv_cache_memory_bytes=int(22.5 * GIB)), 300 * GIB, 2)
    hinted = int(re.findall(r"--max-model-len (\d+)", str(caught.value.hint))[0])
    assert 190_265 - 128 <= hinted <= 190_265


SMALL = msgspec.structs.replace(
    M3,
    vocab_size=1000,
    hidden_size=256,
    num_heads=8,
    layers=M3.layers[2:6],
    dense_intermediate_size=512,
    moe=msgspec.structs.replace(
        M3.moe, num_experts=8, intermediate_size=128, shared_intermediate_size=128
    ),
)


@settings(deadline=None)
@given(
    available=st.integers(300 << 20, 4 << 30),
    utilization=st.floats(0.3, 1.0),
    ranks=st.sampled_from([1, 2, 4, 8]),
    batched=st.integers(1, 8192),
)
def test_a_refusal_names_the_largest_context_that_fits(
    available: int, utilization: float, ranks: int, batched: int
) -> None:
    def plan(max_len: int | None) -> MemoryPlan:
        cache = {"memory_utilization": utilization}
        config = engine_config(max_len=max_len, batched_tokens=batched, **cache)
        return plan_memory(SMALL, config, available, ranks)

    try:
        whole = plan(None)
    except CapacityError as error:
        assert len(f"{error.message}\n{error.hint}".splitlines()) <= 5
        hinted = re.findall(r"--max-model-len (\d+)", str(error.hint))
        if not hinted:
            with pytest.raises(CapacityError):
                plan(1)
            return
        fits = int(hinted[0])
        assert plan(fits).full_context_requests >= 1
        if fits < SMALL.max_position_embeddings:
            with pytest.raises(CapacityError):
                plan(fits + 1)
    else:
        used = whole.weight_bytes + whole.activation_bytes + whole.logits_bytes + whole.cache_bytes
        assert used <= available * utilization
        assert whole.num_blocks <= whole.max_used_blocks
        if whole.num_blocks < whole.max_used_blocks:
            assert used + whole.block_bytes > int(available * utilization)
        assert whole.full_context_requests >= 1


def test_cache_bytes_may_be_given() -> None:
    config = engine_config(max_len=1024, kv_cache_memory_bytes=64 << 20)
    plan = plan_memory(SMALL, config, 2 * GIB, 1)
    assert plan.num_blocks == (64 << 20) // plan.block_bytes
    with pytest.raises(CapacityError) as caught:
        plan_memory(SMALL, engine_config(max_len=1024, kv_cache_memory_bytes=3 * GIB), 2 * GIB, 1)
    hinted = int(re.findall(r"--kv-cache-memory-bytes (\d+)", str(caught.value.hint))[0])
    plan_memory(SMALL, engine_config(max_len=1024, kv_cache_memory_bytes=hinted), 2 * GIB, 1)


@pytest.mark.parametrize("given", [1, 1 << 20])
def test_too_few_cache_bytes_are_told_from_too_little_memory(given: int) -> None:
    with pytest.raises(CapacityError) as caught:
        plan_memory(SMALL, engine_config(max_len=4096, kv_cache_memory_bytes=given), 2 * GIB, 1)
    assert "utilization" not in str(caught.value.hint)
    wanted = int(re.findall(r"--kv-cache-memory-bytes (\d+)", str(caught.value.hint))[0])
    enough = engine_config(max_len=4096, kv_cache_memory_bytes=wanted)
    assert plan_memory(SMALL, enough, 2 * GIB, 1).full_context_requests == 1


def test_memory_that_no_request_can_use_is_left_to_the_machine() -> None:
    config = msgspec.structs.replace(
        engine_config(max_len=1000), scheduler=SchedulerConfig(max_num_seqs=4)
    )
    plan = plan_memory(SMALL, config, 64 * GIB, 1)
    assert plan.num_blocks == 4 * 8
    assert plan.budget_bytes < GIB
    assert "all that 4 requests at once can use" in render(plan)[-1]
    asked = msgspec.structs.replace(config, cache=CacheConfig(kv_cache_memory_bytes=GIB))
    assert plan_memory(SMALL, asked, 64 * GIB, 1).num_blocks > 4 * 8


@pytest.mark.parametrize(
    ("ranks", "experts", "named"),
    [
        (5, False, "num_attention_heads"),
        (8, False, "the width of an expert"),
        (16, True, "num_local_experts"),
        (4, False, "num_key_value_heads"),
    ],
)
def test_what_the_ranks_cannot_split_is_named(ranks: int, experts: bool, named: str) -> None:
    spec = msgspec.structs.replace(
        SMALL,
        num_heads=48,
        num_kv_heads=6 if ranks == 4 else 4,
        moe=msgspec.structs.replace(SMALL.moe, intermediate_size=132 if ranks == 8 else 128),
    )
    parallel = ParallelConfig(tensor_parallel_size=ranks, enable_expert_parallel=experts)
    check_ranks(spec, ParallelConfig())
    with pytest.raises(SetupError, match=named):
        check_ranks(spec, parallel)


def test_the_precision_may_be_given() -> None:
    half = plan_memory(SMALL, engine_config(max_len=128), 2 * GIB, 1)
    model = ModelConfig(path="checkpoint", dtype="float32", max_model_len=128)
    full = plan_memory(SMALL, EngineConfig(model=model), 2 * GIB, 1)
    assert full.block_bytes == 2 * half.block_bytes
    assert full.weights["attention"] == 2 * half.weights["attention"]
    assert full.weights["router"] == half.weights["router"]


def test_a_context_beyond_the_checkpoints_is_refused() -> None:
    assert max_model_len(M2, engine_config()) == 196608
    assert max_model_len(M2, engine_config(max_len=1000)) == 1000
    with pytest.raises(CapacityError, match="196608"):
        max_model_len(M2, engine_config(max_len=196609))


def test_the_report_names_every_use_on_aligned_lines() -> None:
    plan = plan_memory(M3, engine_config(max_len=4096), 1000 * GIB, 1)
    lines = render(plan)
    for number, word in enumerate(
        ["available", "weights", "activations", "logits", "key", "value", "index_key", "blocks"]
    ):
        assert lines[number].startswith(word)
    starts = {re.search(r"\S  (?=\S)", line[20:]).end() for line in lines}  # type: ignore[union-attr]
    assert len(starts) == 1
    assert f"{plan.num_tokens:,} tokens" in lines[-1]


@pytest.mark.parametrize("threads", [1, 7, 255])
def test_native_threads_are_counted(threads: int) -> None:
    """Each holds a candidate of 8 bytes for every score of the row that it draws from."""
    config = engine_config(max_len=4096)
    one, more = (
        plan_memory(M2, config, 1 << 40, 1, native_threads=count) for count in (1, threads + 1)
    )
    least = threads * M2.vocab_size * 8
    assert least <= more.activation_bytes - one.activation_bytes < least + threads * (2 << 20)
    by_torch = plan_memory(M2, config, 1 << 40, 1)
    assert one.activation_bytes < by_torch.activation_bytes
