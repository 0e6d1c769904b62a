"""Random checkpoints in the published layout, of any size, for tests, demo and benchmarks."""

from mserve.toy.shape import PRESETS, Preset, ToyShape
from mserve.toy.write import write_toy

__all__ = ["PRESETS", "Preset", "ToyShape", "write_toy"]
