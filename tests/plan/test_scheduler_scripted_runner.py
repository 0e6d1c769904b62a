"""The scripted runner is the judge of plans, so it is judged here: every kind of bad plan."""

from __future__ import annotations

import pytest

from mserve.core import RowStart, SamplingParams, Span, StepPlan
from mserve.testing import PlanContractError, ScriptedRunner

PROMPT = list(range(300))


def start(
    row: int, *, tokens: list[int] = PROMPT, block_ids: tuple[int, ...] = (), prompt: int = 300
) -> RowStart:
    return RowStart(
        row=row,
        request_id=f"request {row}",
        token_ids=tokens,
        num_prompt_tokens=prompt,
        sampling=SamplingParams(),
        seed=0,
        block_ids=block_ids,
    )


def plan(step: int, *parts: RowStart | Span) -> StepPlan:
    return StepPlan(
        step,
        tuple(part for part in parts if isinstance(part, RowStart)),
        tuple(part for part in parts if isinstance(part, Span)),
    )


def runner_after(*plans: StepPlan) -> ScriptedRunner:
    runner = ScriptedRunner(
        lambda request_id, position: position, max_num_seqs=4, max_num_batched_tokens=700
    )
    for past in plans:
        runner.run(past)
    return runner


WHOLE = plan(1, start(0), Span(0, 0, 300, True, (5, 6, 7)))
HALF = plan(1, start(0), Span(0, 0, 200, False, (5, 6, 7)))


def test_good_plans_pass_and_follow_the_script() -> None:
    runner = runner_after(HALF)
    result = runner.run(
        plan(2, start(1, block_ids=(5,)), Span(1, 128, 172, True, (8, 9)), Span(0, 200, 100, True))
    )
    assert [(row.row, row.token_ids) for row in result.rows] == [(1, (300,)), (0, (300,))]
    assert runner.tokens_computed == 200 + 172 + 100


@pytest.mark.parametrize(
    ("past", "bad", "message"),
    [
        (WHOLE, plan(1, Span(0, 300, 1, True)), "step 1 after step 1"),
        (WHOLE, plan(2), "without spans"),
        (WHOLE, plan(2, Span(0, 300, 1, True), Span(0, 301, 1, True)), "two spans"),
        (WHOLE, plan(2, Span(1, 0, 1, True)), "never started"),
        (WHOLE, plan(2, start(1), Span(0, 300, 1, True)), "got no span"),
        (WHOLE, plan(2, start(4), Span(4, 0, 1, False, (8,))), "beyond max_num_seqs"),
        (WHOLE, plan(2, start(1, tokens=PROMPT * 3), Span(1, 0, 701, False)), "budget"),
        (WHOLE, plan(2, Span(0, 301, 1, True)), "computed 300"),
        (WHOLE, plan(2, Span(0, 299, 1, False)), "computed 300"),
        (WHOLE, plan(2, Span(0, 300, 2, True)), "known are 301"),
        (WHOLE, plan(2, Span(0, 300, 0, False)), "empty span"),
        (HALF, plan(2, Span(0, 200, 50, True)), "before its last token"),
        (HALF, plan(2, start(1), Span(1, 0, 200, False, (8,))), "table ends before 200"),
        (HALF, plan(2, start(1, block_ids=(6,)), Span(1, 128, 1, False)), "before it is full"),
        (HALF, plan(2, start(1, block_ids=(9,)), Span(1, 128, 1, False)), "never written"),
        (WHOLE, plan(2, start(1, block_ids=(6,)), Span(1, 128, 1, False)), "before it is full"),
        (
            WHOLE,
            plan(2, start(1, tokens=[9, *PROMPT[1:]], block_ids=(5,)), Span(1, 128, 1, False)),
            "another prefix",
        ),
        (
            WHOLE,
            plan(
                2, start(1, tokens=PROMPT[:128], prompt=128, block_ids=(5,)), Span(1, 128, 1, False)
            ),
            "nothing is left",
        ),
        (
            HALF,
            plan(2, Span(0, 200, 1, False), start(1), Span(1, 0, 128, False, (7,))),
            "block 7 went to another row",
        ),
        (WHOLE, plan(2, start(1, prompt=0), Span(1, 0, 1, False, (8,))), "without a prompt"),
    ],
)
def test_bad_plans_are_refused(past: StepPlan, bad: StepPlan, message: str) -> None:
    runner = runner_after(past)
    with pytest.raises(PlanContractError, match=message):
        runner.run(bad)
