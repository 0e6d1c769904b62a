"""Headers of safetensors files: which tensors a shard holds, and where, without reading them.

    file │ 8 bytes: header length │ header: JSON │ data: tensors at their data_offsets │

Knows one file's bytes; does not know what its tensors mean.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import NoReturn

import msgspec

from mserve.core import DTYPE_BYTES, CheckpointError

# Other precisions keep the name the file gives them: they are an error only for tensors we need.
_DTYPES = {
    "BF16": "bfloat16",
    "F32": "float32",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "I8": "int8",
    "U8": "uint8",
    "I32": "int32",
    "I64": "int64",
}
_FORMAT_NAMES = {name: spelled for spelled, name in _DTYPES.items()}
_MAX_HEADER_BYTES = 256 << 20
_DOWNLOAD_AGAIN = "download the file again"


class TensorSource(msgspec.Struct, frozen=True):
    """Where a tensor lies: ``nbytes`` from ``offset`` of ``file``, row-major. A part of a stacked
    tensor is one too, since the parts we need are whole rows of its leading dimensions."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def rows(self, start: int, stop: int) -> TensorSource:
        """Rows ``start`` to ``stop`` of the first dimension."""
        row_bytes = self.nbytes // max(1, self.shape[0])
        return TensorSource(
            self.file,
            self.dtype,
            (stop - start, *self.shape[1:]),
            self.offset + start * row_bytes,
            (stop - start) * row_bytes,
        )

    def row(self, index: int) -> TensorSource:
        """Row ``index`` of the first dimension, without that dimension."""
        one = self.rows(index, index + 1)
        return TensorSource(one.file, one.dtype, one.shape[1:], one.offset, one.nbytes)


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def format_name(dtype: str) -> str:
    """How the file format spells ``dtype``; one that we do not know already is so spelled."""
    return _FORMAT_NAMES.get(dtype, dtype)


def read_header(file: Path) -> dict[str, TensorSource]:
    """Tensors of ``file`` by name. ``CheckpointError`` if it is missing, truncated or no
    safetensors file, or if two tensors share bytes."""
    try:
        file_bytes = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            header = stream.read(min(header_bytes, _MAX_HEADER_BYTES))
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror}", hint=_DOWNLOAD_AGAIN) from None
    if prefix == b"version ":
        _refuse(file, "a Git LFS pointer, not the weights", "fetch them with: git lfs pull")
    if len(header) < header_bytes <= max(file_bytes, _MAX_HEADER_BYTES):
        _refuse(file, f"truncated within its header: {file_bytes} bytes")
    data_start = 8 + header_bytes
    tensors = {
        name: _source(file, name, entry, data_start) for name, entry in _parse(file, header).items()
    }
    end = max((source.offset + source.nbytes for source in tensors.values()), default=0)
    if end > file_bytes:
        _refuse(file, f"truncated: tensors end at byte {end}, the file at {file_bytes}")
    _check_apart(file, tensors)
    return tensors


def _parse(file: Path, header: bytes) -> dict[str, _Entry]:
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        return {name: _entry_decoder.decode(entry) for name, entry in entries.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError):
        _refuse(file, "not a safetensors file, or damaged: its header is no valid JSON")


def _source(file: Path, name: str, entry: _Entry, data_start: int) -> TensorSource:
    begin, end = entry.data_offsets
    dtype = _DTYPES.get(entry.dtype, entry.dtype)
    item_bytes = DTYPE_BYTES.get(dtype)
    wrong_size = item_bytes is not None and end - begin != prod(entry.shape) * item_bytes
    if wrong_size or begin < 0 or end < begin or any(size < 0 for size in entry.shape):
        _refuse(file, f"damaged: {name} has shape {list(entry.shape)} and {end - begin} bytes")
    return TensorSource(file, dtype, entry.shape, data_start + begin, end - begin)


def _check_apart(file: Path, tensors: Mapping[str, TensorSource]) -> None:
    held = [name for name, source in tensors.items() if source.nbytes]
    held.sort(key=lambda name: tensors[name].offset)
    for name, following in pairwise(held):
        if tensors[name].offset + tensors[name].nbytes > tensors[following].offset:
            _refuse(file, f"damaged: {name} and {following} share bytes")


def _refuse(file: Path, what: str, hint: str = _DOWNLOAD_AGAIN) -> NoReturn:
    raise CheckpointError(f"{file}: {what}", hint=hint)


_entry_decoder = msgspec.json.Decoder(_Entry)
