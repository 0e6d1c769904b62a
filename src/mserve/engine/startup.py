"""From an ``EngineConfig`` to an engine that is ready: nothing is left to be done lazily.

    checkpoint ──> memory plan ──> ranks meet ──> weights ──> KV blocks ──> warm-up ──> ready

Each stage reports its progress, and what was found and decided becomes the report of ``Ready``.
Whatever cannot work is refused in the earliest stage that can know. Knows the order of starting
and what owns what. Does not know sockets (``main``) or how a stage does its work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Self

import torch

from mserve.cache import BlockLedger
from mserve.capacity import Machine, MemoryPlan, Threads, plan_memory, read_machine, render
from mserve.checkpoint import Checkpoint, open_checkpoint
from mserve.core import (
    BLOCK_TOKENS,
    CapacityError,
    CheckpointError,
    Constraint,
    EngineConfig,
    RowStart,
    SamplingParams,
    Span,
    StepPlan,
    blocks_for,
)
from mserve.engine.load import (
    device_of_rank,
    dtype_name,
    load_runner,
    load_vocabulary,
    model_id,
    spec_to_run,
    use_threads,
)
from mserve.engine.loop import Engine, Runner
from mserve.engine.ranks import (
    RankedRunner,
    RankProcesses,
    init_method,
    rendezvous,
    stay_on_this_machine,
)
from mserve.kernels import KernelChoice
from mserve.parallel import Groups, close_groups, init_groups
from mserve.runner import is_out_of_memory
from mserve.scheduler import Scheduler
from mserve.wire import Loading, Ready

Report = Callable[[Loading], None]

_REPORT_INTERVAL_S = 0.1


class StartedEngine:
    """An engine that is ready, and everything that has to end with it."""

    def __init__(
        self,
        engine: Engine,
        ready: Ready,
        checkpoint: Checkpoint,
        ranks: RankProcesses | None,
        resources: ExitStack,
    ) -> None:
        self.engine = engine
        self.ready = ready
        self.checkpoint = checkpoint
        self._ranks = ranks
        self._resources = resources

    def watch_ranks(self, on_death: Callable[[int], None]) -> None:
        """Call ``on_death`` with a rank, from another thread, when its process dies."""
        if self._ranks is not None:
            self._ranks.watch(on_death)

    def close(self) -> None:
        """End the other ranks and leave their group. Safe to call twice."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def start(config: EngineConfig, report: Report = lambda loading: None) -> StartedEngine:
    """Start rank 0 and all others. ``SetupError`` for what the user can change."""
    with ExitStack() as resources:
        try:
            return _start(config, report, resources)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise CapacityError(
            "memory ran out while the model was loaded",
            hint="another process may have taken it; lower --gpu-memory-utilization",
        )


def _start(config: EngineConfig, report: Report, resources: ExitStack) -> StartedEngine:
    size = config.parallel.tensor_parallel_size
    report(Loading("checkpoint", 0.0))
    # All are asked for here: a rank that found none would die with nobody to tell.
    device, *_ = [device_of_rank(config, rank) for rank in range(size)]
    checkpoint = open_checkpoint(config.model.path)

    report(Loading("memory", 0.0))
    machine = read_machine()
    threads = machine.threads(config.num_threads, size)
    kernels = use_threads(config, checkpoint, device, threads[0].count, threads[0].cpus)
    available_bytes = _available_bytes(machine, device, size)
    memory = plan_memory(
        spec_to_run(config, checkpoint),
        config,
        available_bytes,
        size,
        native_threads=threads[0].count if kernels.batch_invariant else None,
    )
    report(Loading("memory", 1.0, report=render(memory)))

    # The first step is the proof that all ranks are connected: some still read the meeting place
    # when rank 0 has left it, and would wait for it forever if it were gone.
    vocabulary = load_vocabulary(checkpoint)
    with rendezvous() as meeting_place:
        ranks, groups = _meet(
            config, device, memory.num_blocks, threads, meeting_place, report, resources
        )
        runner: Runner = load_runner(
            checkpoint,
            config,
            groups,
            device,
            memory.num_blocks,
            kernels,
            _WeightProgress(report),
            nodes=threads[0].nodes,
            vocabulary=vocabulary,
        )
        if ranks is not None:
            runner = RankedRunner(runner, ranks)

        report(Loading("warmup", 0.0))
        _warm_up(runner, memory, with_grammar=vocabulary is not None)

    ready = Ready(
        max_model_len=memory.max_model_len,
        vocab_size=checkpoint.spec.vocab_size,
        num_blocks=memory.num_blocks,
        max_num_seqs=memory.max_num_seqs,
        max_waiting=config.scheduler.max_waiting,
        report=[
            *render(memory),
            _machine_line(device, size, config, checkpoint),
            f"kernels: {kernels.line}",
            _threads_line(threads, kernels),
        ],
    )
    engine = Engine(_scheduler(config, checkpoint, memory), runner)
    return StartedEngine(engine, ready, checkpoint, ranks, resources.pop_all())


