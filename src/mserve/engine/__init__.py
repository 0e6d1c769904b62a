"""The only place where what decides and what computes meet: plan, run, settle."""

from mserve.engine.loop import Engine, Runner
from mserve.engine.process import Port, serve

__all__ = ["Engine", "Port", "Runner", "serve"]
