"""Ranks and what they say to each other."""

from mserve.parallel.group import (
    Group,
    Groups,
    RankGroup,
    SoloGroup,
    close_groups,
    init_groups,
)

__all__ = ["Group", "Groups", "RankGroup", "SoloGroup", "close_groups", "init_groups"]
