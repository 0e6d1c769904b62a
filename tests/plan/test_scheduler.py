"""One rule of the scheduler per test: order, fairness, reuse, preemption, refusal, ends."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.cache import BlockLedger
from mserve.core import (
    CapacityError,
    ContextLengthError,
    EngineError,
    FinishReason,
    QueueFullError,
    Request,
    RequestError,
    RequestOutput,
    RowResult,
    SamplingParams,
    SchedulerConfig,
    SetupError,
    StepPlan,
    StepResult,
)
from mserve.scheduler import Scheduler
from mserve.scheduler.live import LiveRequest
from mserve.scheduler.policy import share_tokens
from mserve.testing import ManualClock, ScriptedRunner

EOS = 7


class Rig:
    """A scheduler with a scripted runner behind it, and what came out of them."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        max_model_len: int = 640,
        script: Callable[[str, int], int] = lambda request_id, position: 1,
        enable_prefix_caching: bool = True,
        **config: Any,
    ) -> None:
        self.clock = ManualClock(1.0)
        self.ledger = BlockLedger(num_blocks)
        self.scheduler = Scheduler(
            SchedulerConfig(**config),
            self.ledger,
            max_model_len=max_model_len,
            eos_token_ids=(EOS,),
            model_id="model",
            clock=self.clock,
            enable_prefix_caching=enable_prefix_caching,
        )
        self.runner = ScriptedRunner(script)
        self.plans: list[StepPlan] = []
        self.outputs: dict[str, list[RequestOutput]] = defaultdict(list)

    def add(self, request_id: str, prompt: int | list[int], **fields: Any) -> None:
        """A prompt given as a number is that many tokens that no other request has."""
        if isinstance(prompt, int):
            first = 1000 * (1 + len(request_id) + sum(map(ord, request_id)))
            prompt = list(range(first, first + prompt))
        cache_salt, priority = fields.pop("cache_salt", ""), fields.pop("priority", 0)
        self.scheduler.add(
            Request(
                request_id=request_id,
                prompt_token_ids=prompt,
                sampling=SamplingParams(**fields),
                cache_salt=cache_salt,
                priority=priority,
            )
        )

    def step(self) -> dict[str, int]:
        """One step; how many tokens each request computed."""
        plan = self.scheduler.plan()
        assert plan is not None
        self.plans.append(plan)
        self.clock.advance(1.0)
        rows = self.runner._rows
        for output in self.scheduler.settle(plan, self.runner.run(plan)):
            self.outputs[output.request_id].append(output)
        self.scheduler.audit()
        return {rows[span.row].start.request_id: span.length for span in plan.spans}

    def run(self, max_steps: int = 2000) -> list[dict[str, int]]:
        steps = []
        while self.scheduler.has_work:
            steps.append(self.step())
            assert len(steps) < max_steps
        return steps

    def abort(self, *request_ids: str) -> None:
        for output in self.scheduler.abort(request_ids):
            self.outputs[output.request_id].append(output)
        self.scheduler.audit()

    def tokens(self, request_id: str) -> list[int]:
        return [t for output in self.outputs[request_id] for t in output.new_token_ids]

    def end(self, request_id: str) -> RequestOutput:
        (finished,) = [o for o in self.outputs[request_id] if o.finish_reason is not None]
        return finished


# --- sharing out a step ----------------------------------------------------------------------


def test_short_requests_pass_a_long_prompt() -> None:
    rig = Rig(num_blocks=1000, max_model_len=100_128, max_num_batched_tokens=2048)
    rig.add("long", 100_000, max_tokens=1)
    rig.step()
    for number in range(16):
        rig.add(f"short {number}", 60, max_tokens=5)
    computed = rig.step()
    assert all(computed[f"short {number}"] == 60 for number in range(16))
    assert sum(computed.values()) == 2048  # and nothing is wasted
    for _ in range(4):
        assert rig.step()["long"] == 2048 - 16
    assert all(rig.end(f"short {n}").finish_reason is FinishReason.LENGTH for n in range(16))


def test_equal_prompts_finish_one_after_the_other() -> None:
    rig = Rig(max_num_batched_tokens=256)
    for name in "abcd":
        rig.add(name, 512, max_tokens=1)
    steps = rig.run()
    ends = [max(i for i, step in enumerate(steps) if name in step) for name in "abcd"]
    assert ends == sorted(ends)
    assert ends[0] < len(steps) - 2


