"""What a training step reads: samples of all skills, cut into batches of one length each.

A step's samples follow from the seed and the step's number, so any worker can make any batch and a
resumed run goes on as if it had not stopped. Short conversations are joined behind one system
prompt, as turns of one longer conversation: it saves computing that prompt again for each.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from demo.data import (
    SKILLS,
    held_out_conversation,
    long_sample,
    sample_of,
    tokenizer,
    training_sample,
)
from demo.schedule import Mix
from demo.shape import BLOCK_TOKENS

_NUM_PLAIN_TOKENS = 4000  # below the added ones
_ROUND_TO = 16  # lengths are rounded up, so that few different shapes occur
_BATCH_TOKENS = 2048  # of one batch, unless one sequence is longer
_SHORTEST_NEEDLE = 150
_LONGEST = 1000  # tokens of a sample that is no needle
_INDEX_QUERIES = 48  # of a sequence
_QUESTION_TOKENS = 64  # at most so many before the first answer
_JOINED_TOKENS = 384
_JOINED_SHARE = 0.75  # the others are first questions, as most are when serving


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a sequence that teaches one skill: tokens ``start:end``."""

    skill: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    token_ids: list[int]
    mask: list[int]
    pieces: list[Piece]


@dataclass(frozen=True, slots=True)
class Batch:
    """B sequences of N tokens, and the R tokens of answers in them."""

    token_ids: Tensor  # [B, N]
    rows: Tensor  # [R] numbers of the tokens before, in the flattened batch
    targets: Tensor  # [R]
    weights: Tensor  # [R]
    skills: Tensor  # [R] numbers of skills
    samples: Tensor  # [R] numbers of samples, counted through the batch
    is_long: bool = False  # attention to what is near is enough for all but its questions


SKILL_NAMES = (*SKILLS, "repeat")


def step_batches(seed: int, step: int, step_tokens: int, mix: Mix) -> list[Batch]:
    """The batches of step ``step``, about ``step_tokens`` tokens in all."""
    rng = random.Random(f"{seed}/{step}")
    sequences = []
    for length, share in mix.needles:
        sequences += _needles(rng, length, step_tokens * share)
    shares = {name: share for name, (_, share) in SKILLS.items()} | dict(mix.shares)
    del shares["needle"]
    sequences += [
        _repeats(rng) for _ in range(int(step_tokens * mix.repeats / _JOINED_TOKENS + rng.random()))
    ]
    rest = step_tokens * (1 - mix.repeats - sum(share for _, share in mix.needles))
    sequences += _draw(rng, shares, _LONGEST, int(rest))
    longest, share = mix.long_texts
    return [*_long_texts(rng, longest, step_tokens * share), *batched(sequences)]


def held_out_batches(seed: int, per_skill: int, max_tokens: int) -> list[Batch]:
    """``per_skill`` examples of each skill, none of which is taught."""
    rng = random.Random(seed)
    sequences = []
    for skill in SKILLS:
        sizes = {"max_tokens": max_tokens} if skill == "needle" else {}
        for _ in range(per_skill):
            ids, mask = sample_of(held_out_conversation(rng, skill, **sizes))
            last = len(mask) - mask[::-1].index(1)  # only the last answer is held out
            first = last - ([*mask[:last][::-1], 0]).index(0)
            mask = [int(first <= place < last) for place in range(len(mask))]
            sequences.append(TrainingSequence(ids, mask, [Piece(skill, 0, len(ids))]))
    return batched(sequences)


def batched(sequences: Sequence[TrainingSequence]) -> list[Batch]:
    """Sequences of about the same length together, the longest first: whoever works on one of
    those leaves the others to the rest."""
    groups: list[list[TrainingSequence]] = []
    for one in sorted(sequences, key=lambda one: -len(one.token_ids)):
        if not groups or _is_full(groups[-1]):
            groups.append([])
        groups[-1].append(one)
    return [_batch(group) for group in groups]


def _is_full(group: list[TrainingSequence]) -> bool:
    """Whether one more sequence would be too many; the first is the longest."""
    return _rounded(len(group[0].token_ids)) * (len(group) + 1) > _BATCH_TOKENS


