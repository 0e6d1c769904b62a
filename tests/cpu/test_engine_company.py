"""An answer does not depend on its company: the same tokens and scores alone, in a crowd, in small
pieces, out of the prefix cache, and preempted again and again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mserve.core import FinishReason, Request, RequestOutput, SamplingParams, SchedulerConfig
from mserve.testing.toys import BareEngine, small_toy
from mserve.wire import merged

Asked = tuple[list[int], SamplingParams]

# Names of sampling fields, and values that a request may have for them beside the default.
VARIANTS: dict[str, list[Any]] = {
    "temperature": [0.0, 0.0, 1.0],
    "logprobs": [0, 3],
    "prompt_logprobs": [0, 2],
    "repetition_penalty": [1.3],
    "presence_penalty": [1.0],
    "frequency_penalty": [-0.5],
    "top_p": [0.8],
    "top_k": [5],
    "min_p": [0.05],
    "logit_bias": [{7: 5.0, 9: -5.0}],
    "stop_token_ids": [tuple(range(0, 1024, 4))],
}
COMPANIES: dict[str, dict[str, Any]] = {
    "crowd": {},
    "few blocks": {"num_blocks": 6, "scheduler": SchedulerConfig(max_num_batched_tokens=100)},
    "small pieces": {
        "num_blocks": 6,
        "scheduler": SchedulerConfig(max_num_batched_tokens=30, max_num_seqs=5, policy="priority"),
    },
    "no cache": {"num_blocks": 6, "enable_prefix_caching": False},
}


def requests(seed: int, count: int) -> list[Asked]:
    """Prompts that share beginnings and end around block borders; every way of sampling."""
    draw = random.Random(seed)
    shared = [draw.randrange(1000) for _ in range(400)]
    asked = []
    for number in range(count):
        length = draw.choice([1, 127, 128, 129, 256, 257, draw.randrange(2, 380)])
        own = [draw.randrange(1000) for _ in range(length)]
        prompt = own if draw.random() < 0.3 else shared[:length]
        max_tokens = draw.choice([1, 8, 140, 140])
        fields = {n: draw.choice(v) for n, v in VARIANTS.items() if draw.random() < 0.3}
        if "stop_token_ids" in fields:
            fields["min_tokens"] = draw.randrange(min(max_tokens, 40))
        asked.append((prompt, SamplingParams(max_tokens=max_tokens, seed=number, **fields)))
    asked[0] = (shared[:300], SamplingParams(max_tokens=0, prompt_logprobs=1))
    return asked


def in_company(
    bare: BareEngine, asked: Sequence[Asked], draw: random.Random, *, leave: float
) -> dict[int, RequestOutput]:
    """All requests in any order, coming a few at a time; some leave before their end."""
    engine, whole = bare.engine, {}
    coming = draw.sample(range(len(asked)), len(asked))
    while coming or engine.has_work:
        outputs = []
        for number in [coming.pop() for _ in range(min(len(coming), draw.randrange(3)))]:
            prompt, sampling = asked[number]
            name, priority = str(number), draw.randrange(3)
            request = Request(
                request_id=name, prompt_token_ids=prompt, sampling=sampling, priority=priority
            )
            outputs += engine.submit([request])
        if whole and draw.random() < leave:
            outputs += engine.abort([str(draw.choice(list(whole)))])
        for output in [*outputs, *engine.step()]:
            number = int(output.request_id)
            whole[number] = merged(whole[number], output) if number in whole else output
        engine.audit()
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    return whole


def scores(output: RequestOutput) -> tuple[list[Any], list[float]]:
    """What must be equal, and what must be close, of all log-probabilities."""
    entries = [*(output.logprobs or []), *(output.prompt_logprobs or [])]
    scored = [entry for entry in entries if entry is not None]
    exact = [(entry.token_id, [token_id for token_id, _ in entry.top]) for entry in scored]
    return [len(entries), exact], [entry.logprob for entry in scored]


@pytest.fixture(scope="module", params=["m2", "m3"])
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_toy(tmp_path_factory.mktemp("toys"), request.param)


def test_an_answer_does_not_depend_on_its_company(toy: Path) -> None:
    asked = requests(seed=5, count=10)
    solo = BareEngine(toy, max_model_len=640, enable_prefix_caching=False)
    alone = [solo.run(one)[0] for one in asked]
    num_preempted = 0
    for company, settings in COMPANIES.items():
        bare = BareEngine(toy, **{"num_blocks": 64, "max_model_len": 640, **settings})
        for leave in (0.0, 0.1) if company == "few blocks" else (0.0,):
            together = in_company(bare, asked, random.Random(company), leave=leave)
            for number, expected in enumerate(alone):
                got = together[number]
                if got.finish_reason is FinishReason.ABORT:
                    assert leave
                    assert got.new_token_ids == expected.new_token_ids[: len(got.new_token_ids)]
                    continue
                where = f"{company}, request {number}"
                assert got.new_token_ids == expected.new_token_ids, where
                assert got.finish_reason == expected.finish_reason, where
                assert scores(got)[0] == scores(expected)[0], where
                close = torch.tensor(scores(got)[1]), torch.tensor(scores(expected)[1])
                torch.testing.assert_close(*close, atol=1e-4, rtol=0)
        num_preempted += bare.engine.stats().preemptions_total
    assert num_preempted >= 3
