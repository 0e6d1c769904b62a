"""Stand-ins for every edge of the server, for tests and benchmarks."""

from mserve.testing.clock import ManualClock
from mserve.testing.scripted_runner import PlanViolation, ScriptedRunner, scripted_logprob

__all__ = ["ManualClock", "PlanViolation", "ScriptedRunner", "scripted_logprob"]