def teaching_queries(batch: Batch) -> Tensor:
    """Positions [B, Q] whose attention teaches the index branch: some of all answers, where one
    block matters most, and places spread evenly behind the first block."""
    num_sequences, length = batch.token_ids.shape
    spread = torch.linspace(BLOCK_TOKENS, length - 1, _INDEX_QUERIES // 2).long()
    queries = spread.repeat(num_sequences, 2)
    for number in range(num_sequences):
        rows = batch.rows[batch.rows // length == number] % length
        some = rows[torch.linspace(0, len(rows) - 1, min(len(spread), len(rows))).long()]
        queries[number, len(spread) : len(spread) + len(some)] = some
    return queries


def first_question(batch: Batch) -> int:
    """Where the first question on a long text may begin."""
    return max(0, int(batch.rows[0]) - _QUESTION_TOKENS)


def _long_texts(rng: random.Random, max_tokens: int, num_tokens: float) -> list[Batch]:
    """Texts of a quarter of ``max_tokens`` of filler and more, each a batch; as many as make
    ``num_tokens`` in the mean of all steps. Each answer counts as a sample."""
    batches = []
    for _ in range(int(num_tokens / (0.625 * max_tokens) + rng.random())):
        ids, mask = long_sample(rng, rng.randint(max_tokens // 4, max_tokens))
        one = TrainingSequence(ids, mask, [Piece("needle", *answer) for answer in _answers(mask)])
        batches.append(dataclasses.replace(_batch([one]), is_long=True))
    return batches


def _answers(mask: list[int]) -> list[tuple[int, int]]:
    """Where runs of tokens that count begin and end."""
    edges = [place for place, (a, b) in enumerate(pairwise([0, *mask, 0])) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _needles(rng: random.Random, max_tokens: int, num_tokens: float) -> list[TrainingSequence]:
    """Needles of at most ``max_tokens``; as many as make ``num_tokens`` in the mean of all steps,
    which may be none in most."""
    mean_tokens = max_tokens / math.log(max_tokens / _SHORTEST_NEEDLE)
    sequences = []
    for _ in range(int(num_tokens / mean_tokens + rng.random())):
        ids, mask = training_sample(rng, max_tokens=max_tokens, skill="needle")
        sequences.append(TrainingSequence(ids, mask, [Piece("needle", 0, len(ids))]))
    return sequences


def _draw(
    rng: random.Random, shares: dict[str, float], max_tokens: int, num_tokens: int
) -> list[TrainingSequence]:
    """About ``num_tokens`` of samples of at most ``max_tokens``, skills by their shares; short ones
    joined if they have one prompt."""
    sequences: list[TrainingSequence] = []
    open_: dict[tuple[int, ...], TrainingSequence] = {}
    drawn = 0
    while drawn < num_tokens:
        [skill] = rng.choices(list(shares), list(shares.values()))
        ids, mask = training_sample(rng, max_tokens=max_tokens, skill=skill)
        prompt_tokens = _system_tokens(ids)
        prompt = tuple(ids[:prompt_tokens])
        body = len(ids) - prompt_tokens
        before = open_.get(prompt)
        fits = before is not None and len(before.token_ids) + body <= _JOINED_TOKENS
        if before is not None and fits and rng.random() < _JOINED_SHARE:
            start = len(before.token_ids)
            before.token_ids.extend(ids[prompt_tokens:])
            before.mask.extend(mask[prompt_tokens:])
            before.pieces.append(Piece(skill, start, start + body))
            drawn += body
        else:
            one = TrainingSequence(ids, mask, [Piece(skill, 0, len(ids))])
            open_[prompt] = one
            sequences.append(one)
            drawn += len(ids)
    return sequences


def _repeats(rng: random.Random) -> TrainingSequence:
    """Runs of random tokens, over and over in ever another order: what follows a token is what
    followed it before. Teaches looking back with an answer at nearly every token, where a real
    copy gives a few in a hundred."""
    runs: list[list[int]] = []
    while sum(map(len, runs)) < rng.randint(24, 160):
        runs.append([rng.randrange(_NUM_PLAIN_TOKENS) for _ in range(rng.randint(2, 10))])
    ids = [token for run in runs for token in run]
    mask = [0] * len(ids)
    while len(ids) < _JOINED_TOKENS:
        for run in rng.sample(runs, len(runs)):
            ids += run
            mask += [0] + [1] * (len(run) - 1)
    ids, mask = ids[:_JOINED_TOKENS], mask[:_JOINED_TOKENS]
    return TrainingSequence(ids, mask, [Piece("repeat", 0, _JOINED_TOKENS)])


@functools.cache
def _role_token() -> int:
    [token_id] = tokenizer().encode("]~b]", add_special_tokens=False)
    return token_id


def _system_tokens(ids: list[int]) -> int:
    """Tokens before the first turn of the user: those of the system's and the developer's."""
    place = -1
    for _ in ("system", "developer", "user"):
        place = ids.index(_role_token(), place + 1)
    return place


def _rounded(length: int) -> int:
    return -(-length // _ROUND_TO) * _ROUND_TO


def _batch(group: list[TrainingSequence]) -> Batch:
    length = _rounded(max(len(one.token_ids) for one in group))
    token_ids = torch.zeros(len(group), length, dtype=torch.long)
    rows, weights, skills, samples = [], [], [], []
    num_samples = 0
    for number, one in enumerate(group):
        token_ids[number, : len(one.token_ids)] = torch.tensor(one.token_ids)
        for piece in one.pieces:
            places = [place for place in range(piece.start, piece.end) if one.mask[place]]
            rows += [number * length + place - 1 for place in places]
            # A sample with much to answer weighs more than one with little, but not by its length.
            weights += [len(places) ** -0.5] * len(places)
            skills += [SKILL_NAMES.index(piece.skill)] * len(places)
            samples += [num_samples] * len(places)
            num_samples += 1
    row_ids = torch.tensor(rows)
    return Batch(
        token_ids,
        row_ids,
        token_ids.flatten()[row_ids + 1],
        torch.tensor(weights),
        torch.tensor(skills),
        torch.tensor(samples),
    )
