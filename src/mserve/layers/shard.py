"""Which part of a dimension this rank holds.

    heads      rank 0: q 0-3, kv 0     rank 1: q 4-7, kv 0 (a copy)     rank 2: q 8-11, kv 1 ...

Query heads are always split. KV heads are split while there are enough, then copied to the ranks
whose query heads read them. Knows ranks and counts; does not know tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

from mserve.core import SetupError
from mserve.parallel import Group

EVERY = slice(None)


@dataclass(frozen=True, slots=True)
class HeadShare:
    """Heads of one attention layer on this rank."""

    first_head: int
    num_heads: int
    first_kv_head: int
    num_kv_heads: int
    counts_kv: bool  # of the ranks that hold these KV heads, this one is the first


def even_share(total: int, group: Group, what: str) -> slice:
    """This rank's equal part of ``total``; ``SetupError`` if the ranks do not divide it."""
    if total % group.size:
        raise SetupError(
            f"{what} {total} cannot be split over {group.size} ranks",
            hint=f"use a tensor parallel size that divides {total}",
        )
    count = total // group.size
    return slice(group.rank * count, (group.rank + 1) * count)


def head_share(num_heads: int, num_kv_heads: int, group: Group) -> HeadShare:
    """Split heads over ``group``; ``SetupError`` unless the ranks divide the query heads, and
    divide the KV heads or are a multiple of them."""
    heads = even_share(num_heads, group, "num_attention_heads")
    if num_kv_heads % group.size == 0:
        kv_heads = even_share(num_kv_heads, group, "num_key_value_heads")
        count = kv_heads.stop - kv_heads.start
        return HeadShare(heads.start, heads.stop - heads.start, kv_heads.start, count, True)
    if group.size % num_kv_heads:
        raise SetupError(
            f"num_key_value_heads {num_kv_heads} neither splits over {group.size} ranks "
            "nor divides them",
            hint=f"use a tensor parallel size that divides {num_kv_heads} or is a multiple of it",
        )
    copies = group.size // num_kv_heads
    return HeadShare(
        first_head=heads.start,
        num_heads=heads.stop - heads.start,
        first_kv_head=group.rank // copies,
        num_kv_heads=1,
        counts_kv=group.rank % copies == 0,
    )
