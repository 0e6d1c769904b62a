"""Two and four ranks over gloo: the verbs of a group, and the same greedy tokens as one rank."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing

from mserve.core import SetupError
from mserve.layers import head_share
from mserve.parallel import Group, Groups, SoloGroup, close_groups, init_groups
from mserve.testing.tiny_models import (
    Session,
    load_model,
    m2_spec,
    m3_spec,
    new_cache,
    random_tensors,
    random_tokens,
    relative_error,
)

PROMPT = random_tokens(300, seed=3)
NEW_TOKENS = 6

# Fewer KV heads than four ranks: copies of one and of two heads; and a vocabulary (101) that no
# number of ranks divides.
SPECS = {
    "m2": m2_spec(num_heads=8, num_kv_heads=4, num_experts=8),
    "m2-two-kv-heads": m2_spec(num_heads=8, num_kv_heads=2, num_experts=8),
    "m3": m3_spec(layers="fd sm sm", num_heads=8, num_kv_heads=4, topk_blocks=2),
    "m3-one-kv-head": m3_spec(layers="sm sd", num_heads=4, num_kv_heads=1, topk_blocks=2),
}


def greedy(spec, groups: Groups) -> tuple[list[int], list[torch.Tensor]]:
    """Generate with this rank's share; every rank follows rank 0's tokens. Gives tokens, and on
    rank 0 the logits they came from."""
    model = load_model(spec, random_tensors(spec, seed=1), groups)
    session = Session(spec, model)
    session.cache = new_cache(spec, 128, ranks=groups.tensor.size)
    block_ids = session.blocks(len(PROMPT) + NEW_TOKENS)
    generated: list[int] = []
    scores: list[torch.Tensor] = []
    step = (PROMPT, 0, block_ids)
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            logits = model.logits(session.hidden([step])[-1:])
            assert (logits is None) == (groups.tensor.rank != 0)
            token = torch.zeros(1, dtype=torch.int64)
            if logits is not None:
                token = logits.argmax(-1)
                scores.append(logits)
            generated.append(int(groups.tensor.broadcast(token)))
            step = (generated[-1:], len(PROMPT) + len(generated) - 1, block_ids)
    return generated, scores


def check_verbs(group: Group) -> None:
    mine = torch.full((2, 3), float(group.rank + 1))
    total = group.all_reduce_sum(mine.clone())
    assert (total == sum(range(1, group.size + 1))).all()
    ranks = torch.arange(1.0, group.size + 1).repeat_interleave(3).expand(2, -1)
    assert torch.equal(group.all_gather(mine), ranks)
    gathered = group.gather(mine)
    assert (gathered is not None) == (group.rank == 0)
    assert gathered is None or torch.equal(gathered, ranks)
    assert (group.broadcast(mine) == 1.0).all()
    half = torch.full((2, 3), float(group.rank + 1), dtype=torch.bfloat16)
    assert (group.all_reduce_sum(half) == sum(range(1, group.size + 1))).all()


def one_rank(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    try:
        groups = init_groups(rank, size, f"file://{folder}/meeting", step_timeout_s=120)
        check_verbs(groups.tensor)
        texts = {}
        for name, spec in SPECS.items():
            texts[name, "width"] = greedy(spec, groups)
            texts[name, "id"] = greedy(spec, Groups(groups.tensor, groups.tensor))
        torch.save(texts, folder / f"texts-{rank}")
        close_groups()
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
        raise


def test_verbs_of_a_single_rank():
    check_verbs(SoloGroup())
    assert init_groups(0, 1, "unused://") == Groups()


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_generate_the_tokens_of_one_rank(size, tmp_path):
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=one_rank, args=(rank, size, tmp_path), daemon=True)
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    expected = {name: greedy(spec, Groups()) for name, spec in SPECS.items()}
    for process in ranks:
        process.join(180)
    errors = [path.read_text() for path in sorted(tmp_path.glob("error-*"))]
    assert not errors, errors[0]
    for rank in range(size):
        texts = torch.load(tmp_path / f"texts-{rank}")
        for name, split in itertools.product(SPECS, ["width", "id"]):
            tokens, scores = texts[name, split]
            assert tokens == expected[name][0], (name, split, rank)
            assert len(scores) == (NEW_TOKENS if rank == 0 else 0)
            for ours, alone in zip(scores, expected[name][1], strict=False):
                assert relative_error(ours, alone) < 1e-5, (name, split)


def rank_of(size: int, rank: int) -> Group:
    return SoloGroup(rank, size)


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "size"), [(8, 4, 2), (8, 2, 8), (64, 4, 8), (48, 8, 4), (6, 2, 1)]
)
def test_every_head_is_held_and_every_kv_head_counted_once(num_heads, num_kv_heads, size):
    shares = [head_share(num_heads, num_kv_heads, rank_of(size, rank)) for rank in range(size)]
    held = [s.first_head + i for s in shares for i in range(s.num_heads)]
    assert held == list(range(num_heads))
    counted = [s.first_kv_head + i for s in shares if s.counts_kv for i in range(s.num_kv_heads)]
    assert counted == list(range(num_kv_heads))
    for share in shares:
        per_group = num_heads // num_kv_heads
        for head in range(share.first_head, share.first_head + share.num_heads):
            # The local rule "head h reads KV head h // (H / G)" gives the global one.
            local = (head - share.first_head) // (share.num_heads // share.num_kv_heads)
            assert share.first_kv_head + local == head // per_group


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "size"), [(6, 2, 4), (12, 4, 6), (12, 8, 12)]
)
def test_ranks_that_do_not_divide_the_heads_are_refused(num_heads, num_kv_heads, size):
    with pytest.raises(SetupError) as refusal:
        head_share(num_heads, num_kv_heads, rank_of(size, 0))
    assert refusal.value.hint


def test_a_rank_that_never_comes_is_not_waited_for_long(tmp_path):
    script = (
        "import sys; from mserve.core import SetupError; from mserve.parallel import init_groups\n"
        "try: init_groups(0, 2, sys.argv[1], meeting_timeout_s=0.5)\n"
        "except SetupError as error: print(error.message)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, f"file://{tmp_path}/meeting"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "2 ranks did not meet" in done.stdout, done.stderr
