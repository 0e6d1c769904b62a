"""Reading what a checkpoint says of itself, without torch: config keys, tensor names, headers."""

from mserve.checkpoint.config import parse_config, read_sampling_defaults, read_spec
from mserve.checkpoint.header import TensorSource
from mserve.checkpoint.names import expected_tensors
from mserve.checkpoint.opening import Checkpoint, open_checkpoint
from mserve.checkpoint.spec import (
    ActivationSpec,
    IndexSpec,
    LayerSpec,
    ModelSpec,
    MoeSpec,
    check_ranks,
    heads_on_rank,
    kv_layout,
)

__all__ = [
    "ActivationSpec",
    "Checkpoint",
    "IndexSpec",
    "LayerSpec",
    "ModelSpec",
    "MoeSpec",
    "TensorSource",
    "check_ranks",
    "expected_tensors",
    "heads_on_rank",
    "kv_layout",
    "open_checkpoint",
    "parse_config",
    "read_sampling_defaults",
    "read_spec",
]
