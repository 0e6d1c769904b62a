"""Rows under a grammar: what each may take next, worked out beside the forward pass.

    append ──> thread: take the token, find what may follow ──┐
    forward pass of the next step ────────────────────────────┴──> edits for the sampler

A row's follower is made anew from the row's tokens whenever it starts, so a preempted request
resumes where it was. Knows rows by number. Does not know where a grammar comes from.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np

from mserve.core import Constraint, MserveError, RequestError, RowStart
from mserve.matcher import AllBut, Choice, Follower, Only, Vocabulary
from mserve.sampler import Allowed, Forbidden, LogitEdit

_MAX_THREADS = 4

Step: TypeAlias = tuple[Follower, Choice]


class ConstrainedRows:
    """The followers of one rank's rows. Not thread-safe."""

    def __init__(self, vocabulary: Vocabulary | None) -> None:
        """Without a ``vocabulary`` (the checkpoint has no tokenizer, or this rank does not
        sample) no grammar can be followed, and a row that has one fails when it samples."""
        self._vocabulary = vocabulary
        self._steps: dict[int, Future[Step]] = {}
        self._threads = ThreadPoolExecutor(
            min(_MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="grammar"
        )

    def start(self, start: RowStart) -> None:
        """Replaces what was known of the row."""
        self._steps.pop(start.row, None)
        constraint = start.sampling.constraint
        if constraint is not None:
            output = start.token_ids[start.num_prompt_tokens :]
            self._steps[start.row] = self._threads.submit(
                _begin, constraint, self._vocabulary, output
            )

    def append(self, row: int, token_id: int) -> None:
        """The row's next token was sampled."""
        step = self._steps.get(row)
        if step is not None and step.done() and step.exception() is None:
            follower, _ = step.result()
            self._steps[row] = self._threads.submit(_advance, follower, token_id)

    def edits(self, row_numbers: np.ndarray) -> tuple[list[LogitEdit], dict[int, str]]:
        """What the sampler has to apply to ``row_numbers``, by their places; and why the rows
        fail whose grammar cannot be followed."""
        masks: list[tuple[int, np.ndarray]] = []
        forbidden: list[tuple[int, np.ndarray]] = []
        failed: dict[int, str] = {}
        for place, row in enumerate(row_numbers.tolist()) if self._steps else ():
            step = self._steps.get(row)
            if step is None:
                continue
            try:
                _, choice = step.result()
            except MserveError as error:
                failed[row] = error.message
                continue
            match choice:
                case Only(mask):
                    masks.append((place, mask))
                case AllBut(ids) if len(ids):
                    forbidden.append((place, ids))
        return _edits(masks, forbidden), failed


def _begin(constraint: Constraint, vocabulary: Vocabulary | None, output: Sequence[int]) -> Step:
    if vocabulary is None:
        raise RequestError("this checkpoint has no tokenizer, which structured output needs")
    follower = Follower(constraint, vocabulary)
    for token_id in output:
        follower.accept(token_id)
    return follower, follower.choice()


def _advance(follower: Follower, token_id: int) -> Step:
    follower.accept(token_id)
    return follower, follower.choice()


def _edits(
    masks: Sequence[tuple[int, np.ndarray]], forbidden: Sequence[tuple[int, np.ndarray]]
) -> list[LogitEdit]:
    edits: list[LogitEdit] = []
    if masks:
        edits.append(
            Allowed(
                rows=np.asarray([place for place, _ in masks]),
                masks=np.stack([mask for _, mask in masks]),
            )
        )
    if forbidden:
        edits.append(
            Forbidden(
                rows=np.repeat(
                    [place for place, _ in forbidden], [len(ids) for _, ids in forbidden]
                ),
                ids=np.concatenate([ids for _, ids in forbidden]),
            )
        )
    return edits
