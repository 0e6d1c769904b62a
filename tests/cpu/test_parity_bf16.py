"""bf16: the same choices as transformers from the same hidden states, and no larger errors.

Token equality says little here: both round, at different places. So the index branch and the main
branch are compared apart, and each error is measured against the fp32 truth.
"""

from __future__ import annotations

import pytest
import torch

from mserve.core import blocks_for
from mserve.kernels import rope_angles, rope_frequencies
from mserve.layers import Batch, attention
from mserve.testing.oracle import hub_tensors, transformers_model
from mserve.testing.tiny_models import (
    CPU,
    Session,
    load_model,
    m2_spec,
    m3_spec,
    new_cache,
    random_tokens,
)

LENGTH = 3500
SPEC = m3_spec(
    layers="sm",
    num_heads=4,
    num_kv_heads=2,
    topk_blocks=16,
    head_dim=128,
    rotary_dim=64,
    hidden_size=256,
)


class SparseLayer:
    """The attention of one layer in both projects, with the same weights and hidden states."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        theirs = transformers_model(SPEC, seed=2)
        theirs.set_attn_implementation("eager")
        tensors = hub_tensors(theirs)
        self.ours = load_model(SPEC, tensors, dtype=dtype).layers[0].attention
        self.theirs = theirs.model.layers[0].self_attn.to(dtype)
        self.positions = torch.arange(LENGTH)
        self.rotary = theirs.model.rotary_emb
        hidden = torch.randn((LENGTH, 256), generator=torch.Generator().manual_seed(4))
        self.hidden = hidden.bfloat16().to(dtype)

    def their_angles(self):
        return self.rotary(self.hidden[None], self.positions[None])

    def their_selection(self) -> torch.Tensor:
        chosen = self.theirs.indexer(
            self.hidden[None], self.their_angles(), None, self.positions[None]
        )
        return chosen[0].transpose(0, 1)  # [T, G, K]

    def their_output(self, last: int) -> torch.Tensor:
        output, _ = self.theirs(
            self.hidden[None], self.their_angles(), None, position_ids=self.positions[None]
        )
        return output[0, -last:]

    def our_output(self) -> torch.Tensor:
        batch = Batch.build([([1] * LENGTH, 0, range(blocks_for(LENGTH)))], CPU)
        cache = new_cache(SPEC, 128, str(self.dtype).removeprefix("torch."))
        cache.clear(batch.opened_blocks)
        angles = rope_angles(
            batch.positions,
            rope_frequencies(SPEC.rope_theta, SPEC.rotary_dim, batch.positions.device),
        )
        return self.ours(self.hidden, batch, angles, cache)


@pytest.fixture(scope="module")
def bf16():
    with torch.inference_mode():
        yield SparseLayer(torch.bfloat16)


@pytest.fixture(scope="module")
def fp32():
    with torch.inference_mode():
        yield SparseLayer(torch.float32)


def test_same_hidden_states_choose_the_same_blocks(bf16, monkeypatch):
    made = []
    select = attention.select_blocks
    monkeypatch.setattr(
        attention,
        "select_blocks",
        lambda *args, **rule: made.append(select(*args, **rule)) or made[-1],
    )
    bf16.our_output()
    ours, theirs = made[0][0], bf16.their_selection()
    dropping = slice(16 * 128, None)
    common = (ours[dropping, :, :, None] == theirs[dropping, :, None, :]).sum()
    assert common / ours[dropping].numel() >= 0.99


def test_forced_selection_gives_no_larger_error_than_transformers(bf16, fp32, monkeypatch):
    forced = bf16.their_selection()
    lists = forced.masked_fill(forced < 0, 99).sort(-1).values
    lists = lists.masked_fill(lists == 99, -1)[None]
    monkeypatch.setattr(attention, "select_blocks", lambda *args, **rule: lists)
    truth = fp32.our_output()[-500:]
    monkeypatch.setattr(fp32.theirs.indexer, "forward", lambda *args: forced.transpose(0, 1)[None])
    assert (fp32.their_output(500) - truth).abs().max() < 1e-5 * truth.abs().max()
    scale = truth.square().mean().sqrt()
    ours = (bf16.our_output()[-500:].float() - truth).square().mean().sqrt() / scale
    theirs = (bf16.their_output(500).float() - truth).square().mean().sqrt() / scale
    assert ours < 0.01
    assert ours < 1.1 * theirs


@pytest.mark.parametrize(
    "spec", [m2_spec(hidden_size=64), m3_spec(layers="fd fm", hidden_size=64)], ids=["m2", "m3"]
)
def test_logits_have_no_larger_error_than_transformers(spec):
    model = transformers_model(spec, seed=6)
    token_ids = random_tokens(300, seed=6)
    tensors = {name: tensor.bfloat16().float() for name, tensor in hub_tensors(model).items()}
    truth = Session(spec, load_model(spec, tensors)).prompt(token_ids)
    rounded = load_model(spec, tensors, dtype=torch.bfloat16)
    ours = Session(spec, rounded, dtype="bfloat16").prompt(token_ids)
    with torch.inference_mode():
        rotary = model.model.rotary_emb
        frequencies = rotary.inv_freq.clone()
        model.bfloat16()
        rotary.inv_freq = frequencies  # a bf16 checkpoint leaves them in fp32
        theirs = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]
    our_error = (ours - truth).square().mean(-1).sqrt().median()
    their_error = (theirs.float() - truth).square().mean(-1).sqrt().median()
    assert our_error < 1.1 * their_error
    assert our_error < 0.05 * truth.square().mean().sqrt()
