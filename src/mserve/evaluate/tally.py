"""Outcomes counted: rates with their intervals, floors they must reach, and the record of it all.

Knows names of scores: ``needle`` is a suite, ``needle/12k`` a part of it, ``gsm8k/exact_match``
a metric of an lm-eval task. Does not know how any of them was found.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from mserve.core import SetupError
from mserve.evaluate.run import Outcome

_Z = 1.959963984540054  # of 95 %, both sides


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """``rate`` of ``num_cases``, and the 95 % ``interval`` of what it would be on very many;
    ``None``: a metric that is no share of cases. No case was answered: no rate."""

    rate: float | None
    num_cases: int
    interval: tuple[float, float] | None = None


class Floor(msgspec.Struct, frozen=True):
    """A score must be at least this."""

    name: str
    rate: float


class FloorResult(msgspec.Struct, frozen=True):
    name: str
    floor: float
    rate: float | None

    @property
    def is_met(self) -> bool:
        return self.rate is not None and self.rate >= self.floor


def wilson(num_right: int, num_cases: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson, 1927), which unlike the normal one has
    sense near 0 and 1, where good models are."""
    if num_cases < 1:
        raise ValueError("an interval of no cases")
    rate, spread = num_right / num_cases, _Z**2 / num_cases
    centre = rate + spread / 2
    width = _Z * math.sqrt(rate * (1 - rate) / num_cases + spread / (4 * num_cases))
    low, high = (centre - width) / (1 + spread), (centre + width) / (1 + spread)
    # Exact at the ends, where rounding would leave a remainder beyond 0 or 1.
    return (0.0 if num_right == 0 else low), (1.0 if num_right == num_cases else high)


def share(num_right: int, num_cases: int) -> Score:
    if not num_cases:
        return Score(rate=None, num_cases=0)
    return Score(
        rate=num_right / num_cases, num_cases=num_cases, interval=wilson(num_right, num_cases)
    )


def scores_of(outcomes: Iterable[Outcome]) -> dict[str, Score]:
    """Of the answers there are, by the names of ``score_names``."""
    rights: dict[str, list[bool]] = defaultdict(list)
    parts: dict[str, set[str]] = defaultdict(set)
    for outcome in outcomes:
        parts[outcome.suite].add(outcome.case.part)
        if outcome.unanswered is None:
            for name in (outcome.suite, f"{outcome.suite}/{outcome.case.part}"):
                rights[name].append(outcome.wrong is None)
    return {name: share(sum(rights[name]), len(rights[name])) for name in score_names(parts)}


def score_names(parts: Mapping[str, Iterable[str]]) -> list[str]:
    """What is counted of suites with these ``parts``: each, and ``suite/part`` where it has
    several."""
    names = []
    for suite, found in parts.items():
        several = set(found)
        names.append(suite)
        if len(several) > 1:
            names += [f"{suite}/{part}" for part in sorted(several) if part]
    return names


def parse_floor(text: str) -> Floor:
    """``needle=0.95`` or ``needle/12k=95%``. Raises ``SetupError``."""
    name, _, value = text.rpartition("=")
    percent = value.endswith("%")
    try:
        rate = float(value.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        rate = math.nan
    if not name or not 0 <= rate <= 1:
        raise SetupError(
            f"--min {text} is not understood", hint="write --min needle=0.95: a name, then 0 to 1"
        )
    return Floor(name, rate)


def check_floors(scores: Mapping[str, Score], floors: Sequence[Floor]) -> list[FloorResult]:
    """Raises ``SetupError`` for a floor under something that was not measured."""
    unknown = [floor.name for floor in floors if floor.name not in scores]
    if unknown:
        raise SetupError(
            f"--min {unknown[0]}: nothing of that name was measured",
            hint=f"measured are {', '.join(scores)}",
        )
    return [FloorResult(floor.name, floor.rate, scores[floor.name].rate) for floor in floors]
