"""Trains a draft on the hidden states of a trained demo model.

    python -m demo.draft.train RUN OUT --tokens 2.5   # millions

RUN is a folder that ``demo.train`` wrote. OUT gets the draft in the published layout, after lines
that tell how many of its guesses the model would have taken. With ``--begin-with OLD --rate 5e-4
--tokens 0.3`` a draft of an earlier state learns what has changed since. The samples are of the
kinds that the model was taught, and what a guess aims at are the model's own probabilities.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from demo import pointwise
from demo.batches import Batch, held_out_batches, step_batches
from demo.data import tokenizer, training_sample
from demo.draft.export import export_draft, load_draft
from demo.draft.model import Draft, DraftShape
from demo.export import trained
from demo.model import DemoModel, fast_dtype
from demo.schedule import Mix

STEPS = 3  # unrolled: guesses in a row
_STEP_WEIGHT = 0.8  # of a guess against the one before
_STEP_TOKENS = 8192
_COUNTED_SAMPLES = 3000
_COUNTED_TOKENS = 1000  # of a sample
_MIX = Mix(needles=((1500, 0.1), (4000, 0.05)))
_TELL_EVERY = 20  # steps
_HELD_OUT = 6  # examples of each skill
_HELD_OUT_TOKENS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.draft.train", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=float, default=2.5, help="millions to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3, help="step size at the peak")
    parser.add_argument("--begin-with", type=Path, help="a draft of an earlier state of the model")
    given = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    pointwise.compile_pointwise()
    target = trained(given.run)
    if given.begin_with is None:
        vocabulary = draft_vocabulary(DraftShape().vocab_size, given.seed)
        draft = Draft(DraftShape(), vocabulary, given.seed)
    else:
        draft = load_draft(given.begin_with)
    teach(draft, target, int(given.tokens * 1e6), given.seed, given.rate)
    export_draft(draft, given.out)


def draft_vocabulary(size: int, seed: int) -> Tensor:
    """``d2t`` of the ``size`` tokens that answers are most often made of."""
    rng = random.Random(f"{seed}/draft")
    counts: Counter[int] = Counter()
    for _ in range(_COUNTED_SAMPLES):
        ids, mask = training_sample(rng, _COUNTED_TOKENS)
        counts.update(token for token, ours in zip(ids, mask, strict=True) if ours)
    ranked = sorted(range(tokenizer().vocab_size), key=lambda token: (-counts[token], token))
    kept = torch.tensor(sorted(ranked[:size]))
    return kept - torch.arange(size)


def teach(draft: Draft, target: DemoModel, num_tokens: int, seed: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(draft.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    held_out = held_out_batches(seed + 1, _HELD_OUT, _HELD_OUT_TOKENS)
    began_s, done, step = time.monotonic(), 0, 0
    while done < num_tokens:
        share = done / num_tokens
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 30, max(0.02, 1.5 * (1 - share)))
        batches = step_batches(seed, (1 << 20) + step, _STEP_TOKENS, _MIX)
        total = sum(len(batch.rows) for batch in batches)
        loss = 0.0
        for batch in batches:
            losses = guesses(draft, target, batch).losses
            part = torch.stack([x.sum() * _STEP_WEIGHT**j for j, x in enumerate(losses)]).sum()
            (part / total).backward()
            loss += float(losses[0].detach().sum()) / total
            done += batch.token_ids.numel()
        torch.nn.utils.clip_grad_norm_(draft.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % _TELL_EVERY == 0 or done >= num_tokens:
            taken = acceptance(draft, target, held_out)
            print(
                f"{done / 1e6:.2f} M tokens, loss {loss:.3f}, "
                f"{done / (time.monotonic() - began_s):,.0f} tokens/s, held out: "
                f"{1 + sum(taken):.2f} tokens a pass, by place {[round(x, 3) for x in taken]}",
                flush=True,
            )


class Guesses(NamedTuple):
    """Of the answers' tokens that have room for all steps before them, R in all."""

    rows: Tensor  # [R]: of the flattened batch, each the place before the token that is guessed
    is_text: Tensor  # [R]: whether the token in the text is the target's likeliest
    losses: list[Tensor]  # [R] per step
    is_right: list[Tensor]  # [R] per step: whether the guess is the target's likeliest token


def guesses(draft: Draft, target: DemoModel, batch: Batch) -> Guesses:
    """What the draft guesses where the target's tokens so far are those of the text."""
    with torch.no_grad():
        run = target.begin(batch.token_ids.shape[1], dtype=fast_dtype(), sparse=True)
        streams = target.residual_streams(batch.token_ids, run)
        logits = target.logits(streams[-1].flatten(0, 1)[batch.rows], run).float()
        embedded = F.embedding(batch.token_ids, target.embedding)
    following = F.pad(embedded, (0, 0, 0, 1))[:, 1:]
    tapped = torch.cat([streams[layer] for layer in draft.shape.taps], -1)
    outputs = draft.unrolled(following, tapped, STEPS)

    enough = batch.rows % batch.token_ids.shape[1] >= STEPS
    rows, logits = batch.rows[enough], logits[enough]
    aims = logits[:, draft.target_ids].softmax(-1)
    likeliest = logits.argmax(-1)
    losses, is_right = [], []
    for out in outputs:
        guessed = draft.logits(out.flatten(0, 1)[rows - 1])  # the draft is one place ahead
        losses.append(-(aims * guessed.log_softmax(-1)).sum(-1))
        is_right.append(draft.target_ids[guessed.argmax(-1)] == likeliest)
    return Guesses(rows, likeliest == batch.targets[enough], losses, is_right)


@torch.no_grad()
def acceptance(draft: Draft, target: DemoModel, batches: list[Batch]) -> list[float]:
    """For each guess of a draft, how often greedy decoding takes it and all before it: over
    drafts that begin at any token of a held-out answer that the target itself would write."""
    taken, begun = torch.zeros(STEPS), 0
    for batch in batches:
        made = guesses(draft, target, batch)
        count = max(0, len(made.rows) - STEPS + 1)
        # The guesses of one draft: step j stands j rows further on.
        begins = made.rows[len(made.rows) - count :] - made.rows[:count] == STEPS - 1
        for step in range(STEPS):
            begins &= made.is_text[step : step + count]
        begun += int(begins.sum())
        for step in range(STEPS):
            begins &= made.is_right[step][step : step + count]
            taken[step] += float(begins.sum())
    return (taken / max(begun, 1)).tolist()


if __name__ == "__main__":
    main()
