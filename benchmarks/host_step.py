"""What a step costs the host: plan and settle for many decoding requests, without a model.

    python benchmarks/host_step.py [--requests 256] [--steps 500] [--out ROW.json]

The scripted runner answers between the two; its time is not counted. Prints microseconds per step,
median and 90th percentile; ``--out`` writes one JSON row that names commit, hardware and command.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

from record import command, commit, machine

from mserve.cache import BlockLedger
from mserve.core import Request, SamplingParams, SchedulerConfig, blocks_for
from mserve.scheduler import Scheduler
from mserve.testing import ScriptedRunner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=256, help="decoding at once")
    parser.add_argument("--prompt-tokens", type=int, default=300, help="tokens per prompt")
    parser.add_argument("--steps", type=int, default=500, help="decode steps to measure")
    parser.add_argument("--out", type=Path, help="where to write the JSON row")
    options = parser.parse_args()

    plan_us, settle_us = measure(options.requests, options.prompt_tokens, options.steps)
    row = {
        "what": "host cost of a step",
        "requests": options.requests,
        "prompt_tokens": options.prompt_tokens,
        "steps": options.steps,
        "plan_us": summary(plan_us),
        "settle_us": summary(settle_us),
        "step_us": summary([a + b for a, b in zip(plan_us, settle_us, strict=True)]),
        "commit": commit(),
        "machine": machine(),
        "python": platform.python_version(),
        "command": command(),
    }
    for name in ("plan_us", "settle_us", "step_us"):
        print(f"{name:10} median {row[name]['median']:8.1f}   p90 {row[name]['p90']:8.1f}")
    if options.out is not None:
        options.out.write_text(json.dumps(row, indent=2) + "\n")


def measure(num_requests: int, prompt_tokens: int, steps: int) -> tuple[list[float], list[float]]:
    """Microseconds of every plan and every settle once all requests decode."""
    length = prompt_tokens + steps + 2
    scheduler = Scheduler(
        SchedulerConfig(
            max_num_seqs=num_requests,
            max_num_batched_tokens=num_requests * prompt_tokens,  # all prompts in one step
            max_waiting=num_requests,
        ),
        BlockLedger(num_requests * (blocks_for(length) + 1)),
        max_model_len=length,
    )
    runner = ScriptedRunner(lambda request_id, position: position % 1000)
    for number in range(num_requests):
        scheduler.add(
            Request(
                request_id=str(number),
                prompt_token_ids=[number * prompt_tokens + i for i in range(prompt_tokens)],
                sampling=SamplingParams(max_tokens=None, ignore_eos=True),
            )
        )
    plan_us: list[float] = []
    settle_us: list[float] = []
    while len(plan_us) < steps:
        before_plan = time.perf_counter_ns()
        plan = scheduler.plan()
        planned = time.perf_counter_ns()
        assert plan is not None
        result = runner.run(plan)
        before_settle = time.perf_counter_ns()
        scheduler.settle(plan, result)
        settled = time.perf_counter_ns()
        if plan.num_tokens == len(plan.spans) == num_requests:
            plan_us.append((planned - before_plan) / 1000)
            settle_us.append((settled - before_settle) / 1000)
    return plan_us, settle_us


def summary(values: list[float]) -> dict[str, float]:
    deciles = statistics.quantiles(values, n=10)
    return {"median": round(statistics.median(values), 1), "p90": round(deciles[8], 1)}


if __name__ == "__main__":
    main()
