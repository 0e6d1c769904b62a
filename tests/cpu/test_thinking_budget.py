"""A thinking budget ends thinking, over the model of one line that ``test_runner`` has."""

from __future__ import annotations

import pytest
from test_runner import decode, expected_next, make_runner, prompt_of, start

from mserve.core import SamplingParams, Span, StepPlan, ThinkingBudget

CLOSE, OPEN = 55, 54


def continued(prompt, count, budget):
    """The same by hand: the model's own tokens, but for those that the budget forces."""
    tokens, is_open, num_thinking = list(prompt), budget.is_open, 0
    for _ in range(count):
        token = expected_next(tokens)
        if is_open and num_thinking >= budget.max_tokens:
            token = CLOSE
        tokens.append(token)
        if token == CLOSE:
            is_open = False
        elif token == OPEN:
            is_open = True
        elif is_open:
            num_thinking += 1
    return tokens[len(prompt) :]


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1e-6, "top_k": 9}])
@pytest.mark.parametrize("max_tokens", [0, 1, 5, 100])
@pytest.mark.parametrize("is_open", [True, False])
def test_the_closer_comes_when_the_budget_is_spent(sampling, max_tokens, is_open):
    budget = ThinkingBudget(max_tokens, CLOSE, OPEN, is_open)
    params = SamplingParams(**sampling, thinking_budget=budget)
    prompt = prompt_of(20, 3)
    wanted = continued(prompt, 12, budget)
    runner = make_runner()
    first = runner.run(StepPlan(0, (start(0, prompt, params),), (Span(0, 0, 20, True, (3,)),)))
    assert [*first.rows[0].token_ids, *decode(runner, 0, 20, 11)] == wanted
    assert (CLOSE in wanted) == (is_open and max_tokens < 12)


def test_a_preempted_row_comes_back_with_its_count():
    budget = ThinkingBudget(6, CLOSE, OPEN, True)
    params = SamplingParams(temperature=0.0, thinking_budget=budget)
    prompt = prompt_of(20, 3)
    wanted = continued(prompt, 12, budget)
    runner = make_runner()
    again = start(0, [*prompt, *wanted[:4]], params, prompt=20)
    first = runner.run(StepPlan(0, (again,), (Span(0, 0, 24, True, (3,)),)))
    assert [*first.rows[0].token_ids, *decode(runner, 0, 24, 7)] == wanted[4:]


@pytest.mark.parametrize("seed", range(4))
def test_hot_sampling_cannot_escape(seed):
    budget = ThinkingBudget(2, CLOSE, OPEN, True)
    params = SamplingParams(temperature=2.0, thinking_budget=budget)
    prompt = prompt_of(10, seed)
    runner = make_runner()
    first = runner.run(StepPlan(0, (start(0, prompt, params),), (Span(0, 0, 10, True, (1,)),)))
    tokens = [*first.rows[0].token_ids, *decode(runner, 0, 10, 5)]
    thought = [token for token in tokens[: tokens.index(CLOSE)] if token != OPEN]
    assert len(thought) <= budget.max_tokens