def test_decoding_requests_get_their_token_first() -> None:
    rig = Rig(max_num_batched_tokens=10, max_num_seqs=10)
    for name in "abcdefgh":
        rig.add(name, 1, max_tokens=20)
    rig.step()
    rig.add("prompt", 50, max_tokens=1)
    assert rig.step() == {**dict.fromkeys("abcdefgh", 1), "prompt": 2}


def test_no_more_requests_run_than_the_budget_has_tokens() -> None:
    rig = Rig(max_num_batched_tokens=3, max_num_seqs=8)
    for name in "abcde":
        rig.add(name, 2, max_tokens=4)
    assert set(rig.step()) == set("abc")
    rig.run()
    assert all(len(rig.tokens(name)) == 4 for name in "abcde")


@settings(derandomize=True, database=None, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 5000), st.integers(0, 2)), min_size=1, max_size=20),
    st.integers(0, 5000),
)
def test_shares_are_fair_and_complete(prompts: list[tuple[int, int]], extra: int) -> None:
    pending = [live(number, priority) for number, (_, priority) in enumerate(prompts)]
    needs = [need for need, _ in prompts]
    room = len(prompts) + extra
    shares = share_tokens(pending, needs, room)
    assert sum(shares) == min(room, sum(needs))
    for need, share in zip(needs, shares, strict=True):
        assert min(need, max(1, room // (2 * len(needs)))) <= share <= need
    for a, b in pairwise(pending):
        if (a.priority, needs[a.number]) == (b.priority, needs[b.number]):
            assert shares[a.number] >= shares[b.number]


def live(number: int, priority: int) -> LiveRequest:
    return LiveRequest(
        request=Request(request_id=str(number), prompt_token_ids=[1], sampling=SamplingParams()),
        number=number,
        priority=priority,
        seed=0,
        max_output_tokens=1,
        stop_ids=frozenset(),
        arrival_s=0.0,
        tokens=array("I", [1]),
    )


# --- admission -------------------------------------------------------------------------------


def test_first_come_first_served() -> None:
    rig = Rig(max_num_seqs=1, policy="fcfs")
    for name, priority in (("a", 2), ("b", 1), ("c", 0)):
        rig.add(name, 5, max_tokens=1, priority=priority)
    assert [next(iter(step)) for step in rig.run()] == ["a", "b", "c"]


def test_lower_priority_numbers_first_then_arrival() -> None:
    rig = Rig(max_num_seqs=1, policy="priority")
    for name, priority in (("a", 2), ("b", 1), ("c", 0), ("d", 1)):
        rig.add(name, 5, max_tokens=1, priority=priority)
    assert [next(iter(step)) for step in rig.run()] == ["c", "b", "d", "a"]


def test_a_request_that_does_not_fit_is_not_overtaken() -> None:
    rig = Rig(num_blocks=6)
    rig.add("first", 400, max_tokens=20)  # 4 blocks
    rig.step()
    rig.add("big", 500, max_tokens=1)  # needs 4 of the 2 that are left
    rig.add("small", 10, max_tokens=1)
    assert set(rig.step()) == {"first"}
    steps = rig.run()
    assert next(i for i, s in enumerate(steps) if "big" in s) <= next(
        i for i, s in enumerate(steps) if "small" in s
    )
    assert rig.scheduler.stats().preemptions_total == 0


@pytest.mark.parametrize(("prompt", "admitted"), [(384, True), (385, False)])
def test_an_admission_leaves_a_block_for_those_that_run(prompt: int, admitted: bool) -> None:
    rig = Rig(num_blocks=5)
    rig.add("runs", 100, max_tokens=10)
    rig.step()
    rig.add("comes", prompt, max_tokens=1)  # 3 or 4 of the 4 blocks that are left
    assert ("comes" in rig.step()) == admitted


def test_the_queue_is_bounded() -> None:
    rig = Rig(max_num_seqs=2, max_waiting=1)
    for name in "abc":  # at once, before any of them has a row
        rig.add(name, 5, max_tokens=2)
    with pytest.raises(QueueFullError, match="3 requests are running or waiting"):
        rig.add("d", 5)
    rig.step()
    with pytest.raises(QueueFullError):
        rig.add("d", 5)
    rig.abort("a")
    rig.add("d", 5)


def test_without_a_queue_requests_run_at_once_or_not_at_all() -> None:
    rig = Rig(max_num_seqs=2, max_waiting=0)
    rig.add("a", 5)
    rig.add("b", 5)
    with pytest.raises(QueueFullError):
        rig.add("c", 5)
    assert set(rig.step()) == {"a", "b"}


# --- reuse -----------------------------------------------------------------------------------


def test_a_finished_prompt_is_reused_up_to_its_last_token() -> None:
    rig = Rig()
    prompt = list(range(384))
    rig.add("a", prompt, max_tokens=1)
    rig.run()
    rig.add("same", prompt, max_tokens=1)
    rig.add("longer", [*prompt, 5], max_tokens=1)
    rig.add("salted", prompt, max_tokens=1, cache_salt="x")
    rig.add("scored", prompt, max_tokens=1, prompt_logprobs=0)
    rig.run()
    cached = {name: rig.outputs[name][0].num_cached_tokens for name in rig.outputs}
    assert cached == {"a": 0, "same": 256, "longer": 384, "salted": 0, "scored": 0}
    stats = rig.scheduler.stats()
    assert (stats.prefix_query_tokens_total, stats.prefix_hit_tokens_total) == (4 * 384 + 1, 640)


def test_an_answer_is_reused_by_the_next_turn() -> None:
    rig = Rig(script=lambda request_id, position: 100 + position)
    rig.add("turn 1", list(range(200)), max_tokens=200)
    rig.run()
    rig.add("turn 2", [*range(200), *rig.tokens("turn 1"), 1, 2, 3], max_tokens=1)
    rig.run()
    assert rig.outputs["turn 2"][0].num_cached_tokens == 384


def test_a_prompt_on_its_way_is_computed_once() -> None:
    rig = Rig(num_blocks=100, max_num_batched_tokens=128, max_num_seqs=32)
    prompt = list(range(500))
    for number in range(16):
        rig.add(f"choice {number}", prompt, max_tokens=3)
    rig.add("other", 20, max_tokens=1)
    assert set(rig.step()) == {"choice 0", "other"}
    rig.run()
    assert [rig.outputs[f"choice {n}"][0].num_cached_tokens for n in range(16)] == [0] + [384] * 15
    once, tails = 500 + 2, 15 * (500 - 384 + 2)
    assert rig.runner.tokens_computed == once + tails + 20


def test_who_waits_for_a_block_goes_on_when_its_maker_is_aborted() -> None:
    rig = Rig(max_num_batched_tokens=150)
    prompt = list(range(500))
    rig.add("maker", prompt, max_tokens=1)
    rig.add("waiter", prompt, max_tokens=1)
    rig.step()
    assert set(rig.step()) == {"maker"}
    rig.abort("maker")
    assert set(rig.step()) == {"waiter"}
    rig.run()
    assert rig.outputs["waiter"][0].num_cached_tokens == 256


def test_blocks_of_a_failed_request_are_not_reused() -> None:
    rig = Rig(max_num_batched_tokens=150)
    prompt = list(range(500))
    rig.add("a", prompt, max_tokens=1)
    rig.step()
    rig.step()
    rig.runner.fails["a"] = "not a number"
    rig.step()
    assert (rig.end("a").finish_reason, rig.end("a").error) == (
        FinishReason.ERROR,
        "not a number",
    )
    rig.add("b", prompt, max_tokens=1)
    rig.run()
    assert rig.outputs["b"][0].num_cached_tokens == 0


def test_without_prefix_caching_nothing_is_named_or_reused() -> None:
    rig = Rig(enable_prefix_caching=False)
    for name in "ab":
        rig.add(name, list(range(300)), max_tokens=1)
        rig.run()
    assert rig.outputs["b"][0].num_cached_tokens == 0
    assert rig.scheduler.stats().prefix_query_tokens_total == 0


# --- preemption ------------------------------------------------------------------------------


def test_the_last_arrival_is_preempted_and_resumes_where_it_was() -> None:
    rig = Rig(num_blocks=5, script=lambda request_id, position: 100 + position)
    rig.add("first", 250, max_tokens=300)
    rig.add("second", 126, max_tokens=200)
    rig.run()
    assert rig.scheduler.stats().preemptions_total > 0
    starts = [start for plan in rig.plans for start in plan.starts]
    assert [start.request_id for start in starts] == ["first", "second", "second"]
    resumed = starts[-1]
    assert resumed.num_prompt_tokens == 126
    assert len(resumed.token_ids) > 126
    assert rig.tokens("first") == [100 + position for position in range(250, 550)]
    assert rig.tokens("second") == [100 + position for position in range(126, 326)]
    assert starts[1].seed == resumed.seed


def test_the_lowest_priority_is_preempted_first() -> None:
    rig = Rig(num_blocks=5, policy="priority")
    rig.add("low", 250, max_tokens=300, priority=1)
    rig.add("high", 126, max_tokens=200, priority=0)
    rig.run()
    starts = [start.request_id for plan in rig.plans for start in plan.starts]
    assert starts == ["high", "low", "low"]


def test_prompt_logprobs_survive_a_preemption() -> None:
    """Scored in part, preempted, scored again: every token once, in order."""
    rig = Rig(num_blocks=8, max_num_batched_tokens=150)
    rig.add("old", 126, max_tokens=20)
    rig.add("older", 126, max_tokens=20)
    rig.add("scored", 600, max_tokens=1, prompt_logprobs=0)
    rig.run()
    starts = [start for plan in rig.plans for start in plan.starts]
    assert [start.request_id for start in starts] == ["old", "older", "scored", "scored"]
    before = [plan for plan in rig.plans if starts[-1] not in plan.starts][:-1]
    computed = [s.length for plan in before for s in plan.spans if s.row == starts[2].row]
    assert 0 < sum(computed) < 600
    prompt_logprobs = rig.outputs["scored"][0].prompt_logprobs
    assert prompt_logprobs is not None
    assert [e.logprob if e else None for e in prompt_logprobs] == [
        None,
        *(-float(position) for position in range(1, 600)),
    ]


# --- ends ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "count", "reason", "stop_token_id"),
    [
        ({}, 4, FinishReason.STOP, EOS),
        ({"max_tokens": 3}, 3, FinishReason.LENGTH, None),
        ({"max_tokens": 4}, 4, FinishReason.STOP, EOS),
        ({"ignore_eos": True, "max_tokens": 6}, 6, FinishReason.LENGTH, None),
        ({"ignore_eos": True}, 30, FinishReason.LENGTH, None),  # the rest of the context
        ({"ignore_eos": True, "stop_token_ids": (12,)}, 3, FinishReason.STOP, 12),
        ({"min_tokens": 3}, 4, FinishReason.STOP, EOS),
        ({"min_tokens": 4, "max_tokens": 9}, 9, FinishReason.LENGTH, None),
    ],
)
def test_ends(
    fields: dict[str, Any], count: int, reason: FinishReason, stop_token_id: int | None
) -> None:
    """The script says 10, 11, 12, EOS, 14, 15, ..."""
    rig = Rig(
        max_model_len=40,
        script=lambda request_id, position: EOS if position == 13 else position,
    )
    rig.add("a", 10, **fields)
    rig.run()
    end = rig.end("a")
    assert (len(rig.tokens("a")), end.finish_reason, end.stop_token_id) == (
        count,
        reason,
        stop_token_id,
    )


def test_min_tokens_reaches_the_runner_as_forbidden_ids() -> None:
    rig = Rig()
    rig.add("a", 5, max_tokens=5, min_tokens=2, stop_token_ids=(3, 5))
    rig.add("b", 5, max_tokens=5, min_tokens=2, ignore_eos=True)
    rig.add("c", 5, max_tokens=5)
    rig.step()
    forbidden = [start.forbidden_until_min_tokens for start in rig.plans[0].starts]
    assert forbidden == [(3, 5, EOS), (), ()]


def test_max_tokens_zero_computes_the_prompt_and_samples_nothing() -> None:
    rig = Rig(max_num_batched_tokens=100)
    rig.add("echo", 250, max_tokens=0, prompt_logprobs=0)
    rig.run()
    end = rig.end("echo")
    assert len(rig.plans) == 3
    assert not any(span.samples for plan in rig.plans for span in plan.spans)
    assert (end.finish_reason, end.new_token_ids) == (FinishReason.LENGTH, [])
    assert end.prompt_logprobs is not None
    assert len(end.prompt_logprobs) == 250
    assert end.prompt_logprobs[0] is None
    assert all(end.prompt_logprobs[1:])


def test_times_are_marks_of_the_clock() -> None:
    rig = Rig(max_num_seqs=1)
    rig.add("a", 5, max_tokens=3)
    rig.add("b", 5, max_tokens=2)
    rig.run()
    for name, marks in (("a", (1, 1, 2, 4)), ("b", (1, 4, 5, 6))):
        times = rig.end(name).times
        assert times is not None
        assert marks == (
            times.arrival_s,
            times.scheduled_s,
            times.first_token_s,
            times.finished_s,
        )


def test_abort_frees_blocks_of_those_that_run_and_forgets_those_that_wait() -> None:
    rig = Rig(num_blocks=8, max_num_seqs=1)
    rig.add("runs", 300)
    rig.add("waits", 300)
    rig.step()
    assert rig.ledger.num_claimable == 5
    rig.abort("runs", "waits", "never heard of")
    assert rig.ledger.num_claimable == 8
    assert rig.end("runs").finish_reason is rig.end("waits").finish_reason is FinishReason.ABORT
    assert not rig.scheduler.has_work
    assert rig.scheduler.plan() is None
    rig.abort("runs")  # once is enough
    assert len(rig.outputs["runs"]) == 2


def test_a_runner_that_returns_no_token_ends_the_request() -> None:
    rig = Rig()
    rig.add("a", 5)
    plan = rig.scheduler.plan()
    assert plan is not None
    (output,) = rig.scheduler.settle(plan, StepResult(plan.step, (RowResult(0),)))
    assert (output.finish_reason, output.error_code) == (FinishReason.ERROR, "engine_error")
    assert not rig.scheduler.has_work


def test_an_answer_to_another_plan_is_refused() -> None:
    rig = Rig()
    rig.add("a", 5)
    plan = rig.scheduler.plan()
    assert plan is not None
    with pytest.raises(EngineError, match="step 1 was to be settled"):
        rig.scheduler.settle(plan, StepResult(plan.step + 1, ()))


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "fields", "error", "message"),
    [
        ([], {}, RequestError, "the prompt is empty"),
        ([-1], {}, RequestError, "no token id"),
        ([1 << 40], {}, RequestError, "no token id"),
        (list(range(640)), {}, ContextLengthError, "no room in a context of 640"),
        (list(range(641)), {"max_tokens": 0}, ContextLengthError, "no room"),
        (list(range(600)), {"max_tokens": 41}, ContextLengthError, "ask for at most 40"),
    ],
)
def test_refusals_name_the_limit(
    prompt: list[int], fields: dict[str, Any], error: type[RequestError], message: str
) -> None:
    rig = Rig()
    with pytest.raises(error, match=message):
        rig.add("a", prompt, **fields)
    assert not rig.scheduler.has_work


