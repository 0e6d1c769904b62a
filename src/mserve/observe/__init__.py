"""Measurements: their names, units and buckets."""

from mserve.observe.metrics import EngineReading, EngineTimes, FinishedRequest, ServerMetrics

__all__ = ["EngineReading", "EngineTimes", "FinishedRequest", "ServerMetrics"]
