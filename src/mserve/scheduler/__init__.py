"""What runs next: queue, plan, settle. Tokens and block ids; never tensors, text or sockets."""

from mserve.scheduler.scheduler import Scheduler

__all__ = ["Scheduler"]
