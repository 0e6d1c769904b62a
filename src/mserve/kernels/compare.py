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
from mserve.kernels.choose import OPS, Op, linear, write_kv
from mserve.kernels.matrix import Int8Matrix, Int8StaticMatrix

# Largest difference, relative to the largest value. Two orders of summation differ by a few
# roundings; a lost scale, clamp or block by far more.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
# Of INT8 matrices with an activation between them: what lies halfway between two integers may
# become either, which no precision of what surrounds it makes smaller.
_TOLERANCE_OF_INTEGERS = 2e-2


@contextmanager
def compared_kernels(place: str) -> Iterator[None]:
    """Within the block every op that runs natively runs both ways, and returns the native result.
    ``place`` is the part of the model that the block computes, from finite inputs.

    Raises:
        SetupError: names the first op whose results differ.
        CheckpointError: names ``place`` and the first op that its weights give NaN or infinity.
    """
    before = [op.run for op in OPS]
    for op in OPS:
        if op.run is op.native:
            op.run = _compared(op, place)
    try:
        yield
    finally:
        for op, run in zip(OPS, before, strict=True):
            op.run = run


def _compared(op: Op, place: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        expected = _outcome(op.reference, args, kwargs)
        found = _outcome(op.native, args, kwargs)
        integers = any(isinstance(arg, Int8Matrix | Int8StaticMatrix) for arg in args)
        for wanted, got in zip(_tensors(expected), _tensors(found), strict=True):
            tolerance = _TOLERANCE.get(wanted.dtype, 0.0)
            if integers and op is not linear:
                tolerance = _TOLERANCE_OF_INTEGERS
            _hold(op, place, wanted, got, tolerance)
        return found

    return run


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
