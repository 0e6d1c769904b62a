"""Recording native ops and playing them back, and the ops at the ends of a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mserve import kernels
from mserve.kernels import native
from mserve.kernels.choose import draw, embedding, residual_sum, rope_angles
from mserve.testing.native import each_isa, native_library  # noqa: F401 - fixtures

quick = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
seeds = st.integers(0, 2**31)
dtypes = st.sampled_from([torch.bfloat16, torch.float32])


def greedy(rows):
    none = np.zeros(rows, dtype=np.int64)
    return kernels.DrawRules(np.zeros(rows), none, np.ones(rows), np.zeros(rows), none, none)


@quick
@given(
    seed=seeds,
    rows=st.integers(0, 3),
    width=st.integers(1, 2500),
    spoil=st.sampled_from(["nothing", "ties", "nan", "infinite", "forbidden"]),
)
def test_highest_is_what_torch_finds(each_isa, seed, rows, width, spoil):  # noqa: F811
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, width, generator=random)
    places = torch.randint(width, (rows, 2), generator=random)
    if spoil == "ties":
        scores.scatter_(1, places, 9.0)
    elif spoil == "nan":
        scores.scatter_(1, places, torch.nan)
    elif spoil == "infinite":
        scores.scatter_(1, places, torch.inf)
    elif spoil == "forbidden":
        scores.fill_(-torch.inf)
    values, ids = native.draw(scores, greedy(rows))
    expected_values, expected_ids = draw.reference(scores, greedy(rows))
    assert torch.equal(ids, expected_ids)
    torch.testing.assert_close(values, expected_values, rtol=0, atol=0, equal_nan=True)


@quick
@given(seed=seeds, dtype=dtypes, tokens=st.integers(0, 70), width=st.sampled_from([1, 16, 700]))
def test_embedding_and_residual_sum_are_exact(each_isa, seed, dtype, tokens, width):  # noqa: F811
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(50, width, generator=random).to(dtype)
    ids = torch.randint(50, (tokens,), generator=random)
    x = native.embedding(ids, weight)
    assert torch.equal(x, embedding.reference(ids, weight))
    y = torch.randn(tokens, width, generator=random).to(dtype)
    assert torch.equal(native.residual_sum(x, y), residual_sum.reference(x, y))


@pytest.mark.parametrize("outside", [-1, 50, 1 << 40])
def test_an_id_outside_of_the_vocabulary_is_refused(native_library, outside):  # noqa: F811
    with pytest.raises(IndexError, match="vocabulary"):
        native.embedding(torch.tensor([3, outside]), torch.zeros(50, 4))


def test_angles_of_a_million_positions(each_isa):  # noqa: F811
    frequencies = kernels.rope_frequencies(5e6, 64, torch.device("cpu"))
    positions = torch.tensor([0, 1, 127, 1 << 17, (1 << 20) - 1])
    found = native.rope_angles(positions, frequencies)
    for part, expected in zip(found, rope_angles.reference(positions, frequencies), strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=2e-7)


def chain(x, weight):
    """A few ops whose intermediate values die on the way."""
    for _ in range(4):
        x = native.residual_sum(x, native.linear(x, weight))
        x = native.rms_norm(x, weight[0].contiguous(), 1e-6)
    return x, *native.draw(x, greedy(len(x)))


def filled(tensor, seed):
    return tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)))


def test_a_play_computes_from_what_the_inputs_hold_now(native_library):  # noqa: F811
    weight = filled(torch.empty(24, 24), 0)
    arena = native.Arena()
    inputs = [torch.empty(rows, 24) for rows in (1, 7, 3)]
    recorded = []
    for x in inputs:
        results, tape = native.record(lambda x=x: chain(x, weight), arena)
        assert tape is not None
        recorded.append((x, results, tape))
    for seed in (5, 6):
        for x, results, tape in recorded:
            expected = chain(filled(x, seed), weight)
            tape.play()
            assert all(map(torch.equal, results, expected))


def test_recordings_share_the_memory_of_what_died(native_library):  # noqa: F811
    arena, weight = native.Arena(), torch.randn(24, 24)
    x = torch.randn(5, 24)
    native.record(lambda: chain(x, weight), arena)
    held = len(arena._slabs)
    assert held < 9  # eight values of five rows each, and the highest
    for _ in range(3):
        native.record(lambda: chain(x, weight), arena)
    assert len(arena._slabs) == held


def test_a_step_that_torch_takes_part_in_has_no_tape(native_library):  # noqa: F811
    x, weight = torch.randn(2, 24), torch.randn(24, 24)
    results, tape = native.record(lambda: (native.linear(x + 1, weight),), native.Arena())
    assert tape is None
    assert torch.equal(results[0], native.linear(x + 1, weight))


def test_a_step_that_fails_leaves_no_recording(native_library):  # noqa: F811
    x, weight = torch.randn(2, 24), torch.randn(24, 24)

    def fails():
        native.linear(x, weight)
        raise ValueError("halfway")

    arena = native.Arena()
    with pytest.raises(ValueError, match="halfway"):
        native.record(fails, arena)
    (found,), tape = native.record(lambda: (native.linear(x, weight),), arena)
    expected = native.linear(filled(x, 1), weight)
    tape.play()
    assert torch.equal(found, expected)
