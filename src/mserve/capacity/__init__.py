"""What fits: memory of weights, a step and KV blocks, from shapes alone."""

from mserve.capacity.machine import Machine, read_machine
from mserve.capacity.plan import MemoryPlan, max_model_len, plan_memory
from mserve.capacity.report import render
from mserve.capacity.weights import weight_bytes

__all__ = [
    "Machine",
    "MemoryPlan",
    "max_model_len",
    "plan_memory",
    "read_machine",
    "render",
    "weight_bytes",
]
