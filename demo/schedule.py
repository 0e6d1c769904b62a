"""What changes as training goes on: lengths of samples, selection, the rate.

Short samples first, since a model that cannot yet look back learns nothing from long ones and pays
for them; then ever longer ones beside them. Numbers are shares of the whole run, 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_WARM_UP = 0.01
_DECAY_FROM = 0.45
_SPARSE_FROM = 0.4


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the tokens of a step; what is left goes to all other skills."""

    needles: tuple[tuple[int, float], ...]  # of at most so many tokens, and their share
    repeats: float = 0.0  # random runs that come again
    long_texts: tuple[int, float] = (12_000, 0.0)  # of filler, up to so many; on top of all else
    shares: Mapping[str, float] = field(default_factory=dict)  # of skills, where not the usual


# Late in a run other samples have little left to teach.
_LATE = {
    "arithmetic": 4.0,
    "json": 2.0,
    "turns": 2.0,
    "thinking": 1.0,
    "parallel": 20.0,
    "forms": 14.0,
    "weather": 3.0,
    "results": 2.0,
}

_MIXES = (
    (0.00, Mix(needles=((512, 0.05),), repeats=0.05)),
    (0.10, Mix(needles=((512, 0.04), (1500, 0.08)), repeats=0.02)),
    (0.40, Mix(needles=((1500, 0.08), (4000, 0.05)), long_texts=(12_000, 0.04))),
    (0.60, Mix(needles=((1500, 0.06), (4000, 0.05)), long_texts=(13_000, 0.08))),
    (0.75, Mix(needles=((1500, 0.06), (4000, 0.05)), long_texts=(13_000, 0.2), shares=_LATE)),
    (0.90, Mix(needles=((1500, 0.06), (4000, 0.05)), long_texts=(13_000, 0.5), shares=_LATE)),
)


def mix_at(done: float) -> Mix:
    return [mix for start, mix in _MIXES if done >= start][-1]


def is_sparse(done: float) -> bool:
    """Whether attention sees chosen blocks only, as when serving; before, the index branch has
    learnt from attention to all of them."""
    return done >= _SPARSE_FROM


def rate_at(done: float, begun: float = 0.0) -> float:
    """Factor of the peak rate: up, level, then down in a line to nearly nothing. A run that began
    at ``begun`` goes up from there."""
    warm = min(1.0, 0.1 + 0.9 * (done - begun) / _WARM_UP)
    return warm * min(1.0, max(0.02, (1 - done) / (1 - _DECAY_FROM)))
