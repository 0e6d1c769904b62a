"""What each weight format keeps beside a matrix, in a file and in memory, and how ranks cut it.

    mxfp8         X.weight_scale_inv [N, K / 32]
    fp8           X.weight_scale_inv [N / 128, K / 128]                    counts rounded up
    int8          X.weight_scale, X.weight_offset [N, 1]
    int8_static   X.input_scale, X.input_offset [1], X.quant_bias, X.deq_scale [N]; maybe int8's too

Knows shapes and bytes. Does not know values, or which matrix has which format.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from mserve.checkpoint.names import Shape, expected_tensors
from mserve.checkpoint.spec import ModelSpec, QuantSpec, WeightFormat, heads_on_rank
from mserve.core import DTYPE_BYTES, CheckpointError, SetupError

STORED_AS: dict[WeightFormat, tuple[str, ...]] = {
    "plain": ("bfloat16", "float32"),
    "mxfp8": ("float8_e4m3fn",),
    "fp8": ("float8_e4m3fn",),
    "int8": ("int8",),
    "int8_static": ("int8",),
}
"""Types of ``X.weight`` in a file."""

_MX_GROUP = 32
_FP8_BLOCK = 128
_FLOATS = ("float32", "bfloat16")
_EXPERT_MATRICES = {"w1", "w2", "w3"}


class Beside(NamedTuple):
    """A tensor that a format keeps beside ``X.weight``."""

    name: str
    shape: Shape
    dtypes: tuple[str, ...]  # that may be read; the first is the one written
    required: bool = True


def is_matrix(name: str) -> bool:
    """Whether a tensor, by logical name, is one that formats apply to: the projections of
    attention, index branch, MLPs and experts. Never the embedding, head, router or norms."""
    path = name.split(".")
    kind = path[-2] if path[0] == "model" and path[-1] == "weight" else ""
    return kind.endswith("_proj") or kind in _EXPERT_MATRICES


def tensors_beside(name: str, shape: Shape, kind: WeightFormat) -> Iterator[Beside]:
    """What a file holds beside the matrix ``name`` of ``shape`` [N, K]."""
    height, width = shape
    module = name.removesuffix(".weight")
    if kind == "mxfp8":
        groups = (height, width // _MX_GROUP)
        yield Beside(f"{name}_scale_inv", groups, ("uint8", "float8_e8m0fnu"))
    elif kind == "fp8":
        blocks = (_up(height, _FP8_BLOCK), _up(width, _FP8_BLOCK))
        yield Beside(f"{name}_scale_inv", blocks, _FLOATS)
    elif kind in ("int8", "int8_static"):
        # Static factors say all that these two do, and ModelSlim then leaves them out.
        required = kind == "int8"
        yield Beside(f"{name}_scale", (height, 1), _FLOATS, required)
        yield Beside(f"{name}_offset", (height, 1), _FLOATS, required)
    if kind == "int8_static":
        yield Beside(f"{module}.input_scale", (1,), _FLOATS)
        yield Beside(f"{module}.input_offset", (1,), _FLOATS)
        yield Beside(f"{module}.quant_bias", (height,), ("int32",))
        yield Beside(f"{module}.deq_scale", (height,), ("float32", "int64"))


def stored_bytes(shape: Shape, kind: WeightFormat, dtype: str) -> int:
    """Bytes in memory of a matrix of ``shape`` [N, K], with all that it needs; ``dtype`` is that
    of plain values."""
    height, width = shape
    if kind == "plain":
        return height * width * DTYPE_BYTES[dtype]
    scales = {
        "mxfp8": height * (width // _MX_GROUP),
        "fp8": 4 * _up(height, _FP8_BLOCK) * _up(width, _FP8_BLOCK),
        "int8": 4 * height,
        "int8_static": 4 * height + 4 * height + 8,
    }
    return height * width + scales[kind]


def shape_on_rank(name: str, shape: Shape, spec: ModelSpec, ranks: int) -> Shape:
    """Shape of the part of matrix ``name`` [N, K] that each of ``ranks`` holds, where widths are
    cut: rows of what goes into attention and MLPs, columns of what comes out."""
    kind = name.split(".")[-2]
    if kind == "index_k_proj":
        return shape
    if kind in ("k_proj", "v_proj", "index_q_proj"):
        heads = heads_on_rank(spec.num_kv_heads, ranks)
        return (shape[0] * heads // spec.num_kv_heads, shape[1])
    if kind in ("o_proj", "down_proj", "w2"):
        return (shape[0], shape[1] // ranks)
    return (shape[0] // ranks, shape[1])


def is_expert(name: str) -> bool:
    """Whether a matrix is of a routed expert, which expert parallelism leaves whole."""
    return "experts" in name.split(".")


def convert_on_load(spec: ModelSpec, wanted: WeightFormat) -> ModelSpec:
    """``spec`` with its matrices in the format ``wanted``: as they are if the file holds them so,
    else converted while they are loaded. ``SetupError`` if the file holds another packed format.
    """
    held = spec.quantization.format
    if held == wanted or (held, wanted) == ("int8_static", "int8"):
        return spec
    if held != "plain":
        raise SetupError(
            f"the checkpoint's weights are {held} already and are not converted to {wanted}",
            hint="leave --quantization out, or use the bf16 checkpoint",
        )
    return msgspec.structs.replace(spec, quantization=QuantSpec(wanted, on_load=True))


def check_formats(spec: ModelSpec, ranks: int, *, expert_parallel: bool) -> None:
    """``CheckpointError`` for a matrix whose shape its format cannot have; ``SetupError`` where
    ranks would cut through values that share a scale."""
    for name, shape in expected_tensors(spec).items():
        kind = spec.quantization.format_of(name) if is_matrix(name) else "plain"
        if kind == "mxfp8" and shape[1] % _MX_GROUP:
            raise CheckpointError(
                f"{name} is {shape[1]} wide, and MXFP8 scales groups of {_MX_GROUP} columns",
                hint="use another format",
            )
        if ranks == 1 or kind == "plain" or (expert_parallel and is_expert(name)):
            continue
        part = shape_on_rank(name, shape, spec, ranks)
        rows, columns = {"mxfp8": (1, _MX_GROUP), "fp8": (_FP8_BLOCK,) * 2}.get(kind, (1, 1))
        for count, whole, together in zip(part, shape, (rows, columns), strict=True):
            if count != whole and count % together:
                raise SetupError(
                    f"{ranks} ranks would cut {name} into parts of {count}, and {kind} scales"
                    f" {together} values together",
                    hint="use fewer tensor parallel ranks"
                    + (", or --enable-expert-parallel" if is_expert(name) else ""),
                )


def _up(count: int, together: int) -> int:
    return -(-count // together)
