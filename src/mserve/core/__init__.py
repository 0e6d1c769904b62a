"""The shared vocabulary. Imports nothing of ours."""

from mserve.core.blocks import BLOCK_TOKENS, BlockName, blocks_for, next_name, root_name
from mserve.core.config import (
    CacheConfig,
    EngineConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
)
from mserve.core.constraint import MAX_GRAMMAR_CHARS, Constraint, FreeText
from mserve.core.errors import (
    CapacityError,
    CheckpointError,
    ContextLengthError,
    EngineError,
    MserveError,
    NotFoundError,
    NotReadyError,
    OverloadedError,
    QueueFullError,
    RequestError,
    SetupError,
)
from mserve.core.layout import DTYPE_BYTES, KVLayout, Plane
from mserve.core.plan import RowResult, RowStart, Span, StepPlan, StepResult
from mserve.core.request import (
    MAX_CHOICES,
    MAX_LOGPROBS,
    FinishReason,
    Request,
    RequestOutput,
    RequestTimes,
    SamplingParams,
    TokenLogprobs,
)

__all__ = [
    "BLOCK_TOKENS",
    "DTYPE_BYTES",
    "MAX_CHOICES",
    "MAX_GRAMMAR_CHARS",
    "MAX_LOGPROBS",
    "BlockName",
    "CacheConfig",
    "CapacityError",
    "CheckpointError",
    "Constraint",
    "ContextLengthError",
    "EngineConfig",
    "EngineError",
    "FinishReason",
    "FreeText",
    "KVLayout",
    "ModelConfig",
    "MserveError",
    "NotFoundError",
    "NotReadyError",
    "OverloadedError",
    "ParallelConfig",
    "Plane",
    "QueueFullError",
    "Request",
    "RequestError",
    "RequestOutput",
    "RequestTimes",
    "RowResult",
    "RowStart",
    "SamplingParams",
    "SchedulerConfig",
    "SetupError",
    "Span",
    "StepPlan",
    "StepResult",
    "TokenLogprobs",
    "blocks_for",
    "next_name",
    "root_name",
]
