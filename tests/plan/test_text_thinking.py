"""One mapping for all thinking switches; the start state is where the template's prompt ends."""

from __future__ import annotations

from typing import Any

import pytest
from dialect_cases import DIALECTS, TEMPLATES

from mserve.core import RequestError
from mserve.text import THINKING_VARIABLES, Start, plan_thinking

M2, M3 = DIALECTS["m2"], DIALECTS["m3"]
DISABLED: list[dict[str, Any]] = [
    {"thinking_mode": "disabled"},
    {"enable_thinking": False},
    {"thinking": {"type": "disabled"}},
    {"thinking": False},
    {"reasoning": {"effort": "none"}},
    {"reasoning": {"enabled": False}},
    {"reasoning_effort": "none"},
    {"thinking_token_budget": 0},
    {"thinking": {"budget_tokens": 0}},
]
ENABLED: list[dict[str, Any]] = [
    {"thinking_mode": "enabled"},
    {"enable_thinking": True},
    {"thinking": {"type": "enabled", "budget_tokens": 4000}},
]
SILENT: list[dict[str, Any]] = [
    {},
    {"reasoning_effort": "high"},
    {"reasoning": {"effort": "medium"}},
    {"thinking_token_budget": -1},
    {"thinking": None},
]


@pytest.mark.parametrize(
    "args",
    [(switches, {}) for switches in DISABLED]
    + [({}, switches) for switches in DISABLED if set(switches) <= THINKING_VARIABLES],
)
def test_off_is_off_for_m3_and_an_honest_no_for_m2(
    args: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    plan = plan_thinking(M3, *args)
    assert (plan.variables, plan.start) == ({"thinking_mode": "disabled"}, Start.CONTENT)
    assert plan.warnings == ()
    plan = plan_thinking(M2, *args)
    assert (plan.variables, plan.start) == ({}, Start.THINKING)
    assert bool(plan.warnings) == (plan.budget != 0)


@pytest.mark.parametrize("switches", ENABLED)
def test_on(switches: dict[str, Any]) -> None:
    plan = plan_thinking(M3, switches, {"other": 1})
    assert plan.variables == {"thinking_mode": "enabled", "other": 1}
    assert plan.start is Start.THINKING
    plan = plan_thinking(M2, switches, {"other": 1})
    assert (plan.variables, plan.start, plan.warnings) == ({"other": 1}, Start.THINKING, ())


@pytest.mark.parametrize("switches", SILENT)
def test_silence_leaves_the_template_alone(switches: dict[str, Any]) -> None:
    plan = plan_thinking(M3, switches, {})
    assert (plan.variables, plan.start, plan.budget) == ({}, Start.EITHER, None)
    plan = plan_thinking(M3, switches, {}, default="disabled")
    assert (plan.variables, plan.start) == ({"thinking_mode": "disabled"}, Start.CONTENT)


def test_effort_has_no_levels_and_says_so() -> None:
    for dialect in (M2, M3):
        [warning] = plan_thinking(dialect, {"reasoning_effort": "low"}, {}).warnings
        assert "reasoning effort low has no effect" in warning


def test_budgets_and_conflicts() -> None:
    assert plan_thinking(M2, {"thinking": {"type": "enabled", "budget_tokens": 7}}, {}).budget == 7
    assert plan_thinking(M3, {"reasoning": {"max_tokens": 9}}, {}).budget == 9
    plan = plan_thinking(M3, {"enable_thinking": True, "reasoning_effort": "none"}, {})
    assert plan.start is Start.THINKING
    assert plan.warnings == ("thinking switches disagree: enable_thinking was followed",)


@pytest.mark.parametrize(
    "switches",
    [
        {"thinking_mode": "sometimes"},
        {"enable_thinking": "yes"},
        {"thinking": {"type": 3}},
        {"reasoning_effort": "much"},
        {"reasoning": {"effort": "much"}},
        {"thinking_token_budget": "many"},
        {"thinking_budget": -2},
        {"thinking_budget": True},
    ],
)
def test_values_that_mean_nothing_are_refused(switches: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="must be"):
        plan_thinking(M3, switches, {})


@pytest.mark.parametrize("arch", ["m2", "m3"])
@pytest.mark.parametrize("mode", ["enabled", "disabled", "adaptive", None])
def test_the_start_is_where_the_prompt_ends(arch: str, mode: str | None) -> None:
    dialect = DIALECTS[arch]
    plan = plan_thinking(dialect, {"thinking_mode": mode}, {})
    says_markers = {"role": "user", "content": "What do <mm:think></mm:think><think> mean?"}
    prompt = (
        TEMPLATES[arch]
        .render([says_markers], add_generation_prompt=True, variables=plan.variables)
        .rstrip("\n")
    )
    if prompt.endswith(dialect.think_open):
        assert plan.start is Start.THINKING
    elif prompt.endswith(dialect.think_close):
        assert plan.start is Start.CONTENT
    else:
        assert plan.start is Start.EITHER
