"""The models by family: one readable file each."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mserve.checkpoint.spec import ModelSpec
from mserve.layers import Decoder
from mserve.models.minimax_m2 import minimax_m2
from mserve.models.minimax_m3 import minimax_m3
from mserve.models.model import Model
from mserve.parallel import Groups

MODELS: dict[str, Callable[[ModelSpec, Groups, torch.dtype, torch.device], Decoder]] = {
    "m2": minimax_m2,
    "m3": minimax_m3,
}


def build_model(
    spec: ModelSpec, groups: Groups, dtype: torch.dtype, device: torch.device
) -> Decoder:
    """This rank's share of ``spec`` with unset parameters. ``SetupError`` if the ranks do not
    divide the model."""
    return MODELS[spec.family](spec, groups, dtype, device)


__all__ = ["MODELS", "Model", "build_model"]
