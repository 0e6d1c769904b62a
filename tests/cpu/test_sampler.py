"""Sampling against a naive sampler of one row, transformers' processors and chi-square."""

import math

import numpy as np
import pytest
import torch
import transformers.generation.logits_process as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.kernels import best, rank_of, uniform
from mserve.sampler import Bias, Forbidden, Penalties, SamplingInputs, TokenCounts, sample, score
from mserve.sampler.penalties import edited


def inputs_for(rows, edits=()):
    """SamplingInputs from one dict per row; absent keys are neutral."""

    def column(name, default, dtype):
        return np.array([row.get(name, default) for row in rows], dtype=dtype)

    return SamplingInputs(
        temperature=column("temperature", 1.0, np.float64),
        top_k=column("top_k", 0, np.int64),
        top_p=column("top_p", 1.0, np.float64),
        min_p=column("min_p", 0.0, np.float64),
        seeds=column("seed", 0, np.int64),
        positions=column("position", 0, np.int64),
        edits=edits,
    )


def naive_probabilities(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, **_):
    """The distribution of one row, by plain Python over a sorted list."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    highest = logits[order[0]]
    weights = {t: math.exp((logits[t] - highest) / temperature) for t in order}
    if top_k:
        order = order[:top_k]
    total = sum(weights[t] for t in order)
    kept, mass = [], 0.0
    for token in order:
        if top_p < 1.0 and mass >= top_p * total:
            break
        mass += weights[token]
        kept.append(token)
    kept = [token for token in kept if weights[token] >= min_p]
    total = sum(weights[token] for token in kept)
    return {token: weights[token] / total for token in kept}


def normal_logits(rows, vocab, seed, scale=3.0):
    return scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


RULES = [
    {},
    {"temperature": 0.6},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 1.7, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_draws_follow_the_distribution(rule):
    """Chi-square of 20,000 draws, one per output position of one seed."""
    draws, vocab = 20_000, 24
    logits = normal_logits(1, vocab, seed=5, scale=1.5)
    expected = naive_probabilities(logits[0].tolist(), **rule)
    rows = [{**rule, "seed": 1234, "position": position} for position in range(draws)]
    tokens = sample(logits.repeat(draws, 1), inputs_for(rows)).token_ids
    counts = torch.bincount(tokens, minlength=vocab).tolist()
    assert set(np.flatnonzero(counts).tolist()) <= set(expected)
    frequent = [token for token, p in expected.items() if p * draws >= 5]
    statistic = sum(
        (counts[token] - expected[token] * draws) ** 2 / (expected[token] * draws)
        for token in frequent
    )
    # Mean of the statistic is its degrees of freedom, its variance twice that: five deviations.
    freedom = max(1, len(frequent) - 1)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_uniforms_are_uniform_and_unrelated_across_seeds_and_positions():
    seeds, positions = np.meshgrid(np.arange(-100, 100), np.arange(200), indexing="ij")
    values = uniform(seeds.ravel(), positions.ravel())
    assert ((values >= 0) & (values < 1)).all()
    assert len(np.unique(values)) == values.size
    counts = np.histogram(values, bins=100, range=(0, 1))[0]
    expected = values.size / 100
    assert ((counts - expected) ** 2 / expected).sum() < 99 + 5 * math.sqrt(2 * 99)
    table = values.reshape(seeds.shape)
    for one, other in ((table[:, 1:], table[:, :-1]), (table[1:], table[:-1])):
        correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 5 / math.sqrt(one.size)


def test_uniforms_are_the_same_on_every_machine():
    """Same seed, same text is a promise across releases too."""
    seeds, positions = [0, 1, -1, 1 << 62], [0, 1, 2, 1 << 30]
    values = uniform(np.array(seeds), np.array(positions)).tolist()
    assert values == [integer_uniform(s, p) for s, p in zip(seeds, positions, strict=True)]
    assert values[0] == 0.40388814240778803


def integer_uniform(seed, position):
    """``uniform`` in unbounded integers."""

    def mixed(value):
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    golden = 0x9E3779B97F4A7C15
    stream = mixed((seed + golden) % 2**64)
    place = mixed((position * golden + 0xBF58476D1CE4E5B9) % 2**64)
    return (mixed(stream ^ place) >> 11) / 2**53


rule_of_a_row = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-6, 0.5, 1.0, 2.0]),
        "top_k": st.sampled_from([0, 1, 2, 7, 63, 64, 100]),
        "top_p": st.sampled_from([1e-9, 0.3, 0.9, 0.999, 1.0]),
        "min_p": st.sampled_from([0.0, 0.05, 1.0]),
        "seed": st.integers(-(1 << 63), (1 << 63) - 1),
        "position": st.integers(0, 1 << 20),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(rule_of_a_row, min_size=2, max_size=9), st.integers(0, 1000), st.booleans())
def test_a_row_does_not_depend_on_its_batch(rules, seed, tied):
    """Also not on the number of candidates that the other rows make it rank."""
    logits = normal_logits(len(rules), 64, seed)
    if tied:
        logits = logits.round()
    together = sample(logits, inputs_for(rules)).token_ids
    for row, rule in enumerate(rules):
        alone = sample(logits[row : row + 1], inputs_for([rule])).token_ids
        assert alone.item() == together[row].item()
        expected = naive_probabilities(
            logits[row].tolist(), **{**rule, "temperature": rule["temperature"] or 1e-9}
        )
        assert alone.item() in expected


def test_many_candidates_and_few_give_the_same_token():
    """A flat nucleus is wider than the first ranking; a wide top_k exceeds it too."""
    vocab = 5000
    logits = normal_logits(6, vocab, seed=3, scale=0.2)
    rules = [
        {"top_p": 0.9},
        {"top_p": 0.1},
        {"top_k": 3000, "top_p": 0.7},
        {"top_k": 3000},
        {"top_k": 4},
        {"top_p": 0.999, "min_p": 0.4},
    ]
    for rule in rules:
        rule["seed"] = 77
    tokens = sample(logits, inputs_for(rules)).token_ids
    for row, rule in enumerate(rules):
        expected = naive_probabilities(logits[row].tolist(), **rule)
        point = uniform(np.array([77]), np.array([0]))[0]
        running = np.cumsum(list(expected.values()))  # from the most likely on
        place = np.searchsorted(running, point, side="right")
        assert tokens[row].item() == list(expected)[place]


def test_greedy_and_top_1_take_the_lowest_of_equal_ids():
    logits = torch.zeros(3, 50)
    logits[:, [7, 9, 30]] = 4.0
    rules = [{"temperature": 0.0}, {"top_k": 1}, {"temperature": 0.0, "top_k": 3, "min_p": 0.5}]
    assert sample(logits, inputs_for(rules)).token_ids.tolist() == [7, 7, 7]


def test_top_k_keeps_exactly_k_of_equal_logits():
    logits = torch.zeros(400, 10)
    rows = [{"top_k": 3, "position": position} for position in range(400)]
    assert set(sample(logits, inputs_for(rows)).token_ids.tolist()) == {0, 1, 2}


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 40), st.booleans())
def test_best_is_a_stable_descending_sort(seed, count, tied):
    logits = normal_logits(3, 40, seed)
    if tied:
        logits = logits.round() * 0.5
    order = torch.argsort(logits, dim=-1, descending=True, stable=True)
    values, ids = best(logits, count)
    assert torch.equal(ids, order[:, :count])
    assert torch.equal(values, logits.gather(1, ids))
    for place in range(count):
        assert (rank_of(logits, ids[:, place]) == place + 1).all()


def kept_by_transformers(logits, processors):
    for processor in processors:
        logits = processor(None, logits)
    return torch.isfinite(logits)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_tokens_are_left_as_with_transformers(seed):
    logits = normal_logits(1, 60, seed)
    rule = {"temperature": 0.8, "top_k": 20, "top_p": 0.85, "min_p": 0.03}
    kept = kept_by_transformers(
        logits,
        [
            oracle.TemperatureLogitsWarper(rule["temperature"]),
            oracle.TopKLogitsWarper(rule["top_k"]),
            oracle.TopPLogitsWarper(rule["top_p"]),
            oracle.MinPLogitsWarper(rule["min_p"]),
        ],
    )
    # Uniforms this dense reach every token that has at least 1/4000 of the mass.
    rows = [{**rule, "seed": 9, "position": position} for position in range(40_000)]
    tokens = sample(logits.repeat(len(rows), 1), inputs_for(rows)).token_ids
    assert sorted(set(tokens.tolist())) == torch.nonzero(kept[0])[:, 0].tolist()


def edited_logits(logits, edits):
    """What ``sample`` sees, read back through a draw-free path."""
    with edited(logits, edits):
        return logits.clone()


def test_repetition_penalty_equals_transformers():
    logits = normal_logits(2, 30, seed=1)
    contexts = torch.tensor([[1, 2, 3, 2, 1, 29], [5, 5, 5, 5, 5, 0]])
    expected = oracle.RepetitionPenaltyLogitsProcessor(1.3)(contexts, logits.clone())
    counts = [TokenCounts(row[:4].numpy(), row[4:].numpy()) for row in contexts]
    assert torch.allclose(edited_logits(logits, [penalties(counts, repetition=1.3)]), expected)


def penalties(counts, *, repetition=1.0, presence=0.0, frequency=0.0):
    rows = np.repeat(np.arange(len(counts)), [len(row.ids) for row in counts])
    return Penalties(
        rows=rows,
        ids=np.concatenate([row.ids for row in counts]),
        output_counts=np.concatenate([row.output_counts for row in counts]),
        repetition=np.full(len(rows), repetition),
        presence=np.full(len(rows), presence),
        frequency=np.full(len(rows), frequency),
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 19), max_size=20),
    st.lists(st.integers(0, 19), max_size=40),
    st.integers(0, 40),
)
def test_presence_and_frequency_count_the_output(prompt, output, known):
    """However much of the output was known when counting began."""
    logits = normal_logits(1, 20, seed=2)
    known = min(known, len(output))
    counts = TokenCounts(np.array(prompt, np.int64), np.array(output[:known], np.int64))
    for token in output[known:]:
        counts.add(token)
    expected = logits.clone()
    for token in set(output):
        expected[0, token] -= 0.3 * output.count(token) + 0.7
    found = edited_logits(logits, [penalties([counts], presence=0.7, frequency=0.3)])
    assert torch.allclose(found, expected, atol=1e-6)


def test_edits_apply_in_order_and_leave_no_trace():
    logits = normal_logits(3, 16, seed=4)
    raw = logits.clone()
    edits = [
        penalties([TokenCounts(np.array([3]), np.array([3]))], repetition=2.0, frequency=1.0),
        Bias(np.array([0, 2]), np.array([3, 8]), np.array([50.0, 100.0])),
        Forbidden(np.array([1, 1, 0, 0]), np.array([0, 0, 3, 5])),
    ]
    greedy = [{"temperature": 0.0}] * 3
    tokens = sample(logits, inputs_for(greedy, edits)).token_ids.tolist()
    assert torch.equal(logits, raw)
    masked = raw.clone()
    masked[0, [3, 5]] = -torch.inf
    masked[1, 0] = -torch.inf
    assert tokens == [masked[0].argmax().item(), masked[1].argmax().item(), 8]


def test_a_row_that_is_not_a_number_fails_alone():
    logits = normal_logits(5, 12, seed=6)
    logits[1, 4] = torch.nan
    logits[2, 4] = torch.inf
    logits[3] = -torch.inf
    for rule in ({"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.5}):
        sampled = sample(logits, inputs_for([rule] * 5))
        assert sampled.failed.tolist() == [False, True, True, True, False]
        assert ((sampled.token_ids >= 0) & (sampled.token_ids < 12)).all()


def test_logprobs_are_the_log_softmax_of_raw_logits():
    logits = normal_logits(4, 33, seed=8).round()  # rounded: with ties
    reference = torch.log_softmax(logits.double(), dim=-1)
    token_ids = torch.tensor([0, 5, 32, 7])
    for row, entry in enumerate(score(logits, token_ids, [0, 1, 20, 5])):
        order = torch.argsort(reference[row], descending=True, stable=True).tolist()
        assert entry.token_id == token_ids[row]
        assert entry.logprob == pytest.approx(reference[row, entry.token_id].item(), abs=1e-5)
        assert entry.rank == 1 + order.index(entry.token_id)
        assert [token for token, _ in entry.top] == order[: [0, 1, 20, 5][row]]
        for token, logprob in entry.top:
            assert logprob == pytest.approx(reference[row, token].item(), abs=1e-5)
