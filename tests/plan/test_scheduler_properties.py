"""Random schedules: whatever arrives, aborts, fails or is preempted, the answers are the script's.

The oracle for a request looks at that request alone: its tokens follow from the script, whatever
chunking, prefix reuse or preemption it went through. The scripted runner checks every plan against
what was really written into the blocks, and the ledger is audited after every step.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mserve.cache import BlockLedger
from mserve.core import FinishReason, Request, RequestOutput, SamplingParams, SchedulerConfig
from mserve.scheduler import Scheduler
from mserve.testing import ManualClock, ScriptedRunner, scripted_logprob

EOS = 7
STOP = 11
MAX_MODEL_LEN = 640


@dataclass(frozen=True)
class Case:
    """One request and what happens to it."""

    family: int  # prompts of one family are equal up to the length of the shorter one ...
    fork: int  # ... or up to here
    length: int
    voice: int | None  # requests of one voice are answered alike; None: like nobody else
    max_tokens: int | None
    min_tokens: int
    ignore_eos: bool
    logprobs: bool
    prompt_logprobs: bool
    salt: str
    priority: int
    arrives: int  # step
    aborted_after: int | None  # steps since arrival
    aborted_midway: bool  # between plan and settle, not between steps
    fails_after: int | None  # steps since arrival


@dataclass(frozen=True)
class Scenario:
    cases: tuple[Case, ...]
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    policy: str
    enable_prefix_caching: bool


rarely = st.sampled_from([None] * 20 + [0, 1, 3, 30])
cases = st.builds(
    Case,
    family=st.integers(0, 1),
    fork=st.sampled_from([10, 128, 300, 640]),
    length=st.sampled_from([1, 126, 127, 128, 129, 255, 256, 257, 382, 384, 400, 510]),
    voice=st.sampled_from([None, 0]),
    max_tokens=st.sampled_from([0, 1, 2, 9, 20, 40, None]),
    min_tokens=st.sampled_from([0, 0, 3]),
    ignore_eos=st.booleans(),
    logprobs=st.booleans(),
    prompt_logprobs=st.sampled_from([False, False, False, True]),
    salt=st.sampled_from(["", "", "", "theirs"]),
    priority=st.integers(0, 2),
    arrives=st.sampled_from([0, 0, 0, 1, 2, 5, 20]),
    aborted_after=rarely,
    aborted_midway=st.booleans(),
    fails_after=rarely,
)
scenarios = st.builds(
    Scenario,
    cases=st.lists(cases, min_size=1, max_size=6).map(tuple),
    num_blocks=st.sampled_from([5, 5, 6, 12]),
    max_num_seqs=st.sampled_from([1, 3, 6, 6]),
    max_num_batched_tokens=st.sampled_from([64, 130, 300, 1000]),
    policy=st.sampled_from(["fcfs", "fcfs", "priority"]),
    enable_prefix_caching=st.sampled_from([True, True, True, False]),
)


def prompt_of(case: Case, number: int) -> list[int]:
    common = min(case.fork, case.length)
    own = 10_000 * (number + 1)
    return [1000 * (case.family + 1) + i for i in range(common)] + [
        own + i for i in range(common, case.length)
    ]


def said(voice: int, position: int) -> int:
    """A fixed stream of small ids in which EOS and STOP turn up now and then."""
    return (position * 2654435761 + voice * 40503 + (position * voice) ** 2) % 97


def request_of(case: Case, number: int) -> Request:
    max_tokens = case.max_tokens
    if max_tokens is not None:
        max_tokens = min(max_tokens, MAX_MODEL_LEN - case.length)
    sampling = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=case.min_tokens if max_tokens is None else min(case.min_tokens, max_tokens),
        ignore_eos=case.ignore_eos,
        stop_token_ids=(STOP,),
        logprobs=0 if case.logprobs else None,
        prompt_logprobs=0 if case.prompt_logprobs else None,
    )
    return Request(
        request_id=str(number),
        prompt_token_ids=prompt_of(case, number),
        sampling=sampling,
        priority=case.priority,
        cache_salt=case.salt,
    )


def voice_of(case: Case, number: int) -> int:
    return 100 + number if case.voice is None else case.voice


def expected_answer(case: Case, request: Request, number: int) -> tuple[list[int], FinishReason]:
    sampling = request.sampling
    limit = sampling.max_tokens
    if limit is None:
        limit = MAX_MODEL_LEN - case.length
    tokens: list[int] = []
    for index in range(limit):
        token = said(voice_of(case, number), case.length + index)
        tokens.append(token)
        ends = token == STOP or (token == EOS and not sampling.ignore_eos)
        if ends and index >= sampling.min_tokens:
            return tokens, FinishReason.STOP
    return tokens, FinishReason.LENGTH


class Simulation:
    """Runs one scenario to its end, checking after every step."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.requests = [request_of(case, n) for n, case in enumerate(scenario.cases)]
        self.expected = [
            expected_answer(case, request, number)
            for number, (case, request) in enumerate(
                zip(scenario.cases, self.requests, strict=True)
            )
        ]
        self.most_steps = self._most_steps()
        self.clock = ManualClock(1.0)
        self.scheduler = Scheduler(
            SchedulerConfig(
                max_num_seqs=scenario.max_num_seqs,
                max_num_batched_tokens=scenario.max_num_batched_tokens,
                policy=scenario.policy,  # type: ignore[arg-type]
            ),
            BlockLedger(scenario.num_blocks),
            max_model_len=MAX_MODEL_LEN,
            eos_token_ids=(EOS,),
            clock=self.clock,
            enable_prefix_caching=scenario.enable_prefix_caching,
        )
        self.runner = ScriptedRunner(
            self._script,
            max_num_seqs=scenario.max_num_seqs,
            max_num_batched_tokens=scenario.max_num_batched_tokens,
        )
        self.outputs: dict[str, list[RequestOutput]] = {r.request_id: [] for r in self.requests}
        self.num_busy_steps = 0

    def _script(self, request_id: str, position: int) -> int:
        number = int(request_id)
        return said(voice_of(self.scenario.cases[number], number), position)

    def run(self) -> None:
        last_event = max(case.arrives for case in self.scenario.cases) + 10
        step = 0
        while self.scheduler.has_work or step <= last_event:
            for case, request in zip(self.scenario.cases, self.requests, strict=True):
                if case.arrives == step:
                    self.scheduler.add(request)
                if case.fails_after is not None and case.arrives + case.fails_after == step:
                    self.runner.fails[request.request_id] = "scripted failure"
            self._abort(step, midway=False)
            self._step(step)
            self.scheduler.audit()
            step += 1
            assert self.num_busy_steps <= self.most_steps, "somebody starves"
        self._check()

    def _step(self, step: int) -> None:
        plan = self.scheduler.plan()
        if plan is None:
            assert not self.scheduler.has_work
            self._abort(step, midway=True)
            return
        self.num_busy_steps += 1
        assert len(plan.spans) == self.scheduler.stats().num_running, "a row got no token"
        self.clock.advance(1.0)
        result = self.runner.run(plan)
        self._abort(step, midway=True)
        self._take(self.scheduler.settle(plan, result))

    def _abort(self, step: int, *, midway: bool) -> None:
        doomed = [
            request.request_id
            for case, request in zip(self.scenario.cases, self.requests, strict=True)
            if case.aborted_after is not None
            and case.arrives + case.aborted_after == step
            and case.aborted_midway == midway
        ]
        self._take(self.scheduler.abort(doomed))

    def _take(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            self.outputs[output.request_id].append(output)

    def _most_steps(self) -> int:
        """The first in turn gets a token in every step and is never preempted by a later one, so
        every busy step computes a new token of it. Under the priority policy, each arrival can
        put the work of all others back once."""
        tokens = sum(
            case.length + len(answer)
            for case, (answer, _) in zip(self.scenario.cases, self.expected, strict=True)
        )
        return tokens if self.scenario.policy == "fcfs" else tokens * (1 + len(self.requests))

    def _check(self) -> None:
        stats = self.scheduler.stats()
        assert stats.num_free_blocks == stats.num_blocks, "a block leaked"
        assert (stats.num_running, stats.num_waiting) == (0, 0)
        for number, case in enumerate(self.scenario.cases):
            self._check_answer(case, number)
            self._check_cached(case, number)

    def _check_answer(self, case: Case, number: int) -> None:
        request, outputs = self.requests[number], self.outputs[str(number)]
        finished = [output for output in outputs if output.finish_reason is not None]
        assert len(finished) == 1 and finished[0] is outputs[-1]
        reason, times = finished[0].finish_reason, finished[0].times
        assert times is not None
        assert times.arrival_s <= times.scheduled_s <= times.first_token_s <= times.finished_s
        tokens = [token for output in outputs for token in output.new_token_ids]
        expected, expected_reason = self.expected[number]
        if reason is FinishReason.ABORT:
            assert case.aborted_after is not None
            assert tokens == expected[: len(tokens)]
        elif reason is FinishReason.ERROR:
            assert case.fails_after is not None and finished[0].error == "scripted failure"
            assert tokens == expected[: len(tokens)]
        else:
            assert (tokens, reason) == (expected, expected_reason)
            stopped_by = tokens[-1] if reason is FinishReason.STOP else None
            assert finished[0].stop_token_id == stopped_by
        self._check_logprobs(case, request, outputs, tokens)

    def _check_logprobs(
        self, case: Case, request: Request, outputs: list[RequestOutput], tokens: list[int]
    ) -> None:
        scored = [entry for output in outputs for entry in output.logprobs or ()]
        wanted = enumerate(tokens, start=case.length) if case.logprobs else ()
        assert scored == [scripted_logprob(token, position) for position, token in wanted]
        given_up = outputs[-1].finish_reason in (FinishReason.ABORT, FinishReason.ERROR)
        delivered = [output.prompt_logprobs for output in outputs if output.prompt_logprobs]
        if not case.prompt_logprobs:
            assert not delivered
        elif tokens or not given_up:
            prompt = request.prompt_token_ids
            assert delivered == [
                [None, *(scripted_logprob(prompt[i], i) for i in range(1, len(prompt)))]
            ]
            assert outputs[0].prompt_logprobs

    def _check_cached(self, case: Case, number: int) -> None:
        """Cached tokens can only come from prompts with the same salt."""
        outputs = self.outputs[str(number)]
        assert all(output.num_cached_tokens == 0 for output in outputs[1:])
        sources = [
            min(case.fork, other.fork, case.length, other.length)
            for n, other in enumerate(self.scenario.cases)
            if n != number and other.salt == case.salt and other.family == case.family
        ]
        most = 0 if case.prompt_logprobs else max(sources, default=0) // 128 * 128
        assert outputs[0].num_cached_tokens <= min(most, case.length - 1)
        if not self.scenario.enable_prefix_caching:
            assert outputs[0].num_cached_tokens == 0


@settings(
    max_examples=10_000,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(scenarios)
def test_every_schedule_gives_every_request_its_script(scenario: Scenario) -> None:
    Simulation(scenario).run()
