"""The only place where what decides and what computes meet: plan, run, settle."""

import os

# OpenMP threads that wait by spinning turn a step of 8 ms into one of 300 ms as soon as anything
# else wants the cores. The library reads this once, when torch loads it, hence before any import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from mserve.engine.loop import Engine, Runner
from mserve.engine.process import Port, serve

__all__ = ["Engine", "Port", "Runner", "serve"]
