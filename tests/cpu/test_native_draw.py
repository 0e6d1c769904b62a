"""The native draw against its reference: the same token for every row, rule and uniform number."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mserve.kernels import DrawRules, native, uniform
from mserve.kernels.choose import draw
from mserve.testing.native import each_isa, native_library  # noqa: F401 - fixtures

quick = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def rules(random, rows, vocab, **fixed):
    """Rules of ``rows`` rows, all that are not ``fixed`` drawn from what requests ask for."""
    columns = {
        "temperature": random.choice([0.0, 1e-6, 0.3, 1.0, 2.0, 50.0], rows),
        "top_k": random.choice([0, 0, 1, 3, 40, 200, 1500, vocab], rows),
        "top_p": random.choice([1e-9, 0.5, 0.95, 1.0, 1.0], rows),
        "min_p": random.choice([0.0, 0.0, 0.05, 1.0], rows),
        "seeds": random.integers(0, 2**64, rows, dtype=np.uint64),
        "positions": random.integers(0, 1 << 20, rows),
    }
    return DrawRules(**columns | {name: np.full(rows, value) for name, value in fixed.items()})


def seed_of(bits):
    """The seed whose uniform number at position 0 is ``bits`` / 2^53: the hash, backwards."""
    increment, first, second = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
    full = (1 << 64) - 1

    def mixed(value):
        value = (value ^ value >> 30) * first & full
        value = (value ^ value >> 27) * second & full
        return value ^ value >> 31

    def unmixed(value):
        for shift, multiplier in ((31, second), (27, first), (30, 1)):
            shifted = value
            for _ in range(64 // shift):
                shifted = value ^ shifted >> shift
            value = shifted * pow(multiplier, -1, 1 << 64) & full
        return value

    return unmixed(unmixed(bits << 11) ^ mixed(first)) - increment & full


def scores(random, rows, vocab, kind):
    values = torch.from_numpy(random.normal(0, 3, (rows, vocab)).astype(np.float32))
    if kind == "tied":
        values = values.round()
    elif kind == "forbidden":
        values[torch.from_numpy(random.random((rows, vocab)) < 0.9)] = -torch.inf
        values[:, vocab // 2] = 1.0
    elif kind == "level":
        values.fill_(2.5)
    return values


def same(found, expected):
    return all(map(torch.equal, found, expected))


@quick
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(0, 6),
    vocab=st.sampled_from([1, 2, 63, 64, 1024, 1025, 9000]),
    kind=st.sampled_from(["normal", "tied", "forbidden", "level"]),
)
def test_the_reference_draws_the_same_tokens(each_isa, seed, rows, vocab, kind):  # noqa: F811
    random = np.random.default_rng(seed)
    logits, by = scores(random, rows, vocab, kind), rules(random, rows, vocab)
    assert same(native.draw(logits, by), draw.reference(logits, by))


@pytest.mark.parametrize("top_p", [0.9, 1.0])
@pytest.mark.parametrize("bits", [0, 1, 1 << 52, (1 << 53) - (1 << 20)])
def test_the_ends_of_the_uniform_number(each_isa, top_p, bits):  # noqa: F811
    random, seed = np.random.default_rng(7), np.uint64(seed_of(bits))
    assert uniform(np.array([seed]), np.array([0])).item() == bits / 2**53
    logits = scores(random, 40, 3000, "normal")
    by = rules(random, 40, 3000, top_p=top_p, top_k=0, seeds=seed, positions=0)
    assert same(native.draw(logits, by), draw.reference(logits, by))


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_the_largest_uniform_number_still_draws_what_is_allowed(each_isa, top_p):  # noqa: F811
    random, seed = np.random.default_rng(8), np.uint64(seed_of((1 << 53) - 1))
    logits = scores(random, 40, 3000, "forbidden")
    by = rules(random, 40, 3000, top_p=top_p, top_k=0, seeds=seed, positions=0)
    _, found = native.draw(logits, by)
    assert logits.gather(1, found[:, None]).isfinite().all()


def test_a_row_has_its_token_alone_and_on_any_number_of_threads(each_isa):  # noqa: F811
    random = np.random.default_rng(3)
    logits, by = scores(random, 33, 5000, "normal"), rules(random, 33, 5000)
    together = native.draw(logits, by)
    native.set_num_threads(3)
    assert same(native.draw(logits, by), together)
    for row in range(33):
        alone = DrawRules(*(getattr(by, f.name)[row : row + 1] for f in fields(by)))
        _, found = native.draw(logits[row : row + 1], alone)
        assert found.item() == together[1][row]


@pytest.mark.parametrize("spoiled", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_no_numbers_do_not_disturb_the_others(each_isa, spoiled):  # noqa: F811
    random = np.random.default_rng(5)
    logits, by = scores(random, 3, 2000, "normal"), rules(random, 3, 2000)
    _, expected = native.draw(logits, by)
    if spoiled == -torch.inf:
        logits[1] = spoiled
    else:
        logits[1, 700] = spoiled
    highest, found = native.draw(logits, by)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert 0 <= found[1] < 2000
    assert torch.equal(highest.isfinite(), torch.tensor([True, False, True]))
