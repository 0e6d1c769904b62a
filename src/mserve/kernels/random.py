"""One uniform number per (seed, output position), as a pure function.

A request's randomness must not depend on what else is in its batch, on preemption or on the
machine, so there is no generator state to carry: the number for position p of seed s is a hash of
both. Knows integers; does not know logits.
"""

from __future__ import annotations

import numpy as np

# Weyl increment and multipliers of Stafford's 13th variant of the 64-bit finaliser: every input
# bit flips every output bit with probability close to one half.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


def uniform(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1), one for each pair of ``seeds`` and ``positions`` [R], integers of
    64 bits of which only the bits matter. Resolution is 2**-53."""
    streams = _mixed(seeds.astype(np.uint64) + _INCREMENT)
    # The position goes through the mixer alone first: seeds s and s + 1 then never share a shifted
    # copy of one sequence, as they would with stream + position.
    bits = _mixed(streams ^ _mixed(positions.astype(np.uint64) * _INCREMENT + _MULTIPLIER_1))
    values: np.ndarray = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return values


def _mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * _MULTIPLIER_1
    values = (values ^ (values >> np.uint64(27))) * _MULTIPLIER_2
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
