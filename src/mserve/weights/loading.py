"""Fills parameters from a checkpoint's files: mapped, copied piece by piece, let go behind.

The parameters exist before, so the only other bytes held are the pages of a file that are being
copied. Pieces are copied in file order, which turns the whole load into sequential reads. Knows
files and views; does not know models, ranks or what a tensor means.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path

import torch

from mserve.checkpoint import Checkpoint, TensorSource
from mserve.core import CheckpointError
from mserve.weights.piece import Piece

Progress = Callable[[int, int], None]

# e8m0 scales are kept as the bytes they are.
_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e8m0fnu": torch.uint8,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int32": torch.int32,
    "int64": torch.int64,
}

# Copied at once, then its pages are let go: long enough for full copy speed (torch's own threads
# share one copy), short enough for a smooth progress bar and a small footprint.
_CHUNK_BYTES = 32 << 20

# Linux's value, which Python 3.11 does not name. Without it the kernel refuses to map a shard
# larger than the machine's memory as writable, though not a byte of it will be written.
_MAP_NORESERVE = 0x4000


def load(
    checkpoint: Checkpoint,
    pieces: Iterable[Piece],
    progress: Progress = lambda done_bytes, total_bytes: None,
    parameters: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Copy every piece, converting to its destination's dtype. ``progress`` is called with the
    source bytes copied so far and in all. With ``parameters``, each must be filled entirely.

    ``ValueError`` for a piece that fits no tensor or a parameter left unfilled: a fault of the
    model's map, not of the checkpoint. ``CheckpointError`` if a file changed since it was opened.
    """
    here = (piece for piece in pieces if not piece.optional or piece.source in checkpoint.tensors)
    ordered = sorted(here, key=lambda piece: _position(checkpoint, piece))
    total_bytes = sum(_checked_bytes(checkpoint, piece) for piece in ordered)
    _check_filled(ordered, parameters or {})
    done_bytes = 0
    progress(done_bytes, total_bytes)
    mapped_file, mapping = None, None
    for piece in ordered:
        source = checkpoint.tensors[piece.source]
        if mapping is None or source.file != mapped_file:
            mapped_file, mapping = source.file, _map_file(source.file)
        for num_bytes in _copy(mapping, source, piece):
            done_bytes += num_bytes
            progress(done_bytes, total_bytes)


def _position(checkpoint: Checkpoint, piece: Piece) -> tuple[Path, int]:
    source = checkpoint.tensors.get(piece.source)
    if source is None:
        raise ValueError(f"the checkpoint has no tensor {piece.source}")
    return source.file, source.offset


def _checked_bytes(checkpoint: Checkpoint, piece: Piece) -> int:
    """Bytes of the source that ``piece`` reads; ``ValueError`` if it does not fit."""
    source = checkpoint.tensors[piece.source]
    shape = tuple(
        len(range(*part.indices(size)))
        for part, size in zip(piece.source_slice, source.shape, strict=True)
    )
    if shape != tuple(piece.destination.shape):
        raise ValueError(
            f"{piece.source}: the slice has shape {shape},"
            f" its destination {tuple(piece.destination.shape)}"
        )
    return prod(shape) * _DTYPES[source.dtype].itemsize


def _check_filled(pieces: list[Piece], parameters: Mapping[str, torch.Tensor]) -> None:
    """``ValueError`` naming parameters whose storage the pieces do not fill."""
    missing: Counter[int] = Counter()
    for parameter in parameters.values():
        missing[_storage(parameter)] += parameter.numel()
    for piece in pieces:
        if isinstance(piece.destination, torch.Tensor):
            missing[_storage(piece.destination)] -= piece.destination.numel()
    unfilled = [name for name, tensor in parameters.items() if missing[_storage(tensor)] > 0]
    if unfilled:
        raise ValueError(f"no piece fills all of {', '.join(unfilled[:3])}")


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _map_file(file: Path) -> mmap.mmap:
    """A private mapping: torch wants writable memory, and nothing is ever written to it."""
    try:
        with file.open("rb") as stream:
            mapping = mmap.mmap(
                stream.fileno(),
                0,
                flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
    except (OSError, ValueError):
        raise CheckpointError(
            f"{file} cannot be read any more", hint="was the checkpoint moved while it was loaded?"
        ) from None
    mapping.madvise(mmap.MADV_SEQUENTIAL)
    return mapping


def _copy(mapping: mmap.mmap, source: TensorSource, piece: Piece) -> Iterator[int]:
    """Copy one piece some rows at a time; yields the source bytes of each step."""
    if source.offset + source.nbytes > len(mapping):
        raise CheckpointError(
            f"{source.file} has become shorter", hint="was it changed while it was loaded?"
        )
    dtype = _DTYPES[source.dtype]
    count = prod(source.shape)
    flat = torch.frombuffer(mapping, dtype=dtype, count=count, offset=source.offset)
    rows = flat.view(source.shape)[piece.source_slice]
    row_bytes = source.nbytes // source.shape[0]
    together = piece.rows_together
    step = max(1, _CHUNK_BYTES // row_bytes // together) * together
    first = piece.source_slice[0].indices(source.shape[0])[0]
    for start in range(0, rows.shape[0], step):
        part = rows[start : start + step]
        piece.destination[start : start + step].copy_(part)
        begin = source.offset + (first + start) * row_bytes
        _let_go(mapping, begin, begin + part.shape[0] * row_bytes)
        yield part.numel() * dtype.itemsize


def _let_go(mapping: mmap.mmap, begin: int, end: int) -> None:
    """Unmap the pages read; a page that a neighbour still needs is simply mapped again."""
    begin -= begin % mmap.PAGESIZE
    mapping.madvise(mmap.MADV_DONTNEED, begin, end - begin)