def _available_bytes(machine: Machine, device: torch.device, size: int) -> int:
    """Memory that one of ``size`` ranks may use: a GPU of its own, or a share of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return machine.available_bytes // size


def _meet(
    config: EngineConfig,
    device: torch.device,
    num_blocks: int,
    threads: Sequence[Threads],
    meeting_place: str,
    report: Report,
    resources: ExitStack,
) -> tuple[RankProcesses | None, Groups]:
    """Start the other ranks, if there are any, and join them."""
    size = config.parallel.tensor_parallel_size
    if size == 1:
        return None, Groups()
    report(Loading("ranks", 0.0))
    stay_on_this_machine()
    method = init_method(meeting_place)
    ranks = RankProcesses(config, method, num_blocks=num_blocks, threads=threads)
    resources.callback(ranks.close)
    groups = init_groups(
        0,
        size,
        method,
        expert_parallel=config.parallel.enable_expert_parallel,
        backend="nccl" if device.type == "cuda" else "gloo",
    )
    resources.callback(close_groups)
    return ranks, groups


class _WeightProgress:
    """Turns bytes copied into Loading messages, a few per second."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._started_s = time.monotonic()
        self._last_s = 0.0

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        now_s = time.monotonic()
        if now_s - self._last_s < _REPORT_INTERVAL_S and done_bytes < total_bytes:
            return
        self._last_s = now_s
        rate = done_bytes / max(now_s - self._started_s, 1e-9)
        detail = f"{done_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB"
        if done_bytes:
            detail += f", {rate / 1e9:.1f} GB/s, {(total_bytes - done_bytes) / rate:.0f} s left"
        self._report(Loading("weights", done_bytes / max(total_bytes, 1), detail))


def _warm_up(runner: Runner, memory: MemoryPlan, *, with_grammar: bool) -> None:
    """Run a prompt and a decoded token through every way of sampling, on all ranks.

    What the libraries do on first use is done then, and a machine that cannot run the model says
    so before it is ready. Leaves nothing behind: a row is replaced when a request starts, and a
    block is overwritten when it is claimed.
    """
    # One token over a block, so that the prompt crosses a border, unless the context is shorter.
    length = max(1, min(BLOCK_TOKENS + 1, memory.max_model_len - 1))
    blocks = tuple(range(blocks_for(length + 1)))
    rules = [
        SamplingParams(temperature=0.0, logprobs=1, prompt_logprobs=1),
        SamplingParams(min_p=0.1),
        SamplingParams(top_k=8, top_p=0.9, repetition_penalty=1.1),
        SamplingParams(top_p=0.9, logit_bias={0: 1.0}),
    ]
    if with_grammar:
        rules.append(SamplingParams(constraint=Constraint(grammar='start: "a"{8}')))
    for sampling in rules:
        begin = RowStart(
            row=0,
            request_id="warm-up",
            token_ids=[0] * length,
            num_prompt_tokens=length,
            sampling=sampling,
            seed=0,
        )
        for plan in (
            StepPlan(0, (begin,), (Span(0, 0, length, True, blocks),)),
            StepPlan(0, (), (Span(0, length, 1, True),)),
        ):
            for reason in runner.run(plan).failed_rows.values():
                raise CheckpointError(f"the first tokens failed: {reason}")


def _scheduler(config: EngineConfig, checkpoint: Checkpoint, memory: MemoryPlan) -> Scheduler:
    return Scheduler(
        config.scheduler,
        BlockLedger(memory.num_blocks),
        max_model_len=memory.max_model_len,
        eos_token_ids=checkpoint.spec.eos_token_ids,
        model_id=model_id(config, checkpoint),
        seed=config.seed,
        enable_prefix_caching=config.cache.enable_prefix_caching,
    )


def _machine_line(
    device: torch.device, size: int, config: EngineConfig, checkpoint: Checkpoint
) -> str:
    where = str(device.type)
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    ranks = "1 rank" if size == 1 else f"{size} ranks"
    split = ", experts by id" if config.parallel.enable_expert_parallel and size > 1 else ""
    dtype, packed = dtype_name(config, checkpoint), spec_to_run(config, checkpoint).quantization
    weights = dtype if packed.format == "plain" else f"{dtype}, {packed.format} weights"
    return f"running on {where}: {weights}, {ranks}{split}, torch {torch.__version__}"


def _threads_line(threads: Sequence[Threads], kernels: KernelChoice) -> str:
    first = threads[0]
    if first.cpus and not kernels.pinned:
        who = "torch places them" if kernels.implementation == "reference" else "it is forbidden"
        first = Threads(first.count, why_not=who)
    return f"on each rank {first.line}" if len(threads) > 1 else first.line
