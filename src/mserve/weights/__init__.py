"""From the files of a checkpoint to the parameters of a model."""

from mserve.weights.load import load
from mserve.weights.piece import Piece

__all__ = ["Piece", "load"]
