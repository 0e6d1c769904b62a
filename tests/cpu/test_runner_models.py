"""Whole answers of small checkpoints against transformers, however the work is cut up."""

import numpy as np
import pytest
import torch

from mserve.core import SamplingParams, SchedulerConfig
from mserve.testing.toys import BareEngine, greedy, small_toy, transformers_of

COUNT = 12
LENGTHS = (1, 100, 128, 300, 389)


def greedy_rule(**fields):
    return SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=COUNT, **fields)


@pytest.fixture(scope="module", params=["m2", "m3"])
def checkpoint(request, tmp_path_factory):
    return small_toy(tmp_path_factory.mktemp("toys"), request.param)


@pytest.fixture(scope="module")
def model(checkpoint):
    return transformers_of(checkpoint)


@pytest.fixture(scope="module")
def prompts():
    draw = np.random.default_rng(0)
    return [draw.integers(0, 1000, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def answers(model, prompts):
    """Greedy continuations by transformers."""
    return [greedy(model, prompt, COUNT) for prompt in prompts]


@pytest.mark.parametrize("budget", [2048, 130, 16])
def test_greedy_equals_transformers_whatever_the_chunks(checkpoint, prompts, answers, budget):
    engine = BareEngine(checkpoint, scheduler=SchedulerConfig(max_num_batched_tokens=budget))
    outputs = engine.run(*((prompt, greedy_rule()) for prompt in prompts))
    assert [output.new_token_ids for output in outputs] == answers


def crowd_of(prompts):
    """Three prompts that fill three blocks each and grow into a fourth. Ten blocks hold them at
    first and not in the end."""
    return [prompts[4][start : start + 370] for start in (0, 5, 10)]


def test_greedy_equals_transformers_with_preemption(checkpoint, model, prompts):
    rule = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=40)
    crowd = crowd_of(prompts)
    engine = BareEngine(checkpoint, num_blocks=10, max_model_len=512)
    outputs = engine.run(*((prompt, rule) for prompt in crowd))
    assert engine.engine.stats().preemptions_total > 0
    for prompt, output in zip(crowd, outputs, strict=True):
        assert output.new_token_ids == greedy(model, prompt, 40)


def test_greedy_equals_transformers_with_reused_blocks(checkpoint, prompts, answers):
    engine = BareEngine(checkpoint)
    first = engine.run((prompts[4], greedy_rule()))[0]
    branch = prompts[4][:300]
    again, shared = engine.run((prompts[4], greedy_rule()), (branch, greedy_rule()))
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, 384)
    assert shared.num_cached_tokens == 256
    assert first.new_token_ids == again.new_token_ids == answers[4]
    unshared = BareEngine(checkpoint, enable_prefix_caching=False).run((branch, greedy_rule()))[0]
    assert shared.new_token_ids == unshared.new_token_ids


def test_a_seed_gives_one_text_alone_in_a_crowd_and_after_preemption(checkpoint, prompts):
    crowd = crowd_of(prompts)
    rule = SamplingParams(
        temperature=0.9, top_p=0.95, seed=11, ignore_eos=True, max_tokens=40, presence_penalty=0.5
    )
    alone = BareEngine(checkpoint).run((crowd[2], rule))[0].new_token_ids
    other = [
        (crowd[0], SamplingParams(ignore_eos=True, max_tokens=50)),
        (crowd[1], SamplingParams(temperature=0.7, top_k=9, ignore_eos=True, max_tokens=50)),
    ]
    for num_blocks in (64, 10):
        engine = BareEngine(checkpoint, num_blocks=num_blocks, max_model_len=512)
        outputs = engine.run(*other, (crowd[2], rule))
        # The last one to come is the one that is preempted.
        assert (engine.engine.stats().preemptions_total > 0) == (num_blocks == 10)
        assert outputs[-1].new_token_ids == alone
    another = SamplingParams(temperature=0.9, seed=12, ignore_eos=True, max_tokens=40)
    assert BareEngine(checkpoint).run((crowd[2], another))[0].new_token_ids != alone


def test_logprobs_equal_the_log_softmax_of_transformers(checkpoint, model, prompts):
    """Of the prompt over chunks of 130, and of the answer."""
    prompt = prompts[3]
    rule = greedy_rule(prompt_logprobs=3, logprobs=2)
    engine = BareEngine(checkpoint, scheduler=SchedulerConfig(max_num_batched_tokens=130))
    neighbour = (prompts[4], greedy_rule())
    output = engine.run((prompt, rule), neighbour)[0]
    tokens = prompt + output.new_token_ids
    with torch.inference_mode():
        reference = model(torch.tensor([tokens])).logits[0].double().log_softmax(dim=-1)

    assert output.prompt_logprobs[0] is None
    entries = [*output.prompt_logprobs[1:], *output.logprobs]
    assert [entry.token_id for entry in entries] == tokens[1:]
    for place, entry in enumerate(entries):
        expected = reference[place]
        assert entry.logprob == pytest.approx(expected[entry.token_id].item(), abs=2e-4)
        assert entry.rank == pytest.approx(1 + (expected > entry.logprob + 2e-4).sum(), abs=2)
        assert len(entry.top) == (3 if place < len(prompt) - 1 else 2)
        for token_id, logprob in entry.top:
            assert logprob == pytest.approx(expected[token_id].item(), abs=2e-4)
        assert entry.top[0][1] == pytest.approx(expected.max().item(), abs=2e-4)


def test_penalised_greedy_equals_transformers(checkpoint, model, prompts):
    """A repetition penalty over prompt and answer, beside a neighbour that has none."""
    prompt = prompts[1]
    found = model.generate(
        torch.tensor([prompt]), max_new_tokens=COUNT, do_sample=False, repetition_penalty=1.5
    )
    rule = greedy_rule(repetition_penalty=1.5)
    output = BareEngine(checkpoint).run((prompt, rule), (prompts[2], greedy_rule()))[0]
    assert output.new_token_ids == found[0, len(prompt) :].tolist()