def test_what_just_fits_is_served() -> None:
    rig = Rig(num_blocks=5)
    rig.add("full", 640, max_tokens=0)
    rig.add("almost", 639)
    rig.add("half", 320, max_tokens=320)
    rig.run()
    assert len(rig.tokens("almost")) == 1
    assert len(rig.tokens("half")) == 320


def test_one_id_is_one_request_at_a_time() -> None:
    rig = Rig()
    rig.add("a", 5)
    with pytest.raises(RequestError, match="already running"):
        rig.add("a", 5)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"num_blocks": 4}, CapacityError, "640 tokens needs 5 KV blocks, and there are 4"),
        ({"max_num_seqs": 0}, SetupError, "max_num_seqs"),
        ({"max_num_batched_tokens": 0}, SetupError, "max_num_batched_tokens"),
        ({"max_waiting": -1}, SetupError, "max_waiting"),
        ({"max_model_len": 0}, SetupError, "max_model_len"),
    ],
)
def test_limits_that_cannot_work_are_refused_at_the_start(
    fields: dict[str, Any], error: type[SetupError], message: str
) -> None:
    with pytest.raises(error, match=message):
        Rig(**fields)


# --- repeatability ---------------------------------------------------------------------------


def test_the_same_calls_give_the_same_plans() -> None:
    def plans() -> list[StepPlan]:
        rig = Rig(num_blocks=12, max_num_batched_tokens=100)
        for number in range(8):
            rig.add(f"request {number}", 50 + 37 * number, max_tokens=30 + number)
        rig.run()
        return rig.plans

    first = plans()
    assert first == plans()
    seeds = [start.seed for plan in first for start in plan.starts]
    assert len(set(seeds)) >= 8
