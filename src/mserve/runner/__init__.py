"""Executes a StepPlan: from rows and spans to tensors, and from tensors to tokens."""

from mserve.runner.execute import Runner

__all__ = ["Runner"]
