"""From the files of a checkpoint to the parameters of a model."""

from mserve.weights.loading import load
from mserve.weights.piece import Piece

__all__ = ["Piece", "load"]
