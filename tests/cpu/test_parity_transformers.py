"""Logits equal transformers' in fp32, on random models of several shapes."""

from __future__ import annotations

import pytest
import torch

from mserve.testing.oracle import hub_tensors, transformers_model
from mserve.testing.tiny_models import (
    Session,
    load_model,
    m2_spec,
    m3_spec,
    random_tokens,
    relative_error,
)

# Between one block and the next, at top-k times the block and one beside it, and far beyond.
LENGTHS = [1, 127, 128, 129, 2047, 2049]

SPECS = {
    "m2": m2_spec(),
    "m2-one-kv-head": m2_spec(num_heads=4, num_kv_heads=1, experts_per_token=1, rotary_dim=16),
    "m2-kv-per-head": m2_spec(num_heads=2, num_kv_heads=2, head_dim=32, hidden_size=40),
    "m3": m3_spec(layers="fd sm"),
    "m3-all-sparse": m3_spec(layers="sm sd", num_heads=4, num_kv_heads=4, topk_blocks=2),
    "m3-two-local-blocks": m3_spec(
        layers="sm fm", num_heads=3, num_kv_heads=1, topk_blocks=4, local_blocks=2, head_dim=32
    ),
    "m3-no-local-blocks": m3_spec(layers="sm", num_heads=2, num_kv_heads=1, local_blocks=0),
}


pytestmark = pytest.mark.usefixtures("both_kernels")


@pytest.fixture(scope="module", params=SPECS.items(), ids=SPECS)
def pair(request):
    """A transformers model and ours with its weights."""
    name, spec = request.param
    theirs = transformers_model(spec, seed=len(name))
    return spec, theirs, load_model(spec, hub_tensors(theirs))


def reference_logits(model, token_ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]


@pytest.mark.parametrize("length", LENGTHS)
def test_logits_of_a_prompt(pair, length):
    spec, theirs, ours = pair
    token_ids = random_tokens(length, seed=length)
    logits = Session(spec, ours).prompt(token_ids)
    assert relative_error(logits, reference_logits(theirs, token_ids)) < 2e-5


@pytest.mark.parametrize(
    "spec",
    [
        m2_spec(num_heads=2, num_kv_heads=1),
        m3_spec(layers="fd sm", num_heads=2, num_kv_heads=1, topk_blocks=16),
        m3_spec(layers="sm sm", num_heads=2, num_kv_heads=2, topk_blocks=3),
    ],
    ids=["m2", "m3-published-topk", "m3-small-topk"],
)
def test_logits_of_a_prompt_far_beyond_the_selection(spec):
    theirs = transformers_model(spec, seed=5)
    ours = load_model(spec, hub_tensors(theirs))
    token_ids = random_tokens(5000, seed=5)
    logits = Session(spec, ours).prompt(token_ids, chunks=[2048, 2048])
    assert relative_error(logits, reference_logits(theirs, token_ids)) < 2e-5


def test_greedy_text(pair):
    spec, theirs, ours = pair
    token_ids = random_tokens(200, seed=9)
    session = Session(spec, ours)
    block_ids = session.blocks(len(token_ids) + 8)
    logits = session.logits([(token_ids, 0, block_ids)])
    generated = [int(logits[-1].argmax())]
    while len(generated) < 8:
        start = len(token_ids) + len(generated) - 1
        logits = session.logits([(generated[-1:], start, block_ids)])
        generated.append(int(logits[-1].argmax()))
    with torch.inference_mode():
        expected = theirs.generate(
            torch.tensor([token_ids]), max_new_tokens=8, do_sample=False, eos_token_id=-1
        )
    assert generated == expected[0, len(token_ids) :].tolist()
