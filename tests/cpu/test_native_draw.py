"""The native draw against its reference: the same token for every row, rule and uniform number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mserve.kernels import DrawRules, native
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
        "temperature": random.choice([1e-6, 0.3, 1.0, 2.0, 50.0], rows),
        "limit": np.minimum(random.choice([1, 3, 40, 200, 1500, vocab, vocab], rows), vocab),
        "top_p": random.choice([1e-9, 0.5, 0.95, 1.0, 1.0], rows),
        "min_p": random.choice([0.0, 0.0, 0.05, 1.0], rows),
        "uniform": random.random(rows),
    }
    return DrawRules(**columns | {name: np.full(rows, value) for name, value in fixed.items()})


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


@quick
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(0, 6),
    vocab=st.sampled_from([1, 2, 63, 64, 1024, 1025, 9000]),
    kind=st.sampled_from(["normal", "tied", "forbidden", "level"]),
)
def test_the_reference_draws_the_same_tokens(each_isa, seed, rows, vocab, kind):  # noqa: F811
    random = np.random.default_rng(seed)
    logits = scores(random, rows + 1, vocab, kind)
    chosen = random.permutation(rows + 1)[:rows]
    by = rules(random, rows, vocab)
    assert torch.equal(native.draw(logits, chosen, by), draw.reference(logits, chosen, by))


@pytest.mark.parametrize("top_p", [0.9, 1.0])
@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_the_ends_of_the_uniform_number(each_isa, top_p, uniform):  # noqa: F811
    random = np.random.default_rng(7)
    logits = scores(random, 40, 3000, "normal")
    by = rules(random, 40, 3000, top_p=top_p, uniform=uniform, limit=3000)
    everyone = np.arange(40)
    assert torch.equal(native.draw(logits, everyone, by), draw.reference(logits, everyone, by))


def test_a_row_has_its_token_alone_and_on_any_number_of_threads(each_isa):  # noqa: F811
    random = np.random.default_rng(3)
    logits, by = scores(random, 33, 5000, "normal"), rules(random, 33, 5000)
    together = native.draw(logits, np.arange(33), by)
    native.set_num_threads(3)
    assert torch.equal(native.draw(logits, np.arange(33), by), together)
    for row in range(33):
        columns = (by.temperature, by.limit, by.top_p, by.min_p, by.uniform)
        alone = DrawRules(*(column[row : row + 1] for column in columns))
        assert native.draw(logits, np.array([row]), alone).item() == together[row]


@pytest.mark.parametrize("spoiled", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_no_numbers_do_not_disturb_the_others(each_isa, spoiled):  # noqa: F811
    random = np.random.default_rng(5)
    logits, by = scores(random, 3, 2000, "normal"), rules(random, 3, 2000)
    expected = native.draw(logits, np.arange(3), by)
    if spoiled == -torch.inf:
        logits[1] = spoiled
    else:
        logits[1, 700] = spoiled
    found = native.draw(logits, np.arange(3), by)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert 0 <= found[1] < 2000
