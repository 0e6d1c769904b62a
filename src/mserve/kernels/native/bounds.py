"""Sizes that the library takes: some tables are fixed, and heads are read by pairs of columns.

Knows numbers. Does not know tensors, or what a model is.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_CHOSEN_BLOCKS = 64  # cpp/select_blocks.h
MAX_INDEX_GROUPS = 16
MAX_CHOSEN_EXPERTS = 64  # cpp/route.h
MAX_HEAD_WIDTH = 1024  # cpp/norm.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What of a model has a bound, on one rank."""

    head_widths: tuple[int, ...]
    experts_per_token: int
    chosen_blocks: int = 0  # by each token and KV group
    index_groups: int = 0


def beyond_bounds(sizes: Sizes) -> str | None:
    """What the library does not take, in words that follow its name; None if it takes all."""
    for what, size, most in (
        ("experts per token", sizes.experts_per_token, MAX_CHOSEN_EXPERTS),
        ("chosen blocks per token", sizes.chosen_blocks, MAX_CHOSEN_BLOCKS),
        ("KV groups that choose blocks", sizes.index_groups, MAX_INDEX_GROUPS),
        ("columns of a head", max(sizes.head_widths), MAX_HEAD_WIDTH),
    ):
        if size > most:
            return f"take at most {most} {what}, not {size}"
    for width in sizes.head_widths:
        if width % 2:
            return f"take heads of an even width, not {width}"
    return None
