"""Stand-ins for every edge: a scripted engine, a scripted runner, a manual clock."""

from mserve.testing.clock import ManualClock
from mserve.testing.scripted_runner import PlanContractError, ScriptedRunner, scripted_logprob

__all__ = ["ManualClock", "PlanContractError", "ScriptedRunner", "scripted_logprob"]
