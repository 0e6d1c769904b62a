"""Rotary embedding as config.json states it: flat keys, ``rope_parameters``, or both.

Plain rope on the first ``rotary_dim`` channels of a head is all the family uses; any kind of
scaling is refused, because ignoring it gives wrong text beyond the trained context.
"""

from __future__ import annotations

from typing import NamedTuple

from mserve.checkpoint.keys import Keys


class Rope(NamedTuple):
    theta: float
    rotary_dim: int  # channels of each head that rotate, an even number


def read_rope(config: Keys, head_dim: int) -> Rope:
    """Theta and width; every spelling that is present must say the same."""
    _refuse_scaling(config, "rope_scaling")
    parameters = config.section("rope_parameters")
    if parameters is None:
        return Rope(config.number("rope_theta"), _rotary_dim(config, config, head_dim))
    parameters.expect("rope_type", "default")
    theta = (parameters if "rope_theta" in parameters else config).number("rope_theta")
    if "rope_theta" in config and config.number("rope_theta") != theta:
        config.refuse("rope_theta", f"the same as rope_parameters.rope_theta, {theta:g}")
    factor_owner = parameters if "partial_rotary_factor" in parameters else config
    return Rope(theta, _rotary_dim(config, factor_owner, head_dim))


def _rotary_dim(config: Keys, factor_owner: Keys, head_dim: int) -> int:
    factor = "partial_rotary_factor"
    if "rotary_dim" in config:
        rotary_dim = config.integer("rotary_dim")
        if factor in factor_owner and round(factor_owner.number(factor) * head_dim) != rotary_dim:
            config.refuse(
                "rotary_dim",
                f"head_dim {head_dim} times partial_rotary_factor {factor_owner.number(factor):g}",
            )
    else:
        # Without either key the whole head rotates, as writers of ``rope_parameters`` mean it.
        rotary_dim = round(factor_owner.number(factor, 1.0) * head_dim)
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        owner, key = (config, "rotary_dim") if "rotary_dim" in config else (factor_owner, factor)
        owner.refuse(key, f"an even width within head_dim {head_dim}")
    return rotary_dim


def _refuse_scaling(config: Keys, key: str) -> None:
    scaling = config.section(key)
    if scaling is None:
        return
    for name in ("rope_type", "type"):
        if name in scaling:
            scaling.expect(name, "default")
            return
    config.refuse(key, "null")
