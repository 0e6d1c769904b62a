"""The loop survives what its runner does, and the service drains, refuses, audits and reports."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mserve.cache import BlockLedger
from mserve.core import (
    EngineError,
    FinishReason,
    Request,
    RequestOutput,
    SamplingParams,
    SchedulerConfig,
    StepPlan,
    StepResult,
)
from mserve.engine import Engine, Runner, serve
from mserve.scheduler import Scheduler
from mserve.testing import ManualClock, ScriptedRunner
from mserve.wire import (
    Abort,
    Failed,
    FromEngine,
    Outputs,
    Ready,
    Shutdown,
    Submit,
    ToEngine,
    decode_from_engine,
    encode,
)

READY = Ready(max_model_len=640, vocab_size=100, num_blocks=16, max_num_seqs=4, max_waiting=4)


def request(request_id: str, prompt_tokens: int = 5, **sampling: int) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=list(range(prompt_tokens)),
        sampling=SamplingParams(**sampling),  # type: ignore[arg-type]
    )


def make_engine(runner: Runner, clock: ManualClock) -> Engine:
    scheduler = Scheduler(
        SchedulerConfig(max_num_seqs=4, max_waiting=8),
        BlockLedger(16),
        max_model_len=640,
        clock=clock,
    )
    return Engine(scheduler, runner, clock)


class CrashingRunner(ScriptedRunner):
    """Raises ``crash`` instead of running, once."""

    crash: Exception | None = None

    def run(self, plan: StepPlan) -> StepResult:
        if self.crash is not None:
            crash, self.crash = self.crash, None
            raise crash
        return super().run(plan)


def position_runner() -> CrashingRunner:
    return CrashingRunner(lambda request_id, position: position)


def run(engine: Engine) -> list[RequestOutput]:
    outputs = []
    while engine.has_work:
        outputs += engine.step()
        engine.audit()
    return outputs


def test_submit_answers_only_the_refused() -> None:
    engine = make_engine(position_runner(), ManualClock(3.0))
    refused = engine.submit(
        [request("good", max_tokens=2), request("long", 641), request("empty", 0)]
    )
    assert [(r.request_id, r.finish_reason, r.error_code) for r in refused] == [
        ("long", FinishReason.ERROR, "context_length_exceeded"),
        ("empty", FinishReason.ERROR, "invalid_request"),
    ]
    assert refused[1].error == "the prompt is empty"
    assert all(r.times is not None and r.times.finished_s == 3.0 for r in refused)
    assert [token for output in run(engine) for token in output.new_token_ids] == [5, 6]
    assert engine.step() == []


@pytest.mark.parametrize(
    ("crash", "reason"),
    [
        (EngineError("out of memory"), "out of memory"),
        (ValueError("shape (3, 4)"), "the model step failed"),  # details are for the log
    ],
)
def test_a_step_that_breaks_ends_its_requests_and_not_the_engine(
    crash: Exception, reason: str
) -> None:
    runner = position_runner()
    engine = make_engine(runner, ManualClock())
    engine.submit([request(str(number), 150, max_tokens=9) for number in range(6)])
    engine.step()
    engine.step()
    runner.crash = crash
    broken = engine.step()
    assert [(o.request_id, o.finish_reason, o.error) for o in broken] == [
        (str(number), FinishReason.ERROR, reason) for number in range(4)
    ]
    engine.audit()
    rest = run(engine)
    assert {output.request_id for output in rest} == {"4", "5"}
    assert sum(len(output.new_token_ids) for output in rest) == 18
    assert rest[0].num_cached_tokens == 0  # nothing of the broken step is reused
    assert engine.stats().num_free_blocks == 16


def test_abort_all_ends_everything() -> None:
    engine = make_engine(position_runner(), ManualClock())
    engine.submit([request(str(number)) for number in range(4)])
    engine.step()
    ended = engine.abort_all()
    assert [output.request_id for output in ended] == list("0123")
    assert all(output.finish_reason is FinishReason.ABORT for output in ended)
    assert not engine.has_work


class ScriptedPort:
    """Delivers ``inbox``, one entry per poll; ends the test run if polled too often after it.

    An entry may be a function, called when its turn comes.
    """

    def __init__(self, *inbox: list[ToEngine] | Callable[[], list[ToEngine]]) -> None:
        self.inbox = list(inbox)
        self.sent: list[FromEngine] = []
        self.timeouts_s: list[float] = []

    def poll(self, timeout_s: float) -> list[ToEngine]:
        self.timeouts_s.append(timeout_s)
        assert len(self.timeouts_s) < 1000, "the service does not end"
        if not self.inbox:
            return []
        entry = self.inbox.pop(0)
        return entry() if callable(entry) else entry

    def send(self, message: FromEngine) -> None:
        self.sent.append(decode_from_engine(encode(message)))  # it must survive the wire

    def outputs(self) -> list[RequestOutput]:
        return [o for message in self.sent if isinstance(message, Outputs) for o in message.outputs]

    def ends(self) -> dict[str, FinishReason]:
        return {o.request_id: o.finish_reason for o in self.outputs() if o.finish_reason}


def test_serving_answers_aborts_and_ends_when_told() -> None:
    clock = ManualClock()
    port = ScriptedPort(
        [Submit([request("a", max_tokens=3), request("b"), request("too long", 641)])],
        [Abort(["b", "unknown"])],
        [],
        [],
        [Shutdown()],
    )
    serve(make_engine(position_runner(), clock), port, READY, clock)
    assert port.sent[0] == READY
    assert port.ends() == {
        "a": FinishReason.LENGTH,
        "b": FinishReason.ABORT,
        "too long": FinishReason.ERROR,
    }
    last = port.sent[-1]
    assert isinstance(last, Outputs)
    assert (last.stats.num_running, last.stats.num_free_blocks) == (0, 16)


def test_draining_finishes_what_is_there_and_refuses_what_comes() -> None:
    clock = ManualClock()
    port = ScriptedPort(
        [Submit([request("a", max_tokens=5)])], [Shutdown(10.0)], [Submit([request("late")])]
    )
    serve(make_engine(position_runner(), clock), port, READY, clock)
    assert port.ends() == {"a": FinishReason.LENGTH, "late": FinishReason.ERROR}
    (late,) = [output for output in port.outputs() if output.request_id == "late"]
    assert late.error_code == "not_ready"


def test_the_rest_is_aborted_at_the_deadline() -> None:
    clock = ManualClock()

    def too_late() -> list[ToEngine]:
        clock.advance(11.0)
        return []

    port = ScriptedPort([Submit([request("a"), request("b")])], [Shutdown(10.0)], [], too_late)
    serve(make_engine(position_runner(), clock), port, READY, clock)
    assert port.ends() == {"a": FinishReason.ABORT, "b": FinishReason.ABORT}
    assert sum(len(output.new_token_ids) for output in port.outputs()) == 2 * 3


def test_a_quiet_engine_audits_once_and_then_sleeps_longer() -> None:
    clock = ManualClock()
    engine = make_engine(position_runner(), clock)
    audits = []
    audit = engine.audit
    engine.audit = lambda: audits.append(len(port.timeouts_s)) or audit()  # type: ignore[method-assign, func-returns-value]
    port = ScriptedPort([], [Submit([request("a", max_tokens=1)])], [], [], [], [], [Shutdown()])
    serve(engine, port, READY, clock)
    # Polls: two before any work, one beside the step, a short quiet one, then long ones.
    assert audits == [4]
    assert port.timeouts_s[2] == 0.0
    assert port.timeouts_s[3] < port.timeouts_s[4] == port.timeouts_s[0]


def test_wrong_books_end_the_process_with_a_message() -> None:
    clock = ManualClock()
    engine = make_engine(position_runner(), clock)

    def sabotage() -> list[ToEngine]:
        engine._scheduler._rows.ledger.claim(1)  # nobody's block
        return []

    port = ScriptedPort([Submit([request("a", max_tokens=1)])], sabotage)
    with pytest.raises(EngineError, match="counts 1 readers, 0 tables"):
        serve(engine, port, READY, clock)
    assert isinstance(port.sent[-1], Failed)
