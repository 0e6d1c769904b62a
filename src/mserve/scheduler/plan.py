"""Make the next step: secure blocks, admit, share out the tokens.

There is no prefill and no decode. Every running request has known tokens of which some are not
computed yet: one after it was sampled, many for a prompt, all after a preemption. A step lets the
computed catch up with the known, each by its share of the token budget, and every running request
by at least one token. So chunked prompts, decoding, prefix hits and resumption are one rule.

Knows when a request may start and how far each one gets. Does not know what came of it
(``settle``) or the judgements behind the order (``policy``).
"""

from __future__ import annotations

from mserve.core import BLOCK_TOKENS, RowStart, Span
from mserve.scheduler.live import LiveRequest
from mserve.scheduler.policy import choose_victim, reserve_blocks, share_tokens
from mserve.scheduler.queue import WaitingQueue
from mserve.scheduler.rows import RunningRows


def secure_blocks(rows: RunningRows, waiting: WaitingQueue) -> int:
    """Make sure that every running request has a block for each token it knows. Returns how many
    had to be preempted for it.

    A preempted request loses its row and blocks and goes back to the queue, where its output so
    far counts as known tokens. What it had sealed stays findable, so it usually resumes cheaply.
    """
    growing = [live for live in rows if len(live.tokens) > len(live.table) * BLOCK_TOKENS]
    num_preempted = 0
    for live in growing:
        # A request that was itself the victim has no row any more. The last one left always
        # finds a block, since the pool holds the longest request there can be.
        while live.row is not None and not rows.extend(live):
            victim = choose_victim(rows)
            rows.leave(victim)
            waiting.put(victim)
            num_preempted += 1
    return num_preempted


def admit(rows: RunningRows, waiting: WaitingQueue) -> list[tuple[LiveRequest, RowStart]]:
    """Start waiting requests while there are rows and blocks, in order.

    One that waits for a block on its way is passed over, since it costs nobody anything. One that
    does not fit ends the search: if smaller ones went ahead, it might never start.
    """
    admitted = []
    # Looking no further than there are rows keeps the cost of a long queue bounded.
    for live in waiting.first(rows.num_free):
        cached = rows.find_cached(live)
        if cached is None:
            continue
        if not rows.fits(live, cached, reserve_blocks(len(rows))):
            break
        waiting.remove(live)
        rows.enter(live, cached)
        admitted.append((live, live.row_start(cached)))
    return admitted


def lay_spans(rows: RunningRows, budget: int) -> tuple[Span, ...]:
    """One span per running request, ``budget`` tokens in all. There are never more running
    requests than tokens in the budget."""
    lengths = _long_spans(rows, budget)
    spans = []
    for live in rows:
        row = live.row
        assert row is not None
        start = live.computed
        length = lengths.get(row, 1)
        reaches_end = start + length == len(live.tokens)
        spans.append(
            Span(
                row,
                start,
                length,
                reaches_end and live.max_output_tokens > 0,
                live.unsent_block_ids,
            )
        )
        live.unsent_block_ids = ()
    return tuple(spans)


def _long_spans(rows: RunningRows, budget: int) -> dict[int, int]:
    """Length by row for those with more than one token to compute."""
    long = [live for live in rows if len(live.tokens) - live.computed > 1]
    if not long:
        return {}
    needs = [len(live.tokens) - live.computed for live in long]
    room = budget - (len(rows) - len(long))
    shares = share_tokens(long, needs, room)
    return {
        live.row: share for live, share in zip(long, shares, strict=True) if live.row is not None
    }
