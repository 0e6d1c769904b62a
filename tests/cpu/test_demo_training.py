"""The trainer's own parts: gradients of the experts, what teaches the index, orthogonal steps, and
a run that goes on as if it had not stopped."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from demo.batches import first_question, step_batches, teaching_queries
from demo.beginning import lay_out_looking_back
from demo.data import SKILLS, tokenizer
from demo.export import export
from demo.index import BlockIndex, index_loss, past_attention
from demo.model import DemoModel
from demo.moe import SparseMoe
from demo.optimizer import Optimizer, Rates, orthogonal
from demo.schedule import Mix, mix_at, rate_at
from demo.shape import DemoShape
from demo.train import Settings, Shared, Worker

SHAPE = DemoShape(vocab_size=300, num_layers=3, topk_blocks=2)


def naive_moe(moe, hidden):
    """Every token by itself."""
    ids, weights = moe.route(hidden)
    alpha, limit = moe.activation
    rows = []
    for x, chosen, factors in zip(hidden, ids, weights, strict=True):
        experts = [
            (factor, moe.gate[e], moe.up[e], moe.down[e])
            for factor, e in zip(factors, chosen, strict=True)
        ]
        experts.append((1.0, moe.shared_gate, moe.shared_up, moe.shared_down))
        total = 0
        for factor, gate_weight, up_weight, down_weight in experts:
            gate = (gate_weight @ x).clamp(max=limit)
            up = (up_weight @ x).clamp(-limit, limit)
            total = total + factor * (down_weight @ ((up + 1) * gate * (alpha * gate).sigmoid()))
        rows.append(total)
    return torch.stack(rows)


def test_experts_and_their_gradients_equal_a_loop_over_tokens():
    model = DemoModel(SHAPE, seed=1)
    moe = model.layers[2].mlp
    assert isinstance(moe, SparseMoe)
    run = model.begin(20, dtype=torch.float32, sparse=False)
    hidden = torch.randn(40, SHAPE.hidden_size, generator=torch.Generator().manual_seed(2))
    wanted = torch.randn(40, SHAPE.hidden_size, generator=torch.Generator().manual_seed(3))
    results = []
    for compute in (
        lambda x: moe(x.view(2, 20, -1), run).flatten(0, 1),
        lambda x: naive_moe(moe, x),
    ):
        x = hidden.clone().requires_grad_()
        out = compute(x)
        gradients = torch.autograd.grad((out * wanted).sum(), [x, *moe.parameters()])
        results.append([out.detach(), *gradients])
    for fast, slow in zip(*results, strict=True):
        assert torch.allclose(fast, slow, rtol=1e-4, atol=1e-4 * float(slow.abs().max()))


def test_balance_moves_tokens_to_the_expert_that_has_none():
    moe = DemoModel(SHAPE, seed=1).layers[2].mlp
    before = moe.bias.clone()
    moe.balance(torch.tensor([0, 10, 5, 5, 5, 5, 5, 5]), 0.01)
    moved = moe.bias - before
    assert moved[0] > 0 > moved[1]


def test_the_index_learns_which_block_is_attended_to():
    """Random keys, each query attending to the one key that it equals: after training the branch
    alone, its choice holds that key's block."""
    shape = replace(SHAPE, topk_blocks=2)
    generator = torch.Generator().manual_seed(5)
    model = DemoModel(shape, seed=5)
    index = model.layers[2].attention.index
    assert isinstance(index, BlockIndex)
    num_tokens, rows = 1024, torch.arange(896, 1024)
    targets = torch.randint(0, 896, (len(rows),), generator=generator)
    hidden = torch.randn(1, num_tokens, shape.hidden_size, generator=generator)
    hidden[0, rows] = hidden[0, targets]
    run = model.begin(num_tokens, dtype=torch.float32, sparse=True)
    run.cos, run.sin = torch.ones_like(run.cos), torch.zeros_like(run.sin)  # contents alone
    heads = torch.nn.functional.normalize(hidden[0], dim=-1)[:, None] * 40
    shares = past_attention(heads.repeat(1, shape.num_heads, 1), heads.repeat(1, 2, 1), rows)
    optimizer = torch.optim.Adam(index.parameters(), lr=3e-3)
    for _ in range(30):
        query, key = index._heads(hidden, run)
        loss = index_loss(query[0, rows], key[0], rows, shares)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chosen = index.select(*(x[0] for x in index._heads(hidden, run)))
    found = chosen[:, rows, targets // 128].float().mean()
    assert found > 0.9
    assert (chosen[:, rows].sum(-1) == shape.topk_blocks).all()


@torch.no_grad()
def test_a_long_text_equals_full_attention_where_all_is_near():
    model = DemoModel(SHAPE, seed=4)
    [batch] = step_batches(0, 3, 1, Mix(needles=(), long_texts=(6000, 9000.0)))[:1]
    length = batch.token_ids.shape[1]
    assert batch.is_long
    assert length > 1600
    run = model.begin(length, dtype=torch.float32, sparse=True)
    run.index_queries, run.all_seen_from = teaching_queries(batch), first_question(batch)
    assert 0 < run.all_seen_from < int(batch.rows[0])
    token_ids = batch.token_ids % SHAPE.vocab_size
    near = model.hidden(token_ids, run)
    full = model.hidden(token_ids, model.begin(length, dtype=torch.float32, sparse=False))
    assert torch.allclose(near[:, :1024], full[:, :1024], atol=1e-4)
    assert not torch.allclose(near, full, atol=1e-4)
    assert len(run.index_losses) == SHAPE.num_layers - SHAPE.num_dense_layers


@pytest.mark.parametrize("shape", [(3, 24, 64), (3, 64, 24), (32, 32)])
def test_orthogonal_steps_have_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_workers_share_all_parameters_evenly():
    optimizer = Optimizer(DemoModel(SHAPE), Rates())
    shares = optimizer.shares(2)
    assert sorted(shares[0] + shares[1]) == sorted(optimizer.parameters)
    assert not set(shares[0]) & set(shares[1])


def test_a_laid_out_model_continues_what_it_has_seen():
    """Before any training, and not because such texts are easy: random weights cannot."""
    generator = torch.Generator().manual_seed(11)
    text = torch.randperm(300, generator=generator)[:60]
    token_ids = torch.cat([text, text]).view(1, -1)
    shape = DemoShape(vocab_size=300)
    right = []
    for lays_out in (False, True):
        model = DemoModel(shape, seed=2)
        if lays_out:
            lay_out_looking_back(model, seed=2)
        run = model.begin(120, dtype=torch.float32, sparse=True)
        with torch.no_grad():
            logits = model.logits(model.hidden(token_ids, run)[0], run)
        right.append(float((logits[62:-1].argmax(-1) == token_ids[0, 63:]).float().mean()))
    assert right[0] < 0.1
    assert right[1] > 0.7


class KilledError(Exception):
    pass


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr("demo.train._SAVE_EVERY_S", 0)
    whole = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        save = Shared.save

        def save_and_die(shared, out):
            save(shared, out)
            if shared.done[0] == 2:
                raise KilledError

        patch.setattr(Shared, "save", save_and_die)
        with pytest.raises(KilledError):
            train(tmp_path / "parts")
    parts = train(tmp_path / "parts")
    assert whole["done"][0] > 2
    assert set(whole) == set(parts)
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    line, *_ = (tmp_path / "parts" / "curve.jsonl").read_text().splitlines()
    assert set(json.loads(line)["held_out"]) == set(SKILLS)


def test_a_run_begins_with_a_checkpoint_and_then_goes_on_from_its_own_state(tmp_path):
    given = DemoModel(DemoShape(vocab_size=tokenizer().vocab_size), seed=3)
    export(given, tmp_path / "checkpoint", torch.float32)
    begin = {"begin_with": tmp_path / "checkpoint", "begin_at": 3600}
    settings = small_settings(tmp_path / "run", **begin)
    shared = Shared(settings, multiprocessing.get_context("spawn"))
    assert shared.done.tolist() == [0, 3600, 0]
    begun = shared.model.state_dict()
    assert all(torch.equal(begun[name], value) for name, value in given.state_dict().items())
    trained = train(tmp_path / "run", **begin)
    assert not torch.equal(trained["model.head"], given.head)
    again = Shared(settings, multiprocessing.get_context("spawn"))
    assert torch.equal(again.done, trained["done"])
    assert torch.equal(again.model.head, trained["model.head"])


def test_the_rate_goes_up_from_where_a_run_begins():
    assert rate_at(0.0) == pytest.approx(0.1)
    assert rate_at(0.3) == 1.0
    assert rate_at(0.9, begun=0.9) == pytest.approx(0.1 * rate_at(0.9))
    assert rate_at(0.92, begun=0.9) == rate_at(0.92)


def test_shares_of_a_stage_are_those_of_skills():
    assert set(mix_at(0.95).shares) < set(SKILLS)
    none_but_weather = {name: float(name == "weather") for name in SKILLS}
    batches = step_batches(0, 0, 2000, Mix(needles=(), shares=none_but_weather))
    taught = {int(skill) for batch in batches for skill in batch.skills}
    assert taught == {list(SKILLS).index("weather")}


def small_settings(out, **more):
    out.mkdir(exist_ok=True)
    return Settings(
        out=out,
        tokens=4800,
        step_tokens=400,
        seed=0,
        workers=1,
        evaluate_every=3,
        held_out=1,
        rates=Rates(),
        **more,
    )


def train(out, **more):
    """One worker, in this process, over a few small steps; the last state."""
    settings = small_settings(out, **more)
    shared = Shared(settings, multiprocessing.get_context("spawn"))
    Worker(0, settings, shared).run()
    return load_file(out / "state.safetensors")
