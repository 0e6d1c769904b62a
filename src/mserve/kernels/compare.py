"""Run every op by both implementations and hold one against the other.

For the check at start-up: a processor, compiler or checkpoint on which a fast kernel is wrong must
not serve. Both get the same inputs, so a difference is the op's own and no rounding of an earlier
op is blamed on it; what is not finite in the reference already is the weights' fault. Knows ops
and tolerances; does not know layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mserve.core import BLOCK_TOKENS, CheckpointError, SetupError
from mserve.kernels.choose import (
    OPS,
    Op,
    gated_mlp,
    linear,
    route,
    run_experts,
    select_blocks,
    write_kv,
)
from mserve.kernels.matrix import Int8Matrix, Int8StaticMatrix, Matrix

# Largest difference, relative to the largest value. Two orders of summation differ by a few
# roundings; a lost scale, clamp or block by far more.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
# Of INT8 matrices with an activation between them: what lies halfway between two integers may
# become either, which no precision of what surrounds it makes smaller.
_TOLERANCE_OF_INTEGERS = 2e-2
# Share of rows in which the last expert or block chosen may be another: two sums in another order
# rank otherwise what is nearly equal. One row of the forty that a step has is 0.025.
_NEAR_TIES = 0.03
_CHOICES = (route, select_blocks)
# Leading arguments with a row per token, of the ops whose reference takes time: it unpacks weights.
_ROW_ARGUMENTS = {linear: 1, gated_mlp: 1, run_experts: 3}
# So many rows are other code than many: one reads weights as a stream, a few stay in registers.
_FEW_ROWS = (1, 3)
# Of a plain matrix with more rows, which only a head has, the first and last half as many are held.
_TALLEST = 16384


@contextmanager
def compared_kernels(place: str) -> Iterator[None]:
    """Within the block every op that runs natively runs both ways, and returns the native result.
    ``place`` is the part of the model that the block computes, from finite inputs.

    A product with matrices is compared once for each form and shape of these, with all rows of that
    call and with its first few alone: the first call has to be the one with the most rows.

    Raises:
        SetupError: names the first op whose results differ.
        CheckpointError: names ``place`` and the first op that its weights give NaN or infinity.
    """
    before = [op.run for op in OPS]
    compared: set[tuple[object, ...]] = set()
    for op in OPS:
        if op.run is op.native:
            op.run = (
                _compared_product(op, place, compared)
                if op in _ROW_ARGUMENTS
                else _compared(op, place)
            )
    try:
        yield
    finally:
        for op, run in zip(OPS, before, strict=True):
            op.run = run


def _compared(op: Op, place: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        expected = _outcome(op.reference, args, kwargs)
        found = _outcome(op.native, args, kwargs)
        pair = (_tensors(expected), _tensors(found))
        if op in _CHOICES:
            pair = _without_near_ties(*pair)
        for wanted, got in zip(*pair, strict=True):
            _hold(op, place, wanted, got, _TOLERANCE.get(got.dtype, 0.0))
        return found

    return run


def _without_near_ties(
    expected: tuple[torch.Tensor, ...], found: tuple[torch.Tensor, ...]
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Both without the rows whose ids, the first tensor, differ, if these are few."""
    same = (expected[0] == found[0]).all(-1)
    if (~same).sum() > _NEAR_TIES * same.numel():
        return expected, found
    return tuple(values[same] for values in expected), tuple(values[same] for values in found)


def _compared_product(
    op: Op, place: str, compared: set[tuple[object, ...]]
) -> Callable[..., torch.Tensor]:
    def run(*args: Any) -> torch.Tensor:
        matrices = _matrices(op, args)
        form = (op, *((type(matrix), matrix.shape) for matrix in matrices))
        if form in compared:
            found = op.native(*args)
        else:
            compared.add(form)
            found, *_ = [_hold_product(op, place, *call) for call in _telling_calls(op, args)]
        # What was not compared must not be blamed on a later op, or on its weights.
        if not found.isfinite().all():
            _hold(op, place, op.reference(*args), found, torch.inf)
        return found

    return run


