"""Reading what a checkpoint says of itself, without torch: config keys, tensor names, headers."""

from mserve.checkpoint.config import parse_config, read_sampling_defaults, read_spec
from mserve.checkpoint.folder import DEMO, check_is_folder, checkpoint_folder
from mserve.checkpoint.formats import (
    STORED_AS,
    check_formats,
    convert_on_load,
    is_expert,
    is_matrix,
    shape_on_rank,
    stored_bytes,
    tensors_beside,
)
from mserve.checkpoint.header import TensorSource
from mserve.checkpoint.names import expected_tensors
from mserve.checkpoint.opening import (
    Checkpoint,
    SpelledTensor,
    open_checkpoint,
    spelled_tensors,
)
from mserve.checkpoint.spec import (
    ActivationSpec,
    IndexSpec,
    LayerSpec,
    ModelSpec,
    MoeSpec,
    QuantSpec,
    WeightFormat,
    check_ranks,
    heads_on_rank,
    kv_layout,
)
from mserve.checkpoint.writing import NewTensor, write_shards

__all__ = [
    "DEMO",
    "STORED_AS",
    "ActivationSpec",
    "Checkpoint",
    "IndexSpec",
    "LayerSpec",
    "ModelSpec",
    "MoeSpec",
    "NewTensor",
    "QuantSpec",
    "SpelledTensor",
    "TensorSource",
    "WeightFormat",
    "check_formats",
    "check_is_folder",
    "check_ranks",
    "checkpoint_folder",
    "convert_on_load",
    "expected_tensors",
    "heads_on_rank",
    "is_expert",
    "is_matrix",
    "kv_layout",
    "open_checkpoint",
    "parse_config",
    "read_sampling_defaults",
    "read_spec",
    "shape_on_rank",
    "spelled_tensors",
    "stored_bytes",
    "tensors_beside",
    "write_shards",
]
