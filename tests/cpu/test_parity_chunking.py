"""However the tokens of a sequence are spread over steps, the logits and selections are the same:
one prefill, chunks, token by token, a prefix found in the cache, beside other sequences."""

from __future__ import annotations

import pytest
import torch

from mserve.core import BLOCK_TOKENS
from mserve.layers import attention
from mserve.testing.tiny_models import (
    Session,
    load_model,
    m2_spec,
    m3_spec,
    random_tensors,
    random_tokens,
    relative_error,
)

SPECS = {
    "m2": m2_spec(),
    "m3": m3_spec(layers="fd sm sm"),
    "m3-init-block": m3_spec(layers="sm sd", topk_blocks=4, init_blocks=1, local_blocks=2),
}
LENGTH = 1000


pytestmark = pytest.mark.usefixtures("both_kernels")


@pytest.fixture(scope="module", params=SPECS.items(), ids=SPECS)
def model(request):
    name, spec = request.param
    return spec, load_model(spec, random_tensors(spec, seed=len(name)))


@pytest.fixture
def selections(monkeypatch):
    """Every selection made, by position: one list per layer and group, in layer order."""
    made: dict[int, list[list[list[int]]]] = {}
    select = attention.select_blocks

    def record(index_query, index_plane, blocks, positions, **rule):
        chosen = select(index_query, index_plane, blocks, positions, **rule)
        for position, lists in zip(
            positions.flatten().tolist(), chosen.flatten(0, 1).tolist(), strict=True
        ):
            bare = [[block for block in blocks if block >= 0] for blocks in lists]
            made.setdefault(position, []).append(bare)
        return chosen

    monkeypatch.setattr(attention, "select_blocks", record)
    return made


def same_selections(one, other, spec):
    """Where a step was short enough to see everything it made no list, so compare the rest."""
    sparse = [position for position in one if position in other]
    if spec.index is not None:
        assert set(range(spec.index.topk_blocks * BLOCK_TOKENS, LENGTH)) <= {*one} & {*other}
    return all(one[position] == other[position] for position in sparse)


@pytest.fixture
def whole(model, selections):
    """Logits and selections of one prefill of the whole prompt."""
    spec, ours = model
    token_ids = random_tokens(LENGTH, seed=1)
    logits = Session(spec, ours).prompt(token_ids)
    made = dict(selections)
    selections.clear()
    return token_ids, logits, made


@pytest.mark.parametrize(
    "chunks",
    [
        [1] * 5 + [122, 1, 1, 1, 253],
        [128] * 7,
        [37] * 27,
        [500, 499],
    ],
    ids=["odd", "blocks", "small", "halves"],
)
def test_any_chunking(model, whole, selections, chunks):
    spec, ours = model
    token_ids, logits, made = whole
    chunked = Session(spec, ours).prompt(token_ids, chunks)
    assert relative_error(chunked, logits) < 1e-5
    assert same_selections(made, selections, spec)


def test_token_by_token(model, whole, selections):
    spec, ours = model
    token_ids, logits, made = whole
    prefilled = 380
    chunked = Session(spec, ours).prompt(token_ids, [prefilled] + [1] * (LENGTH - prefilled - 1))
    assert relative_error(chunked, logits) < 1e-5
    assert same_selections(made, selections, spec)


def test_prefix_found_in_the_cache(model, whole, selections):
    spec, ours = model
    token_ids, logits, made = whole
    session = Session(spec, ours)
    first = token_ids[: 6 * BLOCK_TOKENS] + random_tokens(150, seed=2)
    first_blocks = session.blocks(len(first))
    session.logits([(first, 0, first_blocks)])
    selections.clear()
    reused = 6 * BLOCK_TOKENS
    blocks = first_blocks[:6] + session.blocks(LENGTH - reused)
    after = session.logits([(token_ids[reused:], reused, blocks)])
    assert relative_error(after, logits[reused:]) < 1e-5
    assert all(made[position] == lists for position, lists in selections.items())
    # The first sequence's own end was not touched.
    last = session.logits([(first[-1:], len(first) - 1, first_blocks)])
    alone = Session(spec, ours).prompt(first)
    assert relative_error(last, alone[-1:]) < 1e-5


def test_preempted_and_recomputed_elsewhere(model, whole):
    """Recomputing into blocks that hold another sequence's bytes, NaN among them."""
    spec, ours = model
    token_ids, logits, _ = whole
    session = Session(spec, ours, num_blocks=8)
    session.cache.pool.fill_(0xFF)
    again = session.prompt(token_ids, [300, 300])
    assert again.isfinite().all()
    assert relative_error(again, logits) < 1e-5


def test_ragged_spans_are_as_each_alone(model):
    """Prompts, chunks and decoding rows of all contexts in one batch."""
    spec, ours = model
    starts = [0, 700, 129, 128, 0, 900, 640, 0, 77, 700]
    lengths = [300, 1, 1, 1, 1, 64, 1, 130, 3, 1]
    session = Session(spec, ours)
    spans, expected = [], []
    for seed, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        token_ids = random_tokens(start + length, seed=seed)
        expected.append(Session(spec, ours).prompt(token_ids)[start:])
        blocks = session.blocks(start + length)
        if start:
            session.logits([(token_ids[:start], 0, blocks)])
        spans.append((token_ids[start:], start, blocks))
    logits = session.logits(spans)
    for ours_alone, together in zip(expected, logits.split(lengths), strict=True):
        assert relative_error(together, ours_alone) < 1e-5


def test_init_block_is_always_chosen(selections):
    spec = SPECS["m3-init-block"]
    Session(spec, load_model(spec, random_tensors(spec, seed=3))).prompt(random_tokens(LENGTH, 3))
    assert len(selections) == LENGTH
    assert all(
        blocks[0] == 0 for layers in selections.values() for lists in layers for blocks in lists
    )


def test_rows_of_a_batch_do_not_poison_each_other(model):
    """A NaN in one sequence's cache stays in that sequence."""
    spec, ours = model
    session = Session(spec, ours)
    token_ids = random_tokens(200, seed=4)
    sick, well = session.blocks(201), session.blocks(201)
    session.logits([(token_ids, 0, sick), (token_ids, 0, well)])
    session.cache.plane(0, "value")[sick[0]] = torch.nan
    both = session.logits([([5], 200, sick), ([5], 200, well)])
    assert both[0].isnan().all()
    assert relative_error(both[1:], Session(spec, ours).prompt([*token_ids, 5])[-1:]) < 1e-5
