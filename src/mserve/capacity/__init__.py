"""What fits: memory of weights, a step and KV blocks, from shapes alone."""

from mserve.capacity.cores import Core, Threads, granted_cores, numa_nodes, share_out
from mserve.capacity.machine import Machine, read_machine
from mserve.capacity.plan import MemoryPlan, cache_layout, max_model_len, plan_memory
from mserve.capacity.report import render
from mserve.capacity.weights import weight_bytes

__all__ = [
    "Core",
    "Machine",
    "MemoryPlan",
    "Threads",
    "cache_layout",
    "granted_cores",
    "max_model_len",
    "numa_nodes",
    "plan_memory",
    "read_machine",
    "render",
    "share_out",
    "weight_bytes",
]
