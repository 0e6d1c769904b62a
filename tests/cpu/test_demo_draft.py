"""The demo's EAGLE3 draft: training's unrolled steps are what a server would draft, token by token,
and what is written is the published layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demo.batches import held_out_batches
from demo.data import tokenizer
from demo.draft.export import export_draft, load_draft
from demo.draft.model import Draft, DraftShape, rotated
from demo.draft.train import STEPS, acceptance, draft_vocabulary, guesses, teach
from demo.export import exported
from demo.model import DemoModel
from demo.shape import DemoShape
from mserve.checkpoint import DEMO, checkpoint_folder

SHAPE = DraftShape(vocab_size=50, taps=(0, 1, 3))
NUM_TOKENS = 9
FLOOR = 0.7  # of first guesses of the shipped draft


@pytest.fixture(scope="module")
def draft() -> Draft:
    return Draft(SHAPE, torch.arange(50), seed=3)


def drafted_one_by_one(draft: Draft, embedded, streams, begin: int) -> list[torch.Tensor]:
    """A server's draft behind position ``begin``: outputs there, then one position on for each
    further guess, with a cache of keys and values of whatever came before."""
    attention, layer = draft.midlayer.self_attn, draft.midlayer
    angles = (torch.arange(NUM_TOKENS)[:, None].double() * draft.frequencies).float()
    keys, values = [], []

    def at(position: int, feature):
        both = torch.cat([layer.input_layernorm(embedded[position]), layer.hidden_norm(feature)])
        turn = (angles[position].cos(), angles[position].sin())
        q, k, v = (
            projection(both).unflatten(0, (-1, SHAPE.head_dim))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        keys.append(rotated(k, turn))
        values.append(v)
        mixed = []
        for head, query in enumerate(rotated(q, turn)):
            group = head * SHAPE.num_kv_heads // SHAPE.num_heads
            scores = torch.stack([key[group] @ query for key in keys]) * SHAPE.head_dim**-0.5
            mixed.append(scores.softmax(0) @ torch.stack([value[group] for value in values]))
        hidden = feature + attention.o_proj(torch.cat(mixed))
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    for position in range(begin + 1):
        out = at(position, draft.fc(streams[position]))
    outputs = [out]
    for step in range(1, STEPS):
        outputs.append(at(begin + step, outputs[-1]))
    return outputs


@torch.no_grad()
def test_unrolled_steps_equal_a_draft_made_one_by_one(draft):
    generator = torch.Generator().manual_seed(4)
    embedded = torch.randn(NUM_TOKENS, SHAPE.hidden_size, generator=generator)
    streams = torch.randn(NUM_TOKENS, 3 * SHAPE.target_size, generator=generator)
    together = draft.unrolled(embedded[None], streams[None], STEPS)
    for begin in range(NUM_TOKENS - STEPS):
        for step, out in enumerate(drafted_one_by_one(draft, embedded, streams, begin)):
            assert torch.allclose(together[step][0, begin + step], out, atol=1e-4)


def test_what_is_written_has_the_published_names_and_is_read_back(draft, tmp_path):
    export_draft(draft, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    hidden = SHAPE.hidden_size
    assert state["fc.weight"].shape == (hidden, 3 * SHAPE.target_size)
    assert state["midlayer.self_attn.q_proj.weight"].shape[1] == 2 * hidden
    assert state["lm_head.weight"].shape == (50, hidden)
    assert state["t2d"].sum() == 50
    assert set(state) >= {
        *("norm.weight", "d2t", "t2d", "midlayer.hidden_norm.weight"),
        *("midlayer.input_layernorm.weight", "midlayer.post_attention_layernorm.weight"),
        *(f"midlayer.self_attn.{part}_proj.weight" for part in "kvo"),
        *(f"midlayer.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert config["eagle_aux_hidden_state_layer_ids"] == [0, 1, 3]
    again = load_draft(tmp_path)
    assert again.shape == SHAPE
    for name, value in draft.named_parameters():
        assert torch.equal(dict(again.named_parameters())[name], value.bfloat16().float())


def test_a_draft_learns_what_its_target_says(capsys):
    """Of a target that knows nothing, but says it surely: a head with few likely tokens."""
    target = DemoModel(DemoShape(vocab_size=tokenizer().vocab_size, num_layers=2), seed=1)
    d2t = draft_vocabulary(400, seed=0)
    assert (d2t.diff() >= 0).all()
    draft = Draft(DraftShape(vocab_size=400, taps=(0, 1, 2)), d2t)
    with torch.no_grad():
        kept = torch.zeros(tokenizer().vocab_size, 1)
        kept[draft.target_ids] = 30.0
        target.head.mul_(kept)
    batches = held_out_batches(1, 1, 300)

    @torch.no_grad()
    def right() -> float:
        return (
            torch.cat([guesses(draft, target, batch).is_right[0] for batch in batches])
            .float()
            .mean()
        )

    before = right()
    teach(draft, target, 30_000, seed=0, rate=2e-3)
    assert before < 0.02
    assert right() > before + 0.015
    assert "tokens a pass" in capsys.readouterr().out
    assert acceptance(draft, target, batches) == [0.0] * STEPS  # it never says what the texts say


def test_no_guess_sees_the_token_it_aims_at():
    """Guesses stay the same when the last answer's last token and all behind it change. Without
    experts, since how many tokens one gets decides how torch rounds the products of each."""
    shape = DemoShape(vocab_size=tokenizer().vocab_size, num_layers=2, num_dense_layers=2)
    target = DemoModel(shape, seed=1)
    draft = Draft(DraftShape(vocab_size=100, taps=(0, 1, 2)), torch.arange(100))
    [batch] = held_out_batches(1, 1, 300)[-1:]
    batch = replace(batch, token_ids=batch.token_ids[:1], rows=batch.rows[batch.rows < 200])
    count = len(batch.rows)
    batch = replace(batch, targets=batch.targets[:count])
    last = int(batch.rows[-1])
    changed = batch.token_ids.clone()
    changed[0, last + 1 :] = 7
    with torch.no_grad():
        before = guesses(draft, target, batch)
        after = guesses(draft, target, replace(batch, token_ids=changed))
        changed[0, last] = 7
        seen = guesses(draft, target, replace(batch, token_ids=changed))
    for step in range(STEPS):
        assert torch.equal(before.losses[step], after.losses[step])
    assert not torch.equal(before.losses[0], seen.losses[0])


def test_the_shipped_draft_is_taken_by_the_shipped_model():
    """And less often when it reads the residual streams one layer off, as loaders that disagree on
    what the numbers mean would have it."""
    target = exported(checkpoint_folder(DEMO))
    batches = held_out_batches(1, 3, 400)
    draft = load_draft(Path(__file__).parents[2] / "demo" / "draft" / "checkpoint")
    taken = acceptance(draft, target, batches)
    assert taken[0] > FLOOR
    draft.shape = replace(draft.shape, taps=tuple(tap + 1 for tap in draft.shape.taps))
    assert acceptance(draft, target, batches)[0] < taken[0] - 0.1
