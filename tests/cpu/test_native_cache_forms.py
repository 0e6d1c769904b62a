"""Native writes, attention and selection over packed caches: against the references, and against
their own chunks and batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mserve.core import BLOCK_TOKENS, KVLayout, Plane
from mserve.kernels import CachePlane, ScaledPlane, choose, native
from mserve.layers import KVCache
from mserve.testing.native import each_isa, native_library  # noqa: F401 - fixtures

quick = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
seeds = st.integers(0, 2**31)
FORMS = ("float8_e4m3fn", "int8", "bfloat16")
stored_under = st.sampled_from([(form, torch.bfloat16) for form in FORMS[:2]]) | st.sampled_from(
    [(form, torch.float32) for form in FORMS]
)
BOUND = {torch.bfloat16: 2e-2, torch.float32: 2e-5}


def planes_of(form: str, num_blocks: int, heads: int, width: int) -> list[CachePlane]:
    """Keys and values of one layer in a pool, cleared."""
    planes = []
    for kind in ("key", "value"):
        planes.append(Plane(0, kind, heads, width, form))
        if form == "int8":
            planes.append(Plane(0, f"{kind}_scale", heads, 1, "float32"))
    cache = KVCache(KVLayout(tuple(planes)), num_blocks, torch.device("cpu"))
    cache.clear(torch.arange(num_blocks))
    return [cache.plane(0, kind) for kind in ("key", "value")]


def contents(plane: CachePlane) -> list[torch.Tensor]:
    tensors = plane if isinstance(plane, ScaledPlane) else (plane,)
    return [tensor.contiguous().view(torch.uint8) for tensor in tensors]


class Context:
    """A filled cache in one form, for spans that end with their last block."""

    def __init__(self, seed, form, dtype, spans, num_blocks, groups, width):
        self.random = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.keys, self.values = planes_of(form, spans * num_blocks, groups, width)
        for plane in (self.keys, self.values):
            tokens = spans * num_blocks * BLOCK_TOKENS
            choose.write_kv.reference(
                plane, torch.arange(tokens), self.normal(tokens, groups, width)
            )
        order = torch.randperm(spans * num_blocks, generator=self.random)
        self.blocks = order.view(spans, num_blocks)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.random).to(self.dtype)


def every_bfloat16() -> torch.Tensor:
    """All of them, NaN and infinities with them, as vectors of like and of mixed sizes."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    mixed = bits[torch.randperm(1 << 16, generator=torch.Generator().manual_seed(3))]
    return torch.cat([bits, mixed]).view(torch.bfloat16).view(-1, 4, 64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_written_bytes_are_the_reference_s(each_isa, form, dtype):  # noqa: F811
    vectors = every_bfloat16().to(dtype)
    if dtype == torch.float32:  # between them too, and halfway
        finer = vectors.view(torch.int32) + torch.randint(
            0, 1 << 16, vectors.shape, generator=torch.Generator().manual_seed(4), dtype=torch.int32
        )
        vectors = torch.cat([vectors, finer.view(torch.float32)])
    slots = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(5))
    num_blocks = -(-len(vectors) // BLOCK_TOKENS)
    (expected, _), (found, _) = (planes_of(form, num_blocks, 4, 64) for _ in range(2))
    choose.write_kv.reference(expected, slots, vectors)
    native.write_kv(found, slots, vectors)
    for wanted, got in zip(contents(expected), contents(found), strict=True):
        if form == "bfloat16":  # a NaN is a NaN
            wanted, got = (
                torch.nan_to_num(part.view(torch.bfloat16), nan=7.0) for part in (wanted, got)
            )
        elif wanted.shape[-1] == 4:  # factors
            wanted, got = (
                torch.nan_to_num(part.view(torch.float32), nan=-1.0) for part in (wanted, got)
            )
        assert torch.equal(wanted, got)


shapes = st.fixed_dictionaries(
    {
        "spans": st.integers(1, 3),
        "num_blocks": st.integers(1, 12),
        "length": st.sampled_from([1, 2, 40]),
        "groups": st.integers(1, 3),
        "per_group": st.sampled_from([1, 3, 8]),
        "width": st.sampled_from([8, 34, 64, 128]),
    }
)


@quick
@given(seed=seeds, stored=stored_under, shape=shapes, missing=st.integers(0, 60))
def test_attention_over_every_form(each_isa, seed, stored, shape, missing):  # noqa: F811
    form, dtype = stored
    spans, num_blocks, length, groups, width = (
        shape[k] for k in ("spans", "num_blocks", "length", "groups", "width")
    )
    context = Context(seed, form, dtype, spans, num_blocks, groups, width)
    query = context.normal(spans, length, groups * shape["per_group"], width)
    last = num_blocks * BLOCK_TOKENS - missing
    positions = (last - length + torch.arange(length)).expand(spans, -1).contiguous()
    place = (query, context.keys, context.values, context.blocks, positions)
    scale, bound = width**-0.5, BOUND[dtype]
    torch.testing.assert_close(
        native.paged_attention(*place, scale),
        choose.paged_attention.reference(*place, scale),
        rtol=bound,
        atol=bound,
    )
    own = positions // BLOCK_TOKENS
    chosen = torch.stack([torch.where(own > 0, 0, -1), own], -1).sort(-1).values
    chosen = torch.where(chosen[..., :1] < 0, chosen.flip(-1), chosen)
    chosen = chosen[:, :, None].expand(-1, -1, groups, -1).contiguous()
    torch.testing.assert_close(
        native.sparse_attention(*place, chosen, scale),
        choose.sparse_attention.reference(*place, chosen, scale),
        rtol=bound,
        atol=bound,
    )


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_token_has_the_same_bits_in_any_chunk_and_batch(each_isa, form, dtype):  # noqa: F811
    spans, length, groups, width = 2, 300, 2, 64
    context = Context(7, form, dtype, spans, 20, groups, width)
    query = context.normal(spans, length, 8, width)
    index_query = context.normal(spans, length, 4, width)
    positions = (20 * BLOCK_TOKENS - 7 - length + torch.arange(length)).expand(spans, -1)
    rule = {"topk_blocks": 5, "local_blocks": 1, "init_blocks": 0}
    index_plane = head_of(context.keys)

    def compute(spans_of, tokens):
        place = (context.blocks[spans_of], positions[spans_of, tokens].contiguous())
        part = query[spans_of, tokens].contiguous()
        index_part = index_query[spans_of, tokens].contiguous()
        chosen = native.select_blocks(index_part, index_plane, *place, **rule)
        planes = (context.keys, context.values)
        return (
            chosen,
            native.paged_attention(part, *planes, *place, 0.125),
            native.sparse_attention(part, *planes, *place, chosen[:, :, :groups].contiguous(), 0.1),
        )

    whole = compute(slice(0, 2), slice(0, length))
    for spans_of in (slice(0, 2), slice(1, 2)):
        for tokens in (slice(0, 1), slice(299, 300), slice(100, 290)):
            for part, all_of_it in zip(compute(spans_of, tokens), whole, strict=True):
                assert torch.equal(part, all_of_it[spans_of, tokens])


def head_of(plane: CachePlane) -> CachePlane:
    """Its first head, as index keys have."""
    if isinstance(plane, ScaledPlane):
        return ScaledPlane(plane.values[:, :1], plane.scales[:, :1])
    return plane[:, :1]


@quick
@given(seed=seeds, stored=stored_under, local=st.integers(0, 2), length=st.sampled_from([1, 70]))
def test_selection_takes_the_best_blocks_in_every_form(
    each_isa,  # noqa: F811
    seed,
    stored,
    local,
    length,
):
    form, dtype = stored
    context = Context(seed, form, dtype, 1, 14, 1, 128)
    query = context.normal(1, length, 3, 128)
    positions = (14 * BLOCK_TOKENS - 30 - length + torch.arange(length))[None]
    place = (query, context.keys, context.blocks, positions)
    rule = {"topk_blocks": 4, "local_blocks": local, "init_blocks": 1}
    found = native.select_blocks(*place, **rule)
    expected = choose.select_blocks.reference(*place, **rule)
    # Scores that differ by roundings of fp32 only may change places.
    differing = (found != expected).any(-1).double().mean()
    assert differing <= 0.02 if length > 1 else torch.equal(found, expected)


@pytest.mark.parametrize("form", FORMS[:2])
def test_what_was_not_written_is_not_read(each_isa, form):  # noqa: F811
    context = Context(9, form, torch.bfloat16, 1, 3, 2, 64)
    positions = torch.tensor([[2 * BLOCK_TOKENS + 21]])
    query = context.normal(1, 1, 4, 64)
    place = (query, context.keys, context.values, context.blocks, positions, 0.2)
    before = native.paged_attention(*place)
    last = int(context.blocks[0, -1])
    for plane in (context.keys, context.values):
        for tensor in plane if isinstance(plane, ScaledPlane) else (plane,):
            tensor.view(torch.uint8)[last, :, 22:] = 0xFF
    assert torch.equal(native.paged_attention(*place), before)
