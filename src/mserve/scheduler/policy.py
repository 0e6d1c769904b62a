"""The judgements: who comes first, how a step's tokens are shared, who has to go.

Pure functions over a few numbers, so that a different opinion is a change in this file only.
Knows order, fairness and reserve. Does not know blocks, rows or how a plan is written down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mserve.scheduler.live import LiveRequest


def turn(live: LiveRequest) -> tuple[int, int]:
    """Sort key of the queue, first to be admitted first: by priority, then by arrival. A preempted
    request keeps its arrival number, so it returns to the head of its priority."""
    return live.priority, live.number


def choose_victim(running: Iterable[LiveRequest]) -> LiveRequest:
    """Who is preempted when blocks run out: the last arrival of the lowest priority.

    The first arrival is thus never preempted, which is why the engine as a whole always gets on.
    """
    return max(running, key=turn)


def reserve_blocks(num_running: int) -> int:
    """Blocks an admission must leave over for those that already run: one for every four, which is
    what they will claim in the next 32 steps. Without it, a request would be admitted only to be
    preempted at once."""
    return -(-num_running // 4)


def share_tokens(pending: Sequence[LiveRequest], needs: Sequence[int], room: int) -> list[int]:
    """Tokens for each of ``pending`` out of ``room``, at most its need and at least one.

    Half of the room is shared equally: nobody waits behind a long prompt. The other half, and
    what the first left over, goes to those with the least to do, by priority: short prompts leave
    early, and equal prompts finish one after the other instead of all at the end. Price: a prompt
    alone against many short ones gets half of its equal share, never less.

    ``room`` must be at least ``len(pending)``.
    """
    equal = max(1, room // (2 * len(needs)))
    shares = [min(need, equal) for need in needs]
    rest = room - sum(shares)
    by_urgency = sorted(
        range(len(needs)),
        key=lambda index: (pending[index].priority, needs[index], pending[index].number),
    )
    for index in by_urgency:
        extra = min(needs[index] - shares[index], rest)
        shares[index] += extra
        rest -= extra
    return shares
