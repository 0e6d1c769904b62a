"""Executes a StepPlan: from rows and spans to tensors, and from tensors to tokens."""

from mserve.runner.execute import Runner
from mserve.runner.memory import is_out_of_memory

__all__ = ["Runner", "is_out_of_memory"]
