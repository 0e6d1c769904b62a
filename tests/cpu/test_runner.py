"""The runner over a model of one line, so that every token has an answer by plain Python.

``SumModel`` sums token * (position + 1) over a context that it reads back through the block
table: a wrong block, slot, position or row gives another token.
"""

import numpy as np
import pytest
import torch

from mserve.core import (
    BLOCK_TOKENS,
    KVLayout,
    Plane,
    RowStart,
    SamplingParams,
    Span,
    StepPlan,
    blocks_for,
)
from mserve.layers import KVCache
from mserve.parallel import SoloGroup
from mserve.runner import Runner

VOCAB = 61
LAYOUT = KVLayout((Plane(0, "key", 1, 1, "float32"),))
GREEDY = SamplingParams(temperature=0.0)


class SumModel:
    """Fails on purpose for token ``poison`` (NaN logits) and for ``too_large`` (no memory)."""

    poison = 60
    too_large = 59

    def __init__(self, max_tokens=10_000):
        self.max_tokens = max_tokens
        self.batches = 0

    def forward(self, batch, cache):
        if batch.num_tokens > self.max_tokens or (batch.token_ids == self.too_large).any():
            raise torch.OutOfMemoryError("a deliberate failure")
        self.batches += 1
        keys = cache.plane(0, "key")[:, 0, :, 0]
        weighted = batch.token_ids * (batch.positions + 1)
        keys[batch.slots // BLOCK_TOKENS, batch.slots % BLOCK_TOKENS] = weighted.float()
        parts = []
        for group in batch.groups:
            sums = []
            for positions, blocks in zip(group.positions, group.blocks, strict=True):
                context = keys[blocks].reshape(-1)[: positions[-1] + 1]
                sums.append(context.double().cumsum(0)[positions])
            parts.append(torch.stack(sums)[..., None])
        hidden = batch.join(parts)[:, 0]
        hidden[batch.token_ids == self.poison] = torch.nan
        return hidden[:, None]

    def logits(self, hidden):
        favourite = hidden % VOCAB
        return -(torch.arange(VOCAB) - favourite).abs().float()


def expected_next(tokens):
    return sum(token * (place + 1) for place, token in enumerate(tokens)) % VOCAB


def expected_output(prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(expected_next(tokens))
    return tokens[len(prompt) :]


def make_runner(model=None, num_blocks=32, num_rows=8):
    device = torch.device("cpu")
    cache = KVCache(LAYOUT, num_blocks, device)
    return Runner(
        model or SumModel(),
        cache,
        SoloGroup(),
        num_rows=num_rows,
        vocab_size=VOCAB,
        device=device,
    )


def start(row, tokens, sampling=GREEDY, *, prompt=None, blocks=(), **fields):
    return RowStart(
        row=row,
        request_id=f"r{row}",
        token_ids=list(tokens),
        num_prompt_tokens=len(tokens) if prompt is None else prompt,
        sampling=sampling,
        seed=7,
        block_ids=blocks,
        **fields,
    )


def prompt_of(length, seed):
    return np.random.default_rng(seed).integers(0, 50, length).tolist()


def decode(runner, row, position, steps):
    """Tokens of ``steps`` plans that each compute the row's last token from ``position`` on."""
    tokens = []
    for step in range(steps):
        result = runner.run(StepPlan(step, (), (Span(row, position + step, 1, True),)))
        tokens += result.rows[0].token_ids
    return tokens


def test_rows_advance_together_and_out_of_order_blocks_hold_their_context():
    runner = make_runner()
    prompts = [prompt_of(length, length) for length in (1, 127, 128, 129, 300)]
    free = list(np.random.default_rng(0).permutation(32))
    starts, spans = [], []
    for row, prompt in enumerate(prompts):
        blocks = tuple(int(free.pop()) for _ in range(blocks_for(len(prompt) + 4)))
        starts.append(start(row, prompt))
        spans.append(Span(row, 0, len(prompt), True, blocks))
    outputs = {row: [] for row in range(5)}
    plan = StepPlan(0, tuple(starts), tuple(spans))
    for step in range(4):
        for found in runner.run(plan).rows:
            outputs[found.row] += found.token_ids
        order = np.random.default_rng(step).permutation(5).tolist()
        spans = [Span(row, len(prompts[row]) + step, 1, True) for row in order]
        plan = StepPlan(step + 1, (), tuple(spans))
    assert outputs == {row: expected_output(prompts[row], 4) for row in range(5)}


@pytest.mark.parametrize("chunks", [[300], [1, 299], [128, 128, 44], [100, 50, 149, 1]])
def test_chunks_do_not_change_the_output(chunks):
    runner = make_runner()
    prompt = prompt_of(300, seed=1)
    position, starts = 0, (start(2, prompt),)
    for chunk in chunks:
        end = position + chunk
        new = tuple(range(blocks_for(position), blocks_for(end)))
        span = Span(2, position, chunk, end == 300, new)
        result = runner.run(StepPlan(position, starts, (span,)))
        assert end == 300 or result.rows == ()
        position, starts = end, ()
    first = result.rows[0].token_ids
    assert [*first, *decode(runner, 2, 300, 2)] == expected_output(prompt, 3)


def test_a_row_starts_again_with_its_output_and_with_reused_blocks():
    runner = make_runner()
    prompt = prompt_of(200, seed=2)
    runner.run(StepPlan(0, (start(0, prompt),), (Span(0, 0, 200, True, (4, 9)),)))
    known = prompt + expected_output(prompt, 1)
    # Preempted, its first block found again: in another row, the rest recomputed elsewhere.
    again = start(5, known, prompt=200, blocks=(4,))
    result = runner.run(StepPlan(1, (again,), (Span(5, 128, 73, True, (20,)),)))
    assert list(result.rows[0].token_ids) == expected_output(prompt, 2)[1:]


def test_sampling_goes_on_after_preemption_as_if_nothing_had_happened():
    """Random, penalised and below min_tokens: all of it depends on the output position only."""
    sampling = SamplingParams(
        temperature=2.0,
        min_p=0.001,
        frequency_penalty=1.5,
        repetition_penalty=1.2,
        min_tokens=6,
        logit_bias={SumModel.poison: -100.0, SumModel.too_large: -100.0},
    )
    prompt, forbidden = prompt_of(5, seed=3), (3, 4, 5, 6, 7)
    begin = start(0, prompt, sampling, forbidden_until_min_tokens=forbidden)
    runner = make_runner()
    first = runner.run(StepPlan(0, (begin,), (Span(0, 0, 5, True, (0,)),)))
    straight = [*first.rows[0].token_ids, *decode(runner, 0, 5, 9)]

    known = prompt + straight[:4]
    resumed = start(1, known, sampling, prompt=5, forbidden_until_min_tokens=forbidden)
    again = runner.run(StepPlan(0, (resumed,), (Span(1, 0, 9, True, (1,)),)))
    assert [*again.rows[0].token_ids, *decode(runner, 1, 9, 5)] == straight[4:]
    assert not set(straight[:6]) & set(forbidden)


def test_a_row_forgets_the_request_before_it():
    runner = make_runner()
    strange = SamplingParams(
        temperature=2.0, logit_bias={1: 100.0}, frequency_penalty=2.0, logprobs=3
    )
    runner.run(StepPlan(0, (start(0, [1, 2], strange),), (Span(0, 0, 2, True, (0,)),)))
    result = runner.run(StepPlan(1, (start(0, [5, 6]),), (Span(0, 0, 2, True, (3,)),)))
    assert list(result.rows[0].token_ids) == expected_output([5, 6], 1)
    assert result.rows[0].logprobs == ()


def test_edits_reach_their_own_row_only():
    runner = make_runner()
    rules = [
        GREEDY,
        SamplingParams(temperature=0.0, logit_bias={17: 100.0}),
        SamplingParams(temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0),
        SamplingParams(temperature=0.0, min_tokens=1),
    ]
    prompt = [10, 20, 30]
    favourite = expected_next(prompt)
    starts = [start(row, prompt, rule) for row, rule in enumerate(rules)]
    starts[2] = start(2, [*prompt, favourite], rules[2], prompt=3)
    starts[3] = start(3, prompt, rules[3], forbidden_until_min_tokens=(favourite,))
    spans = [Span(row, 0, 3, True, (row,)) for row in range(4)]
    spans[2] = Span(2, 0, 4, True, (2,))
    result = runner.run(StepPlan(0, tuple(starts), tuple(spans)))
    tokens = {found.row: found.token_ids[0] for found in result.rows}
    assert tokens[0] == favourite
    assert tokens[1] == 17
    # Its output holds ``favourite``, at distance 0: penalised by 4 it loses to the neighbours.
    after = expected_next([*prompt, favourite])
    assert tokens[2] == (after if after != favourite else favourite - 1)
    assert abs(tokens[3] - favourite) == 1


def test_a_poisoned_request_fails_alone():
    runner = make_runner()
    prompts = [[1, 2], [1, SumModel.poison], [3, 4]]
    starts = tuple(start(row, prompt) for row, prompt in enumerate(prompts))
    spans = tuple(Span(row, 0, 2, True, (row,)) for row in range(3))
    result = runner.run(StepPlan(0, starts, spans))
    assert set(result.failed_rows) == {1}
    assert "finite" in result.failed_rows[1]
    tokens = {found.row: list(found.token_ids) for found in result.rows}
    assert tokens == {row: expected_output(prompts[row], 1) for row in (0, 2)}


def test_the_request_that_memory_does_not_hold_fails_alone():
    model = SumModel(max_tokens=150)
    runner = make_runner(model)
    prompts = [prompt_of(100, 1), prompt_of(100, 2), [SumModel.too_large, 1]]
    starts = tuple(start(row, prompt) for row, prompt in enumerate(prompts))
    spans = tuple(Span(row, 0, len(prompts[row]), True, (row,)) for row in range(3))
    result = runner.run(StepPlan(0, starts, spans))
    assert set(result.failed_rows) == {2}
    assert "memory" in result.failed_rows[2]
    tokens = {found.row: list(found.token_ids) for found in result.rows}
    assert tokens == {row: expected_output(prompts[row], 1) for row in (0, 1)}
    assert decode(runner, 1, 100, 2) == expected_output(prompts[1], 3)[1:]


def test_other_errors_are_not_taken_for_one_requests_fault():
    class BrokenModel(SumModel):
        def forward(self, batch, cache):
            raise RuntimeError("shapes do not match")

    runner = make_runner(BrokenModel())
    with pytest.raises(RuntimeError, match="shapes"):
        runner.run(StepPlan(0, (start(0, [1]),), (Span(0, 0, 1, True, (0,)),)))


def test_logprobs_of_output_and_of_every_prompt_token(monkeypatch):
    """Over chunks of the prompt and of the logits, each position is scored once."""
    monkeypatch.setattr("mserve.runner.execute._LOGITS_PER_CHUNK", 3 * VOCAB)
    runner = make_runner()
    prompt = prompt_of(150, seed=4)
    sampling = SamplingParams(temperature=0.0, logprobs=2, prompt_logprobs=1)
    found, position, starts = [], 0, (start(0, prompt, sampling),)
    for length, new in ((100, (5,)), (50, (2,))):
        end = position + length
        plan = StepPlan(position, starts, (Span(0, position, length, end == 150, new),))
        result = runner.run(plan).rows[0]
        found += result.prompt_logprobs
        position, starts = end, ()

    assert [entry.token_id for entry in found] == prompt[1:]
    for place, entry in enumerate(found):
        reference = torch.log_softmax(
            SumModel().logits(torch.tensor(float(prefix_sum(prompt[: place + 1])))), dim=-1
        )
        assert entry.logprob == pytest.approx(reference[entry.token_id].item(), abs=1e-4)
        assert entry.top[0][0] == prefix_sum(prompt[: place + 1]) % VOCAB
    (scored,) = result.logprobs
    assert scored.token_id == result.token_ids[0] == scored.top[0][0]
    assert scored.rank == 1
    assert len(scored.top) == 2


def prefix_sum(tokens):
    return sum(token * (place + 1) for place, token in enumerate(tokens))
