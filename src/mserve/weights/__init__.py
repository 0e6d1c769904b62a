"""From the files of a checkpoint to the parameters of a model, and the forms they are stored in."""

from mserve.weights.convert import quantize_checkpoint
from mserve.weights.experts import first_experts, gated_mlp, run_experts
from mserve.weights.loading import load
from mserve.weights.piece import Piece
from mserve.weights.storage import Storage
from mserve.weights.weight import Part, Weight, forms

__all__ = [
    "Part",
    "Piece",
    "Storage",
    "Weight",
    "first_experts",
    "forms",
    "gated_mlp",
    "load",
    "quantize_checkpoint",
    "run_experts",
]
