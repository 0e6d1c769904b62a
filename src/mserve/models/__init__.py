"""The models by family: one readable file each."""

from __future__ import annotations

import torch

from mserve.checkpoint.spec import ModelSpec
from mserve.models.minimax_m2 import MiniMaxM2
from mserve.models.minimax_m3 import MiniMaxM3
from mserve.models.model import Model
from mserve.parallel import Groups

MODELS: dict[str, type[MiniMaxM2] | type[MiniMaxM3]] = {
    "m2": MiniMaxM2,
    "m3": MiniMaxM3,
}


def build_model(spec: ModelSpec, groups: Groups, dtype: torch.dtype, device: torch.device) -> Model:
    """This rank's share of ``spec`` with unset parameters. ``SetupError`` if the ranks do not
    divide the model."""
    return MODELS[spec.family](spec, groups, dtype, device)


__all__ = ["MODELS", "Model", "build_model"]