def _matrices(op: Op, args: tuple[Any, ...]) -> list[Matrix]:
    flat = [part for arg in args for part in (arg if isinstance(arg, tuple) else (arg,))]
    return [part for part in flat[_ROW_ARGUMENTS[op] :] if isinstance(part, Matrix)]


def _telling_calls(op: Op, args: tuple[Any, ...]) -> list[tuple[tuple[Any, ...], int]]:
    """Arguments, those given first, and of how many of their rows the reference is computed.

    Rows of chance spread over all experts: the reference of all rows would take seconds, and no
    expert would have many. So all of them then go where the first one does."""
    num_rows = len(args[0])
    if op is not run_experts:
        return [(args, num_rows)]
    hidden, ids, *rest = args
    crowd = ids[:1].expand(ids.shape).contiguous()
    return [(args, min(num_rows, max(_FEW_ROWS))), ((hidden, crowd, *rest), num_rows)]


def _hold_product(op: Op, place: str, args: tuple[Any, ...], num_rows: int) -> torch.Tensor:
    """Holds the first ``num_rows`` of the reference against those of the first few native rows
    alone and of all of them, which it returns."""
    matrices = _matrices(op, args)
    per_row = _ROW_ARGUMENTS[op]

    def first(count: int) -> tuple[Any, ...]:
        return (*(arg[:count] for arg in args[:per_row]), *args[per_row:])

    (matrix, *_) = matrices
    tall = op is linear and isinstance(matrix, torch.Tensor) and len(matrix) > _TALLEST
    x, *rest = first(num_rows)
    expected = op.reference(x, *((_ends(matrix, 0), *rest[1:]) if tall else rest))
    integers = any(isinstance(matrix, Int8Matrix | Int8StaticMatrix) for matrix in matrices)
    # The reference rounds to the precision of the rows, whatever it returns.
    tolerance = _TOLERANCE[x.dtype]
    if integers and op is not linear:
        tolerance = _TOLERANCE_OF_INTEGERS
    for count in sorted({*_FEW_ROWS, len(args[0])}):
        found: torch.Tensor = op.native(*first(count))
        held = _ends(found, 1) if tall else found
        both = min(count, num_rows)
        _hold(op, place, expected[:both], held[:both], tolerance)
    return found


def _ends(values: torch.Tensor, dim: int) -> torch.Tensor:
    half, size = _TALLEST // 2, values.shape[dim]
    return torch.cat((values.narrow(dim, 0, half), values.narrow(dim, size - half, half)), dim)


def _hold(op: Op, place: str, wanted: torch.Tensor, got: torch.Tensor, tolerance: float) -> None:
    """Raises unless ``got`` is ``wanted`` within ``tolerance``."""
    if not wanted.isfinite().all():
        raise CheckpointError(
            f"the weights of {place} are damaged: {op.name} gives NaN or infinity",
            hint="download the checkpoint again, or convert it again if it was converted here",
        )
    if got.isfinite().all():
        error = difference(wanted, got)
        if error <= tolerance:
            return
        what = f"is off by {error:.2g} of its reference here"
    else:
        what = "gives NaN or infinity here, and its reference does not"
    raise SetupError(
        f"the C++ kernel {op.name} {what}",
        hint="set MSERVE_ISA=plain to serve without vector instructions, and report it",
    )


def _outcome(run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``run`` returns or, of the one op that returns nothing, what it wrote into its plane."""
    if run not in (write_kv.reference, write_kv.native):
        return run(*args, **kwargs)
    plane, slots, _ = args
    written = (slots // BLOCK_TOKENS, slice(None), slots % BLOCK_TOKENS)
    # Codes as bytes: they are equal or not.
    stores = [
        store.view(torch.uint8) if store.itemsize == 1 else store for store in _tensors(plane)
    ]
    for store in stores:
        store[written] = 0
    run(*args, **kwargs)
    return tuple(store[written] for store in stores)


def _tensors(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def difference(wanted: torch.Tensor, got: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute value, both finite."""
    if not wanted.numel():
        return 0.0
    if not wanted.dtype.is_floating_point:
        return float((wanted != got).any())
    scale = wanted.abs().max().float().clamp_min(torch.finfo(torch.float32).tiny)
    return float((wanted.float() - got.float()).abs().max() / scale)
